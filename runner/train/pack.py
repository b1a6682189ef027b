"""The jobs that train together: their slices of one batch, their adapters on the frozen base, who comes and goes.

Does not decide when anything happens; `runner.train.loop` does.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from runner.cache.measured import Conditions, Measurement
from runner.errors import Interrupted, in_words
from runner.jobs.job import Job, State
from runner.train.adapters.packed import PackedAdapters
from runner.train.base import Base
from runner.train.clock import Clock
from runner.train.cost import Alone, peak_memory_gb
from runner.train.inputs.materials import Materials
from runner.train.job_run import JobRun
from runner.train.passes import Passes, forget
from runner.train.place import FAULTS, Place

log = logging.getLogger(__name__)

LEAVES = object()
"""Returned by an action after which a job is no longer in the pack."""

LEAST_STEPS = 10
"""Of fewer steps the time says more of their beginning than of them."""

TIMED_STEPS = 5
"""A job alone is timed over so many steps; as many in every process, which must stay in step."""


class Pack:
    """The jobs that are training, and their adapters on the frozen base."""

    def __init__(
        self, place: Place, *, startup_s: float = 0.0, on_leave: Callable[[JobRun], None] | None = None
    ) -> None:
        self.place, self.clock, self.startup_s, self._on_leave = place, Clock(), startup_s, on_leave
        self.base: Base | None = None
        self.passes: Passes | None = None
        self.conditions: Conditions | None = None
        self.runs: list[JobRun] = []
        self.failed = 0
        self.adapters: PackedAdapters | None = None
        self.load_s = 0.0
        self._left_last: list[Materials] = []
        """Inputs of the jobs after which nobody was left, for those that come next."""
        self._alone_step_s: dict[tuple[int, int], float] = {}
        self._steps: Counter[int] = Counter()

    # --- who is in it ---

    def found(self, base: Base, conditions: Conditions) -> None:
        """Lay the base that all jobs share, and say what the speed of its steps depends on."""
        self.base, self.passes, self.conditions = base, Passes(base), conditions

    def join(self, runs: Sequence[JobRun]) -> None:
        """Take jobs in."""
        if not runs:
            return
        assert self.base is not None
        self.runs += runs
        self._assemble(self.base)
        for run in self.runs:
            run.cost.packed_with = max(run.cost.packed_with, len(self.runs))
        # Steps that are made to be timed are no training: speeds and later plans go by the time of that.
        with self.clock.charging("load", self.runs):
            for run in self.runs:
                run.alone = Alone(self.startup_s, self.load_s, self._measured_alone(run))

    def leave(self, leaving: Sequence[JobRun]) -> None:
        """Let jobs go; the others do not notice."""
        if not leaving:
            return
        assert self.base is not None
        self.runs = [run for run in self.runs if run not in leaving]
        if not self.runs:
            self._left_last = [run.materials for run in leaving]
        self._assemble(self.base)
        if self._on_leave is not None:
            for run in leaving:
                self._on_leave(run)

    @contextmanager
    def preparing(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Within it, what the last jobs have left is still in memory if one of these trains on the same images: jobs of
        as many steps leave together, and all would be read again for each pack of a sweep.
        """
        wanted = {job.identity["dataset"] for job in jobs}
        # What nobody shares makes room for what comes.
        self._left_last = [each for each in self._left_last if each.dataset.fingerprint in wanted]
        try:
            yield
        finally:
            self._left_last = []

    def _assemble(self, base: Base) -> None:
        self.clock.charge_training()
        if self.adapters is not None:
            self.adapters.detach()
        self.adapters = None  # the next one takes as much memory
        self.adapters = (
            PackedAdapters(base.components(), [run.adapter for run in self.runs], dtype=base.dtype)
            if self.runs
            else None
        )
        if base.live_text and "placed_tokens" in vars(base):
            base.placed_tokens.vectors_in_use = self.adapters.words_in_use if self.adapters is not None else dict
        self.clock.training = {run: run.settings.images_per_step for run in self.runs}

    def rows_of(self, run: JobRun) -> Callable[[int], AbstractContextManager[None]]:
        """A context maker: within it, so many rows of a forward pass belong to this job alone, as it is published."""

        @contextmanager
        def use_rows(count: int) -> Iterator[None]:
            assert self.adapters is not None
            index = self.runs.index(run)
            with ExitStack() as stack:
                if run.average is not None:
                    stack.enter_context(self.adapters.showing(index, run.published))
                stack.enter_context(self.adapters.using([(index, count)]))
                yield

        return use_rows

    def each(self, action: Callable[[JobRun], Any]) -> None:
        """Do something for every job; one that fails at it leaves the pack with its reason, alone.

        The main process validates and writes files, so only it can fail at that: all must hear of it, or they
        would go on with different packs and wait for each other for ever.
        """
        outcomes = [tried(partial(action, run)) for run in self.runs]
        failed = self.place.any_of([isinstance(outcome, Exception) for outcome in outcomes])
        leaving = []
        for run, outcome, has_failed in zip(self.runs, outcomes, failed, strict=True):
            if has_failed:
                log.error("%s failed: %s", run.job.id, reason_of(outcome))
                with unless_disk_is_full(run.job):
                    run.close(State.FAILED, error=reason_of(outcome))
                self.failed += 1
            if has_failed or outcome is LEAVES:
                leaving.append(run)
        self.leave(leaving)

    # --- a step ---

    def step(self) -> None:
        """One optimizer step of every job.

        Raises:
            OutOfMemoryError: not even one image fits into memory.
        """
        assert self.adapters is not None and self.passes is not None
        self.passes.gradients(self.adapters, list(enumerate(self.runs)))
        self.place.sum(self.adapters.joint_gradient)
        for run in self.runs:
            run.update()
        self.adapters.refresh()
        self._steps[sum(run.settings.images_per_step for run in self.runs)] += 1

    # --- what it costs ---

    def measured(self) -> list[Measurement]:
        """What was found of the speed of a step, for the plans of later commands."""
        together = {rows: self.clock.trained_s[rows] / n for rows, n in self._steps.items() if n >= LEAST_STEPS}
        alone = {batch: seconds for (batch, _), seconds in self._alone_step_s.items()}
        peak, overhead_s = round(peak_memory_gb(), 3), round(self.startup_s + self.load_s, 3)
        return [Measurement(rows, seconds, peak, overhead_s) for rows, seconds in sorted({**alone, **together}.items())]

    def _measured_alone(self, run: JobRun) -> float | None:
        """Seconds that a step of this job takes without the others; None where there never were others."""
        shape = (run.settings.images_per_step, run.settings.accumulation)
        if run.cost.packed_with > 1 and shape not in self._alone_step_s:
            self._alone_step_s[shape] = self._time_alone(run)
        return self._alone_step_s.get(shape)

    def _time_alone(self, run: JobRun) -> float:
        """The quickest of a few steps of one job, after one to warm up; they leave nothing behind."""
        assert self.adapters is not None and self.passes is not None
        spent: list[float] = []
        for _ in range(TIMED_STEPS):
            self.place.synchronize()
            start = time.perf_counter()
            self.passes.gradients(self.adapters, [(self.runs.index(run), run)])
            self.place.synchronize()
            spent.append(time.perf_counter() - start)
        forget(self.adapters, [run])
        return min(spent[1:])


def tried(action: Callable[[], Any]) -> Any:
    """What an action for one job gives, or the error that is this job's own affair."""
    try:
        return action()
    except Interrupted:
        raise
    except FAULTS as error:
        return error


@contextmanager
def unless_disk_is_full(job: Job) -> Iterator[None]:
    """Write what became of a job, where that can be; else whoever has started this process sees it by the lock."""
    try:
        yield
    except OSError as error:
        log.error("%s cannot be written: %s", job.paths.manifest, error)


def reason_of(outcome: Any) -> str:
    """Why an action of `tried` failed, in words."""
    if isinstance(outcome, Exception):
        return in_words(outcome)
    return "another process of the job failed; its log says why"
