"""Who may ask: pages of the gallery itself, and people; no other page that is open in the same browser.

A page from elsewhere can make a browser send requests to this machine, and can give its own name the address of this
machine (DNS rebinding), after which the browser takes the answers for that page's own. So a request is refused that
names another host than the one that is listened at, or that comes from another page.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Of every answer: nothing is loaded from elsewhere, and nothing from here is shown elsewhere."""


class Guard:
    """Tells the requests that are refused.

    Args:
        host: what is listened at; a name, or an address. At which port is of no account: it may be forwarded.
    """

    def __init__(self, host: str) -> None:
        self._names = {"localhost", host.lower()}
        listened = _address(host)
        self._wide = host.lower() != "localhost" if listened is None else not listened.is_loopback
        if self._wide:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def refused(self, method: str, headers: Mapping[str, str]) -> str:
        """Why a request is refused; empty if it is not."""
        asked = headers.get("host", "")
        if not self._is_here(asked):
            return f"this gallery is not at {asked!r}"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != asked:
            return "a page from elsewhere asks"
        elsewhere = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        # A link from elsewhere may be followed: what it opens, the page with the link does not see.
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
        # No name was resolved to come here, so none was given this address by somebody else.
        return self._wide or address.is_loopback or name in self._names


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
