"""Why a worker ended, in words: its exit code and its last output; for a group, those of the first process to fail."""

from __future__ import annotations

import re
from pathlib import Path

from runner.launchers.settle import LAST_WORDS_LENGTH, how_it_ended, last_words

FIRST_FAILED = re.compile(r"^E\d{4} .*failed \(exitcode: (-?\d+)\) local_rank: \d+", re.MULTILINE)
"""torchrun's line about the process that failed first; a page of report follows, and its own exit code is always 1."""
END_OF_REPORT = "=" * 20
OF_TORCHRUN = re.compile(r"[EWI]\d{4} ")


def ending(code: int, log: Path | None, *, when: str = "") -> str:
    """How a worker ended, and its last output if there is any.

    Args:
        code: its exit code, as `subprocess` gives it.
        when: what to add to how it ended, such as ` before this job began`.
    """
    member = _first_failed(log) if code else None
    how, words = member or (how_it_ended(code), last_words(log))
    return f"{how}{when}" + (f": {words}" if words else "")


def _first_failed(log: Path | None) -> tuple[str, str] | None:
    try:
        text = log.read_text(encoding="utf-8", errors="replace") if log is not None else ""
    except OSError:
        return None
    found = list(FIRST_FAILED.finditer(text))
    if not found or not text.rstrip().endswith(END_OF_REPORT):
        return None  # otherwise the log may hold one of an earlier worker
    said = [line.strip() for line in text[: found[-1].start()].splitlines() if line.strip()]
    words = next((line for line in reversed(said) if not OF_TORCHRUN.match(line)), "")
    return how_it_ended(int(found[-1][1])), words[:LAST_WORDS_LENGTH]
