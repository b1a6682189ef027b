"""What the workers of a sweep lack when they begin, found or made by one of them each and used by all.

Workers of one process share it out in turns. Of workers of several processes one does it, each of its processes a part,
while the others wait: processes that wait for each other cannot leave a turn to somebody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from runner.exclusive import alone, alone_if_free
from runner.train.place import Place

Part = TypeVar("Part")

SAY_EVERY_S = 30.0


def share_out(
    parts: Sequence[Part],
    per_turn: int,
    *,
    place: Place,
    folder: Path,
    lock: Callable[[Sequence[Part]], Path],
    is_there: Callable[[Part], bool],
    work: Callable[[Sequence[Part]], None],
    begin: Callable[[int], None],
    so_far: Callable[[int], None],
    what: str,
    doing: str,
) -> None:
    """Do what is missing of some parts; when it returns, all are there.

    Args:
        parts: all of them, there or not, in the same order in every worker.
        per_turn: how many are done before it is looked again at what others have done.
        folder: where they are kept.
        lock: the file that stands for some of them. Others may have the same one, and wait for each other.
        is_there: whether somebody has done one.
        work: does some that are missing.
        begin: told in the main process how many are missing.
        so_far: the same later, now and then where it takes long: of a large data set it may take hours.
        what: the work in words, as in "could not ...".
        doing: the same, of another process that is waited for.

    Raises:
        RunnerError: it failed in a process of this worker.
        Interrupted: `work` has heeded a signal.
    """

    def missing(some: Sequence[Part]) -> list[Part]:
        return [part for part in some if not is_there(part)]

    said_s = time.monotonic()

    def work_and_say(some: Sequence[Part]) -> None:
        nonlocal said_s
        work(some)
        if place.is_main and time.monotonic() - said_s >= SAY_EVERY_S and (left := missing(parts)):
            said_s = time.monotonic()
            so_far(len(left))

    if place.world == 1:
        begin(len(missing(parts)))
        turns = [parts[start : start + per_turn] for start in range(0, len(parts), per_turn)]
        place.together(lambda: _in_turns(turns, missing, work_and_say, lock, doing), what=what)
        return
    beside = place.beside(folder)
    # One process of each pack waits for those of others, and the others of its pack for it.
    waits = place.any(bool(missing(parts))) and place.rank == beside[0]
    with alone(lock(parts), doing=doing) if waits else nullcontext():
        place.wait()
        left = missing(parts)
        place.wait()  # all must have looked before the first one writes, or they would share the work differently
        mine = [left[index] for index in place.share(len(left), beside)]
        if place.is_main:
            begin(len(left))

        def work_on_mine() -> None:
            for start in range(0, len(mine), per_turn):
                work_and_say(mine[start : start + per_turn])

        place.together(work_on_mine, what=what)


def _in_turns(
    turns: list[Sequence[Part]],
    missing: Callable[[Sequence[Part]], list[Part]],
    work: Callable[[Sequence[Part]], None],
    lock: Callable[[Sequence[Part]], Path],
    doing: str,
) -> None:
    while turns := [turn for turn in turns if missing(turn)]:
        taken_by_others = []
        for turn in turns:
            with alone_if_free(lock(turn)) as is_free:
                if not is_free:
                    taken_by_others.append(turn)
                elif left := missing(turn):  # another one may have been faster
                    work(left)
        if len(taken_by_others) == len(turns):
            with alone(lock(turns[0]), doing=doing):
                pass  # it has done that, or died of it
        turns = taken_by_others
