"""Copies what workers write to their logs to stdout, from which SageMaker makes the training job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.container.repeating import repeating
from runner.paths import ExperimentPaths

POLL_S = 0.2
SILENT_S = 60.0
"""After this long without a line, this process reports the jobs' progress itself."""


class Relay:
    """Follows the logs of the workers in a folder.

    Args:
        named: whether each line begins with the place of its worker.
        how_far: a line about the jobs' progress, for when no worker writes anything.
    """

    def __init__(self, folder: Path, *, named: bool, how_far: Callable[[], str]) -> None:
        self._pattern = ExperimentPaths(folder).worker_log("*")
        self._named, self._how_far = named, how_far
        # An earlier container has already passed on what its workers wrote.
        self._read_bytes = {file: file.stat().st_size for file in self._files()}
        self._rest: dict[Path, bytes] = {}
        self._last_s = time.monotonic()

    def _files(self) -> list[Path]:
        return sorted(self._pattern.parent.glob(self._pattern.name))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Inside the context, pass lines on; on leaving it, pass on everything that is left."""
        try:
            with repeating(self._pass_on, every_s=POLL_S, name="passes logs on"):
                yield
        finally:
            self._pass_on()
            for file, rest in self._rest.items():
                self._say(file, rest)

    def _pass_on(self) -> None:
        for file in self._files():
            with file.open("rb") as stream:
                stream.seek(self._read_bytes.get(file, 0))
                new = stream.read()
            self._read_bytes[file] = self._read_bytes.get(file, 0) + len(new)
            *lines, rest = (self._rest.get(file, b"") + new).split(b"\n")
            self._rest[file] = rest
            for line in lines:
                self._say(file, line)
        if time.monotonic() - self._last_s > SILENT_S:
            self._write(self._how_far())

    def _say(self, file: Path, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
        if text:
            place = file.stem.rpartition("-")[2]
            self._write(f"[{place}] {text}" if self._named else text)

    def _write(self, line: str) -> None:
        self._last_s = time.monotonic()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
