"""Text from elsewhere, made safe: free of half characters and, for a terminal, of control codes."""

from __future__ import annotations

import logging
import re
from typing import TextIO

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tab and line feed. A file from elsewhere could use them to retitle, recolour or rewrite the terminal."""


def whole(text: str) -> str:
    """The text with a question mark for each half character, which no tokenizer accepts and no response can contain.

    JSON can contain half an emoji (`"\\ud83d"`), and so can a file name that is not UTF-8.
    """
    return text.encode("utf-8", "replace").decode()


def printable(text: str) -> str:
    r"""The text without half characters, and with control codes spelled out, such as `\x1b` for escape."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", whole(text))


class Printable(logging.Formatter):
    """Formats log lines without control codes."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, followed by the traceback, if there is one."""
        return printable(super().format(record))


HTTP_CLIENTS = ("httpx", "httpx2", "httpcore")
"""They log every address they request. There are many, and some are signed: anyone who reads one can use it."""


def log_to(stream: TextIO, level: int) -> None:
    """Send log messages to a stream as lines, unless logging is already configured."""
    for name in HTTP_CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
