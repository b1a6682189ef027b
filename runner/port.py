"""The port of a server, as a command line names it."""

from __future__ import annotations

import argparse

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
