"""metrics.jsonl: the record of a job that everything else is derived from, one JSON object per line.

Takes a step and named numbers, and returns them in order. It does not know what the numbers mean.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.paths import atomic_file

log = logging.getLogger(__name__)

# JSON has no NaN or infinity: the value becomes null, and what it was is kept by name under this key.
NON_FINITE = "non_finite"


class MetricsFile:
    """An append-only file of metrics that survives its writer being killed in the middle of a line.

    One process writes; any number may read at the same time.

    Args:
        path: where the file is or will be; its folder must exist when `append` is called.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tail_is_whole = False

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line and flush it to the operating system.

        Args:
            step: optimizer steps done; 0 is before training.
            values: plain numbers by name, such as `train/loss`. NaN and infinities are kept.

        Raises:
            OSError: if the line cannot be written (full disk, missing folder).
        """
        line: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        non_finite: dict[str, str] = {}
        for name, value in values.items():
            number = float(value)
            line[name] = number if math.isfinite(number) else None
            if not math.isfinite(number):
                non_finite[name] = str(number)
        if non_finite:
            line[NON_FINITE] = non_finite
        if not self._tail_is_whole:
            _drop_torn_tail(self.path)
        self._tail_is_whole = False  # a full disk may take only part of a line
        # Reopening for each line costs microseconds, and a job that fails leaves no handle open.
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._tail_is_whole = True

    def read(self) -> list[dict[str, Any]]:
        """All lines in the order they were written, with NaN and infinities restored.

        A torn last line (the process was killed while writing) is skipped. A torn line further
        up is skipped too, with a warning. A missing file gives an empty list.
        """
        try:
            raw_lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        parsed = [(number, parse_line(raw)) for number, raw in enumerate(raw_lines, start=1) if raw.strip()]
        torn = [number for number, line in parsed if line is None]
        if torn and (len(torn) > 1 or torn[0] != parsed[-1][0]):
            log.warning("%s: skipped %d lines that are not JSON objects; the first is line %d",
                        self.path, len(torn), torn[0])  # fmt: skip
        return [line for _, line in parsed if line is not None]

    def values(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric in the order written; torn lines and a missing file are handled as in `read`.

        Only lines that name the metric are parsed: few of the hundred thousand lines of a long training do.
        """
        wanted = json.dumps(name).encode() + b":"
        try:
            raw_lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        lines = [line for raw in raw_lines if wanted in raw and (line := parse_line(raw)) is not None]
        return [(line["step"], float(line[name])) for line in lines if line.get(name) is not None]

    def truncate_after(self, step: int) -> None:
        """Drop each line later than `step`, atomically: a resume from that checkpoint writes them again.

        Raises:
            OSError: if the new file cannot be written; the old one is then untouched.
        """
        if self.path.exists():
            lines = [(raw, parse_line(raw)) for raw in self.path.read_bytes().split(b"\n")]
            self._write([raw for raw, line in lines if line is not None and line["step"] <= step])

    def drop(self, step: int, kind: str) -> None:
        """Drop the lines of a step that hold a metric of one kind, atomically: it will be measured and written again.

        Args:
            kind: prefix of the metric's name, such as `validation/`.

        Raises:
            OSError: if the new file cannot be written; the old one is then untouched.
        """
        if self.path.exists():
            lines = [(raw, parse_line(raw)) for raw in self.path.read_bytes().split(b"\n")]
            kept = [(raw, line) for raw, line in lines if line is not None]
            self._write(
                [raw for raw, line in kept if line["step"] != step or not any(name.startswith(kind) for name in line)]
            )

    def _write(self, lines: list[bytes]) -> None:
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in lines))

    def close(self) -> None:
        """Stop writing; a later `append` checks the end of the file again."""
        self._tail_is_whole = False


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """One line as a dict, with NaN and infinities restored; None if it is not a JSON object with an integer step."""
    try:
        line = json.loads(raw, parse_int=_whole)
    except ValueError:  # includes bytes that are not UTF-8
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    non_finite = line.pop(NON_FINITE, {})
    if isinstance(non_finite, dict):
        line.update({name: float(text) for name, text in non_finite.items() if text in ("nan", "inf", "-inf")})
    return line


def _whole(text: str) -> float:
    """An integer; one beyond all floats, which another program may have written, is infinite."""
    return int(text) if len(text) <= sys.float_info.max_10_exp else float(text)


def _drop_torn_tail(path: Path) -> None:
    """Cut off what follows the last newline, so that the next line is not appended to a torn one."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end != len(content):
        os.truncate(path, end)
