"""The jobs that train together: their slices of one batch, their adapters on the frozen base, who joins and leaves.

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
"""Returned by an action after which the job leaves the pack."""

LEAST_STEPS = 10
"""With fewer steps, their total time says more about start-up than about a step."""

TIMED_STEPS = 5
"""How many steps to time a job alone; the same number in every process, since they must stay in step."""


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
        """Inputs of the jobs that left the pack empty, kept for the next ones."""
        self._alone_step_s: dict[tuple[int, int], float] = {}
        self._steps: Counter[int] = Counter()

    # --- who is in it ---

    def found(self, base: Base, conditions: Conditions) -> None:
        """Set the base that all jobs share, and the conditions that the speed of its steps depends on."""
        self.base, self.passes, self.conditions = base, Passes(base), conditions

    def join(self, runs: Sequence[JobRun]) -> None:
        """Add jobs to the pack."""
        if not runs:
            return
        assert self.base is not None
        self.runs += runs
        self._assemble(self.base)
        for run in self.runs:
            run.cost.packed_with = max(run.cost.packed_with, len(self.runs))
        # Steps run only for timing are not training: reported speeds and later plans count training time alone.
        with self.clock.charging("load", self.runs):
            for run in self.runs:
                run.alone = Alone(self.startup_s, self.load_s, self._measured_alone(run))

    def leave(self, leaving: Sequence[JobRun]) -> None:
        """Remove jobs; the others are not affected."""
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
        """In this context, the inputs of the last jobs stay in memory if one of these trains on the same images: jobs
        with the same number of steps leave together, and each pack of a sweep would have to read everything again.
        """
        wanted = {job.identity["dataset"] for job in jobs}
        # What nobody shares makes room for the new inputs.
        self._left_last = [each for each in self._left_last if each.dataset.fingerprint in wanted]
        try:
            yield
        finally:
            self._left_last = []

    def _assemble(self, base: Base) -> None:
        self.clock.charge_training()
        if self.adapters is not None:
            self.adapters.detach()
        self.adapters = None  # free it first: the next one takes as much memory
        self.adapters = (
            PackedAdapters(base.components(), [run.adapter for run in self.runs], dtype=base.dtype)
            if self.runs
            else None
        )
        if base.live_text and "placed_tokens" in vars(base):
            base.placed_tokens.vectors_in_use = self.adapters.words_in_use if self.adapters is not None else dict
        self.clock.training = {run: run.settings.images_per_step for run in self.runs}

    def rows_of(self, run: JobRun) -> Callable[[int], AbstractContextManager[None]]:
        """A context maker: in it, `count` rows of a forward pass are this job's alone, with its published weights."""

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
        """Run an action for every job; a job for which it fails leaves the pack, alone, with the reason.

        Only the main process validates and writes files, so only it can fail at that. All must learn of it, or they
        would continue with different packs and wait for each other forever.
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
        """Take one optimizer step for every job.

        Raises:
            OutOfMemoryError: not even one image fits in memory.
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
        """The measured speed of a step, for the plans of later commands."""
        together = {rows: self.clock.trained_s[rows] / n for rows, n in self._steps.items() if n >= LEAST_STEPS}
        alone = {batch: seconds for (batch, _), seconds in self._alone_step_s.items()}
        peak, overhead_s = round(peak_memory_gb(), 3), round(self.startup_s + self.load_s, 3)
        forward_s = self.clock.forward_s
        by_rows = sorted({**alone, **together}.items())
        return [Measurement(rows, seconds, peak, overhead_s, forward_s) for rows, seconds in by_rows]

    def _measured_alone(self, run: JobRun) -> float | None:
        """Seconds per step of this job without the others; None if there were never any others."""
        shape = (run.settings.images_per_step, run.settings.accumulation)
        if run.cost.packed_with > 1 and shape not in self._alone_step_s:
            self._alone_step_s[shape] = self._time_alone(run)
        return self._alone_step_s.get(shape)

    def _time_alone(self, run: JobRun) -> float:
        """The fastest of a few steps of one job, after a warm-up step; they leave no trace."""
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
    """The result of an action for one job, or the error if it concerns this job alone."""
    try:
        return action()
    except Interrupted:
        raise
    except FAULTS as error:
        return error


@contextmanager
def unless_disk_is_full(job: Job) -> Iterator[None]:
    """Record what became of a job if that is possible; if not, the process that started this one tells by the lock."""
    try:
        yield
    except OSError as error:
        log.error("%s cannot be written: %s", job.paths.manifest, error)


def reason_of(outcome: Any) -> str:
    """Why an action run by `tried` failed, in words."""
    if isinstance(outcome, Exception):
        return in_words(outcome)
    return "another process of the job failed; its log says why"
