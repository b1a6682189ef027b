"""The port of a server, as a command line names it, and whether it can be had."""

from __future__ import annotations

import argparse
import socket

LAST_PORT = 65535


def port(text: str) -> int:
    """The number of a port to listen at.

    Raises:
        argparse.ArgumentTypeError: it is none; the parser says so, and ends with 2.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a whole number from 1 to {LAST_PORT}")
    return number


def why_not(host: str, number: int) -> str | None:
    """Why a server cannot listen there, with the fix; None where it can."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        # `socket` adds the address, which is said already.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        return f"nothing can listen at {host}, port {number} ({reason}); name another with --port or --host"
    return None
