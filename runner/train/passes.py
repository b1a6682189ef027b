"""The forward and backward passes of a step: every job's slice of one batch, in as many parts as the memory asks for.

Leaves gradients in the adapters and losses in the jobs; steps no optimizer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch

from runner.errors import OutOfMemoryError
from runner.schema.shapes import Shape
from runner.train.base import Base
from runner.train.job_run import JobRun
from runner.train.loss import squared_error, weigh
from runner.train.packed import PackedAdapters
from runner.train.samples import Batch, join

log = logging.getLogger(__name__)

Slice = tuple[int, JobRun, range]
"""The place of a job among the adapters, the job, and the positions of its batch."""


class Passes:
    """Makes gradients, and remembers how many rows have fitted into the memory."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.most_rows: int | None = None
        """Rows of one forward pass, once more have not fitted."""

    def gradients(self, adapters: PackedAdapters, runs: Sequence[tuple[int, JobRun]]) -> None:
        """The gradients of one step of some jobs, each with its place among the adapters.

        A step is a pure function of its number, so after a pass that did not fit it starts over with smaller ones.

        Raises:
            OutOfMemoryError: not even one image fits.
        """
        while True:
            fault: torch.OutOfMemoryError | None = None
            try:
                self._all_parts(adapters, runs)
            except torch.OutOfMemoryError as error:
                fault = error
            if not self.base.place.any(fault is not None):
                return
            forget(adapters, [run for _, run in runs])
            self._use_less_memory(_most_rows([run for _, run in runs]), fault)

    def _all_parts(self, adapters: PackedAdapters, runs: Sequence[tuple[int, JobRun]]) -> None:
        for part in range(_parts([run for _, run in runs])):
            slices = [(index, run, run.positions(part)) for index, run in runs]
            for group in by_shape(slices):
                for chunk in in_chunks(group, self.most_rows):
                    self._backward(adapters, chunk)
            adapters.collect()

    def _backward(self, adapters: PackedAdapters, slices: Sequence[Slice]) -> None:
        """Forward and backward of some slices, stacked along the batch."""
        base = self.base
        batches = [run.materials.samples.batch(run.step, positions) for _, run, positions in slices]
        batch = join(batches).to(base.place.device)
        noisy = base.noise.add_noise(batch.latents, batch.noise, batch.timesteps)
        rows = [(index, len(positions)) for index, _, positions in slices]
        lengths = [length for _, length in rows]
        # Recomputed activations must find the same rows, so the backward pass belongs inside too.
        with adapters.using(rows, [each.sample_ids for each in batches]):
            text = _text_of(slices, batches, adapters)
            predicted = base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids)
            error_B = squared_error(predicted, batch, base.noise)
            parts = zip(slices, error_B.split(lengths), batch.timesteps.split(lengths), strict=True)
            losses = [
                run.loss_of(weigh(error, timesteps, run.settings.loss, base.noise))
                for (_, run, _), error, timesteps in parts
            ]
            torch.stack(losses).sum().backward()

    def _use_less_memory(self, rows: int, fault: Exception | None) -> None:
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


def forget(adapters: PackedAdapters, runs: Sequence[JobRun]) -> None:
    """Take back the gradients and losses of a step that is not made, or starts over."""
    adapters.gradient.zero_()
    adapters.joint_gradient.zero_()
    for run in runs:
        run.forget_step()


def _parts(runs: Sequence[JobRun]) -> int:
    return max(run.settings.accumulation for run in runs)


def _most_rows(runs: Sequence[JobRun]) -> int:
    """Rows of the largest forward pass of a step, before it is cut."""
    return max(sum(len(run.positions(part)) for run in runs) for part in range(_parts(runs)))


def by_shape(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices of one image shape each, in the order in which the shapes first come: one forward pass has one."""
    groups: dict[Shape, list[Slice]] = {}
    for each in slices:
        groups.setdefault(each[1].materials.samples.shape(each[1].step), []).append(each)
    return list(groups.values())


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
