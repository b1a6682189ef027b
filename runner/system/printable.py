"""Text that others wrote: of whole characters or not, and as a terminal may have it, without control codes."""

from __future__ import annotations

import logging
import re
from typing import TextIO

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tab and line feed. With them a file from elsewhere could retitle, recolour or rewrite what a person reads."""


def whole(text: str) -> str:
    """The text with a question mark for each half of a character, which no tokenizer takes and no answer can hold.

    JSON can hold half an emoji (`"\\ud83d"`), and so can a name of a file that is not UTF-8.
    """
    return text.encode("utf-8", "replace").decode()


def printable(text: str) -> str:
    r"""The text with control codes spelled out, such as `\x1b` for escape, and of whole characters."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", whole(text))


class Printable(logging.Formatter):
    """Lines of a log without control codes."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it the trace, if there is one."""
        return printable(super().format(record))


HTTP_CLIENTS = ("httpx", "httpx2", "httpcore")
"""They log every address that is asked for. There are many, and some are signed: whoever reads one may use it."""


def log_to(stream: TextIO, level: int) -> None:
    """Have the messages of the log as lines on a stream, unless the log goes somewhere already."""
    for name in HTTP_CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
