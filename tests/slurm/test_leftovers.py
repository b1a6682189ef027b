"""What becomes of each job that a worker leaves behind, given what is known about the worker and the job."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from runner.jobs.job import State
from runner.launchers.cluster import Gone
from runner.launchers.leftovers import leftovers_of
from runner.launchers.lots import Lot
from runner.plan import Pack
from tests.slurm.script import ENDED, TAKEN, make_jobs, write

BEGAN, NEVER_BEGAN = (Gone(words="failed", began=began) for began in (True, False))
MINE, OTHERS = (State.RUNNING, "w1"), (State.INTERRUPTED, "w2")
WAITS = (State.SUBMITTED, None)


@pytest.mark.parametrize(
    ("jobs", "gone", "known", "expected"),
    [
        # Another living worker takes up all interrupted jobs by itself.
        ([MINE, OTHERS, WAITS], TAKEN, {"alive"}, {"taken_away": [0]}),
        ([MINE, OTHERS, WAITS], ENDED, {"alive"}, {"crashed": [0]}),
        ([MINE, OTHERS, WAITS], ENDED, set(), {"crashed": [0], "go_on": [1, 2]}),
        # Stopped before this command, which wants them nevertheless.
        ([MINE, WAITS], ENDED, {"ending"}, {"taken_away": [0], "go_on": [0, 1]}),
        ([(State.CANCELLED, None), WAITS], ENDED, {"ending"}, {"go_on": [0, 1]}),
        ([(State.CANCELLED, None), WAITS], ENDED, set(), {"go_on": [1]}),
        # Whether the worker started working at all: if not, others would do no better.
        ([WAITS, WAITS], ENDED, set(), {"not_begun": [0, 1]}),
        ([WAITS, WAITS], ENDED, {"earlier"}, {"go_on": [0, 1]}),
        ([WAITS, (State.COMPLETED, None)], ENDED, set(), {"go_on": [0]}),
        ([WAITS, (State.PENDING, "w1")], ENDED, set(), {"go_on": [0, 1]}),
        ([OTHERS, WAITS], NEVER_BEGAN, set(), {"not_begun": [1], "go_on": [0]}),
        # Which worker held a job last counts only where locks show it and nothing else is known.
        ([WAITS, WAITS], ENDED, {"held"}, {"crashed": [0], "go_on": [1]}),
        ([WAITS, WAITS], ENDED, {"held", "apart"}, {"not_begun": [0, 1]}),
        ([WAITS, WAITS], ENDED, {"held", "earlier"}, {"go_on": [0, 1]}),
        ([WAITS, WAITS], BEGAN, {"held"}, {"go_on": [0, 1]}),
        ([WAITS, WAITS], NEVER_BEGAN, {"held"}, {"not_begun": [0, 1]}),
    ],
)
def test_jobs_go_on_or_end_by_what_is_known_of_them_and_of_their_worker(
    jobs: Sequence[tuple[State, str | None]], gone: Gone, known: set[str], expected: dict[str, list[int]]
) -> None:
    made = make_jobs(len(jobs))
    for job, (state, worker) in zip(made, jobs, strict=True):
        write([job], state, worker=worker)
    if "held" in known:
        made[0].paths.lock.write_text("1")  # by a process other than this one
    lot = Lot(Pack(tuple(made), 2, 2, 1, ""), "script")
    lot.workers, lot.alive = ["w1", "w2"], ["w2"] if "alive" in known else []
    lot.is_earlier, lot.is_ending = "earlier" in known, "ending" in known
    found = leftovers_of(lot, "w1", gone, shares_files="apart" not in known)

    of_each = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    assert not of_each.pop("was_stopped")
    indices = {name: sorted(map(made.index, leftovers)) for name, leftovers in of_each.items() if leftovers}
    assert indices == expected
