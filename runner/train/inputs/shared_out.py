"""Work that the workers of a sweep need done when they begin: each part is done by one of them and used by all.

Workers of a single process each split the work in turns. Among workers of several processes, one worker does it, each
of its processes a part, while the others wait: processes that wait for each other cannot leave a turn to someone else.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Generic, TypeVar

from runner.system.exclusive import alone, alone_if_free
from runner.train.place import Place

Part = TypeVar("Part")

SAY_EVERY_S = 30.0


@dataclasses.dataclass(frozen=True)
class SharedWork(Generic[Part]):
    """How to do the parts, and how to report on them."""

    folder: Path
    """Where the parts are kept."""
    per_turn: int
    """How many are done before checking again what others have done."""
    lock: Callable[[Sequence[Part]], Path]
    """The lock file for some parts. Several may share one, and wait for each other."""
    is_there: Callable[[Part], bool]
    """Whether a part has been done by anyone."""
    do: Callable[[Sequence[Part]], None]
    """Does some of the missing parts."""
    begin: Callable[[int], None]
    """Receives the number of missing parts, in the main process."""
    so_far: Callable[[int], None]
    """The same later, from time to time: for a large data set the work can take hours."""
    what: str
    """The work in words, as in "could not ..."."""
    doing: str
    """The same, for the message while waiting for another process."""

    def missing(self, parts: Sequence[Part]) -> list[Part]:
        """The parts that nobody has done."""
        return [part for part in parts if not self.is_there(part)]


def share_out(parts: Sequence[Part], work: SharedWork[Part], place: Place) -> None:
    """Do the parts that are missing; when it returns, all are done.

    Args:
        parts: all of them, done or not, in the same order in every worker.

    Raises:
        RunnerError: the work failed in a process of this worker.
        Interrupted: the work heeded a signal.
    """
    said_s = time.monotonic()

    def do_and_say(some: Sequence[Part]) -> None:
        nonlocal said_s
        work.do(some)
        if place.is_main and time.monotonic() - said_s >= SAY_EVERY_S and (left := work.missing(parts)):
            said_s = time.monotonic()
            work.so_far(len(left))

    if place.world == 1:
        work.begin(len(work.missing(parts)))
        place.together(lambda: _in_turns(parts, work, do_and_say), what=work.what)
        return
    beside = place.beside(work.folder)
    # One process of each pack waits for those of other packs, and the rest of its pack waits for it.
    waits = place.any(bool(work.missing(parts))) and place.rank == beside[0]
    with alone(work.lock(parts), doing=work.doing) if waits else nullcontext():
        place.wait()
        left = work.missing(parts)
        place.wait()  # all must have looked before the first one writes, or they would split the work differently
        mine = [left[index] for index in place.share(len(left), beside)]
        if place.is_main:
            work.begin(len(left))

        def do_mine() -> None:
            for some in _turns(mine, work):
                do_and_say(some)

        place.together(do_mine, what=work.what)


def _turns(parts: Sequence[Part], work: SharedWork[Part]) -> list[Sequence[Part]]:
    return [parts[start : start + work.per_turn] for start in range(0, len(parts), work.per_turn)]


def _in_turns(parts: Sequence[Part], work: SharedWork[Part], do: Callable[[Sequence[Part]], None]) -> None:
    turns = _turns(parts, work)
    while turns := [turn for turn in turns if work.missing(turn)]:
        taken_by_others = []
        for turn in turns:
            with alone_if_free(work.lock(turn)) as is_free:
                if not is_free:
                    taken_by_others.append(turn)
                elif left := work.missing(turn):  # another one may have been faster
                    do(left)
        if len(taken_by_others) == len(turns):
            with alone(work.lock(turns[0]), doing=work.doing):
                pass  # the other worker has finished that turn, or died doing it
        turns = taken_by_others
