"""Two processes of one pack, as threads: each has a place, and they meet in every collective."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from runner.errors import RunnerError
from runner.train.pack import tried
from runner.train.place import Found, Place

Given = TypeVar("Given")

PATIENCE_S = 10
"""How long a process waits for one that does not come, before it fails with a BrokenBarrierError."""


class Rank(Place):
    """The place of one of the processes."""

    def __init__(self, rank: int, meeting: threading.Barrier, said: list[Any]) -> None:
        super().__init__(torch.device("cpu"), rank, 2)
        self._meeting, self._said = meeting, said

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        return [any(each) for each in zip(*self._exchanged(flags), strict=True)]

    def most(self, count: int) -> int:
        return int(max(self._exchanged(count)))

    def sum(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self._exchanged(tensor.clone())).sum(dim=0))

    def from_main(self, find: Callable[[], Found]) -> Found:
        found: Any = self._exchanged(tried(find) if self.is_main else None)[0]
        if isinstance(found, Exception):
            raise found if self.is_main else RunnerError("the main process failed")
        return cast("Found", found)

    def _exchanged(self, own: Any) -> list[Any]:
        self._said[self.rank] = own
        self._meeting.wait()
        said = list(self._said)
        self._meeting.wait()
        return said


def in_both(action: Callable[[Place], Given]) -> list[Given]:
    """The results of an action in the main process and in the other one."""
    meeting, said = threading.Barrier(2, timeout=PATIENCE_S), [None, None]
    with ThreadPoolExecutor(2) as processes:
        return list(processes.map(lambda rank: action(Rank(rank, meeting, said)), range(2)))
