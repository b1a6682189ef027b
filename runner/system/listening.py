"""Where the servers of this project listen, and which requests they answer; there is no authentication.

A foreign page that is open in a browser on this machine can make the browser send requests to the server. It can also
point its own name at the address of this machine (DNS rebinding), and then the browser treats the answers as that
page's own. So a request is refused if it names a host other than the server's, or if it comes from another page.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
"""For this machine alone; the default address."""
LAST_PORT = 65535


def port(text: str) -> int:
    """The number of a port to listen on.

    Raises:
        argparse.ArgumentTypeError: it is not a port number; the parser then reports it and exits with 2.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a whole number from 1 to {LAST_PORT}")
    return number


def why_not(host: str, number: int) -> str | None:
    """Why a server cannot listen there, with the fix; None if it can."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        # `socket` adds the address, which the message names already.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        return f"nothing can listen at {host}, port {number} ({reason}); name another with --port or --host"
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this address."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class Guard:
    """Decides which requests are refused.

    Args:
        host: the name or address that the server listens on. The port does not matter: it may be forwarded.
        any_name: accept any host name from other machines, such as that of a proxy before a container.
    """

    def __init__(self, host: str, *, any_name: bool = False) -> None:
        self._names = {"localhost", host.lower()}
        self._wide = not is_loopback(host)
        self._any_name = any_name and self._wide
        if self._wide:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def refused(self, method: str, headers: Mapping[str, str]) -> str:
        """Why a request is refused; empty if it is not."""
        asked = headers.get("host", "")
        if not self._any_name and not self._is_here(asked):
            return f"what listens here is not {asked!r}"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != asked:
            return "a page from elsewhere asks"
        elsewhere = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        # Following a link from elsewhere is fine: the page with the link does not see what it opens.
        followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return "a page from elsewhere asks" if elsewhere and not followed else ""

    def _is_here(self, asked: str) -> bool:
        try:
            name = (urlsplit(f"//{asked}").hostname or "").lower()
        except ValueError:
            return False
        address = _address(name)
        if address is None:
            return name in self._names
        # No name was resolved, so nobody can have pointed one at this address.
        return self._wide or address.is_loopback or name in self._names


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
