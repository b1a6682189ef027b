"""The jobs that train together: their slices of one batch, their adapters on the frozen base, who comes and goes.

Does not decide when anything happens; `runner.train.loop` does.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from runner.errors import OutOfMemoryError, RunnerError
from runner.job import State
from runner.measured import Conditions, Measurement
from runner.train.base import Base
from runner.train.clock import Clock
from runner.train.cost import Alone, peak_memory_gb
from runner.train.job_run import JobRun
from runner.train.loss import squared_error, weigh
from runner.train.packed import PackedAdapters
from runner.train.place import Place
from runner.train.samples import Batch, join

log = logging.getLogger(__name__)

LEAVES = object()
"""Returned by an action after which a job is no longer in the pack."""

LEAST_STEPS = 10
"""Of fewer steps the time says more of their beginning than of them."""

TIMED_STEPS, TIMED_S = 10, 1.0
"""A job alone is timed over so many steps, or fewer if they take longer than this."""

Slice = tuple[int, JobRun, range]
"""The place of a job in the pack, the job, and the positions of its batch."""


class Pack:
    """The jobs that are training, and their adapters on the frozen base."""

    def __init__(
        self, place: Place, *, startup_s: float = 0.0, on_leave: Callable[[JobRun], None] | None = None
    ) -> None:
        self.place, self.clock, self.startup_s, self._on_leave = place, Clock(), startup_s, on_leave
        self.base: Base | None = None
        self.conditions: Conditions | None = None
        """What the speed of its steps depends on, once there is a base."""
        self.runs: list[JobRun] = []
        self.failed = 0
        self.adapters: PackedAdapters | None = None
        self.most_rows: int | None = None
        """Rows of one forward pass, once more have not fitted into memory."""
        self.load_s = 0.0
        self._alone_step_s: dict[tuple[int, int], float] = {}
        self._steps: Counter[int] = Counter()

    # --- who is in it ---

    def join(self, runs: Sequence[JobRun]) -> None:
        """Take jobs in."""
        if not runs:
            return
        assert self.base is not None
        self.runs += runs
        self._assemble(self.base)
        for run in self.runs:
            run.cost.packed_with = max(run.cost.packed_with, len(self.runs))
        for run in self.runs:
            run.alone = Alone(self.startup_s, self.load_s, self._measured_alone(run))

    def leave(self, leaving: Sequence[JobRun]) -> None:
        """Let jobs go; the others do not notice."""
        if not leaving:
            return
        assert self.base is not None
        self.runs = [run for run in self.runs if run not in leaving]
        self._assemble(self.base)
        if self._on_leave is not None:
            for run in leaving:
                self._on_leave(run)

    def _assemble(self, base: Base) -> None:
        self.clock.charge_training()
        if self.adapters is not None:
            self.adapters.detach()
        self.adapters = (
            PackedAdapters(base.components(), [run.adapter for run in self.runs], dtype=base.dtype)
            if self.runs
            else None
        )
        self.clock.training = {run: run.settings.batch_size for run in self.runs}

    def rows_of(self, run: JobRun) -> Callable[[int], AbstractContextManager[None]]:
        """A context maker: within it, so many rows of a forward pass belong to this job alone."""

        def use_rows(count: int) -> AbstractContextManager[None]:
            assert self.adapters is not None
            return self.adapters.using([(self.runs.index(run), count)])

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
        assert self.adapters is not None
        self._gradients(self.runs)
        self.place.sum(self.adapters.joint_gradient)
        for run in self.runs:
            run.update()
        self.adapters.refresh()
        self._steps[sum(run.settings.batch_size for run in self.runs)] += 1

    def measured(self) -> list[Measurement]:
        """What was found of the speed of a step, for the plans of later commands."""
        together = {rows: self.clock.trained_s[rows] / n for rows, n in self._steps.items() if n >= LEAST_STEPS}
        alone = {batch: seconds for (batch, _), seconds in self._alone_step_s.items()}
        peak, overhead_s = round(peak_memory_gb(), 3), round(self.startup_s + self.load_s, 3)
        return [Measurement(rows, seconds, peak, overhead_s) for rows, seconds in sorted({**alone, **together}.items())]

    def _measured_alone(self, run: JobRun) -> float | None:
        """Seconds that a step of this job takes without the others; None where there never were others."""
        shape = (run.settings.batch_size, run.settings.accumulation)
        if run.cost.packed_with > 1 and shape not in self._alone_step_s:
            self._alone_step_s[shape] = self._time_alone(run)
        return self._alone_step_s.get(shape)

    def _time_alone(self, run: JobRun) -> float:
        """The quickest of a few steps of one job, after one to warm up; they leave nothing behind."""
        spent: list[float] = []
        while len(spent) < 3 or (len(spent) < TIMED_STEPS and sum(spent) < TIMED_S):
            self.place.synchronize()
            start = time.perf_counter()
            self._gradients([run])
            self.place.synchronize()
            spent.append(time.perf_counter() - start)
        self._forget_gradients()
        return min(spent[1:])

    def _gradients(self, runs: Sequence[JobRun]) -> None:
        """The gradients of one step of some jobs, in as many passes as the memory asks for.

        A step is a pure function of its number, so after a pass that did not fit it starts over with smaller ones.
        """
        while True:
            fault: torch.OutOfMemoryError | None = None
            try:
                self._all_parts(runs)
            except torch.OutOfMemoryError as error:
                fault = error
            if not self.place.any(fault is not None):
                return
            self._forget_gradients()
            self._use_less_memory(max(self._rows_of_each(runs)), fault)

    def _all_parts(self, runs: Sequence[JobRun]) -> None:
        assert self.adapters is not None
        for part in range(max(run.settings.accumulation for run in runs)):
            slices = [(self.runs.index(run), run, run.positions(part)) for run in runs]
            for chunk in in_chunks(slices, self.most_rows):
                self._backward(chunk)
            self.adapters.collect()

    def _rows_of_each(self, runs: Sequence[JobRun]) -> list[int]:
        """Rows of the forward passes of a step, before they are cut."""
        parts = range(max(run.settings.accumulation for run in runs))
        return [sum(len(run.positions(part)) for run in runs) for part in parts]

    def _forget_gradients(self) -> None:
        assert self.adapters is not None
        self.adapters.gradient.zero_()
        self.adapters.joint_gradient.zero_()
        for run in self.runs:
            run.forget_step()

    def _use_less_memory(self, rows: int, fault: Exception | None) -> None:
        assert self.base is not None
        self.base.collect()
        rows = min(rows, self.most_rows or rows)
        if rows > 1:
            self.most_rows = max(1, rows // 2)
            log.warning("out of memory with %d images at a time: going on with %d", rows, self.most_rows)
        elif self.base.checkpoint_gradients():
            log.warning("out of memory with one image at a time: activations are computed twice from here on")
        else:
            raise OutOfMemoryError(
                "out of memory with a single image at a time; lower resolution or lora.rank, or take a larger GPU"
            ) from fault

    def _backward(self, slices: Sequence[Slice]) -> None:
        """Forward and backward of some slices, stacked along the batch."""
        assert self.adapters is not None and self.base is not None
        base, device = self.base, self.place.device
        batches = [run.materials.samples.batch(run.step, positions) for _, run, positions in slices]
        batch = join(batches).to(device)
        noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
        rows = [(index, len(positions)) for index, _, positions in slices]
        # Recomputed activations must find the same rows, so the backward pass belongs inside too.
        with self.adapters.using(rows, [each.sample_ids for each in batches]):
            text = _text_of(slices, batches, self.adapters)
            predicted = base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids)
            error_B = squared_error(predicted, batch, base.noise)
            parts = zip(
                slices,
                error_B.split([length for _, length in rows]),
                batch.timesteps.split([length for _, length in rows]),
                strict=True,
            )
            losses = [
                run.loss_of(weigh(error, timesteps, run.settings.loss, base.noise))
                for (_, run, _), error, timesteps in parts
            ]
            torch.stack(losses).sum().backward()


def in_chunks(slices: Sequence[Slice], most_rows: int | None) -> Iterator[list[Slice]]:
    """The slices that have rows, in groups of at most so many rows; a slice is cut where it must be."""
    chunk: list[Slice] = []
    room = most_rows or sum(len(positions) for _, _, positions in slices)
    free = room
    for index, run, positions in slices:
        rest = positions
        while len(rest):
            if not free:
                yield chunk
                chunk, free = [], room
            chunk.append((index, run, rest[:free]))
            rest, free = rest[free:], free - len(rest[:free])
    if chunk:
        yield chunk


def _text_of(slices: Sequence[Slice], batches: Sequence[Batch], adapters: PackedAdapters) -> dict[str, torch.Tensor]:
    """The captions' embeddings, each job's from its own conditioner, stacked in the order of the batch."""
    if len(slices) == 1:
        return slices[0][1].materials.conditioner.text(batches[0].captions)
    texts = []
    for (index, run, positions), batch in zip(slices, batches, strict=True):
        with adapters.using([(index, len(positions))], [batch.sample_ids]):
            texts.append(run.materials.conditioner.text(batch.captions))
    return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}


def tried(action: Callable[[], Any]) -> Any:
    """What an action for one job gives, or the error that is this job's own affair."""
    try:
        return action()
    except (RunnerError, OSError, ValueError, RuntimeError) as error:
        return error


def reason_of(outcome: Any) -> str:
    """Why an action of `tried` failed, in words."""
    if isinstance(outcome, RunnerError):
        return str(outcome)
    if isinstance(outcome, Exception):
        return f"{type(outcome).__name__}: {outcome}"
    return "another process of the job failed; its log says why"
