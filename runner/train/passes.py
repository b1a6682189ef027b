"""The forward and backward passes of a step: every job's slice of one batch, in as many parts as memory requires.

Leaves gradients in the adapters and losses in the jobs; does not step the optimizers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from runner.errors import OutOfMemoryError
from runner.schema.shapes import Shape
from runner.train.adapters.packed import PackedAdapters
from runner.train.base import Base
from runner.train.inputs.samples import Batch, join
from runner.train.job_run import JobRun
from runner.train.loss import residual, training_loss
from runner.train.memory import is_full
from runner.train.place import sent

log = logging.getLogger(__name__)

Slice = tuple[int, JobRun, range]
"""The index of a job among the adapters, the job, and the positions of its batch."""


class Passes:
    """Computes gradients, and remembers how many rows fit in memory."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.most_rows: int | None = None
        """The most rows per forward pass, once more did not fit."""

    def gradients(self, adapters: PackedAdapters, runs: Sequence[tuple[int, JobRun]]) -> None:
        """Compute the gradients of one step of some jobs, each given with its index among the adapters.

        A step is a pure function of its number, so after a pass that did not fit, it starts over with smaller ones.

        Raises:
            OutOfMemoryError: not even one image fits.
        """
        while True:
            fault: RuntimeError | None = None
            try:
                self._all_parts(adapters, runs)
            except RuntimeError as error:
                if not is_full(error):
                    raise
                # Its traceback refers to the tensors of the failed pass, so none of them could be freed.
                fault = error.with_traceback(None)
            if not self.base.place.any(fault is not None):
                return
            forget(adapters, [run for _, run in runs])
            # Over all processes: they must come to the same decision.
            self._use_less_memory(self.base.place.most(_most_rows([run for _, run in runs])), fault)

    def _all_parts(self, adapters: PackedAdapters, runs: Sequence[tuple[int, JobRun]]) -> None:
        for part in range(_parts([run for _, run in runs])):
            slices = [(index, run, run.positions(part)) for index, run in runs]
            for group in by_shape(slices):
                for chunk in in_chunks(group, self.most_rows):
                    self._backward(adapters, chunk)
            adapters.collect()

    def _backward(self, adapters: PackedAdapters, slices: Sequence[Slice]) -> None:
        """Forward and backward pass of some slices, stacked along the batch."""
        base = self.base
        batches = [run.materials.samples.batch(run.step, positions) for _, run, positions in slices]
        batch = join(batches).to(base.place.device)
        noisy = base.noise.add_noise(batch.latents, batch.seen_noise, batch.timesteps)
        lengths = [len(each.sample_ids) for each in batches]
        rows = [(index, length) for (index, _, _), length in zip(slices, lengths, strict=True)]
        # Recomputed activations must see the same rows, so the backward pass belongs inside too.
        with adapters.using(rows, [each.sample_ids for each in batches]):
            text = _text_of(slices, batches, adapters)
            predicted = base.family.predict(base.denoiser, noisy, batch.timesteps, text, batch.time_ids)
            off = residual(predicted, batch, base.noise, self._by_base(adapters, slices, batches, batch, noisy))
            weights = [None] * len(slices) if batch.weights is None else batch.weights.split(lengths)
            masks = [None] * len(slices) if batch.masks is None else batch.masks.split(lengths)
            parts = zip(slices, off.split(lengths), batch.timesteps.split(lengths), weights, masks, strict=True)
            losses = []
            for (_, run, _), off_k, timesteps_k, weights_k, masks_k in parts:
                loss_B = training_loss(off_k, timesteps_k, run.settings.loss, base.noise, masks_k)
                losses.append(run.loss_of(loss_B if weights_k is None else loss_B * weights_k))
            torch.stack(losses).sum().backward()

    @torch.no_grad()
    def _by_base(
        self,
        adapters: PackedAdapters,
        slices: Sequence[Slice],
        batches: Sequence[Batch],
        batch: Batch,
        noisy_BCHW: Tensor,
    ) -> Tensor | None:
        """The base's prediction, without any adapter, for the rows that must stay like it; None if there are none."""
        if not batch.from_base:
            return None
        rows = sent(torch.tensor(batch.from_base), noisy_BCHW.device)
        with adapters.using(()):
            texts = [
                run.materials.conditioner.text([own.captions[row] for row in own.from_base])
                for (_, run, _), own in zip(slices, batches, strict=True)
                if own.from_base
            ]
            text = {name: torch.cat([each[name] for each in texts]) for name in texts[0]}
            return self.base.family.predict(
                self.base.denoiser, noisy_BCHW[rows], batch.timesteps[rows], text, batch.time_ids[rows]
            )

    def _use_less_memory(self, rows: int, fault: Exception | None) -> None:
        self.base.collect()
        rows = min(rows, self.most_rows or rows)
        if rows > 1:
            self.most_rows = max(1, rows // 2)
            log.warning("out of memory with %d images at a time: continuing with %d", rows, self.most_rows)
        elif self.base.checkpoint_gradients():
            log.warning("out of memory with one image at a time: activations are computed twice from now on")
        else:
            raise OutOfMemoryError(
                "out of memory with a single image at a time; lower resolution or lora.rank, or take a larger GPU"
            ) from fault


def forget(adapters: PackedAdapters, runs: Sequence[JobRun]) -> None:
    """Discard the gradients and losses of a step that is not taken or starts over."""
    adapters.forget()
    for run in runs:
        run.forget_step()


def _parts(runs: Sequence[JobRun]) -> int:
    return max(run.settings.accumulation for run in runs)


def _most_rows(runs: Sequence[JobRun]) -> int:
    """Rows of the largest forward pass of a step, before it is split."""
    return max(sum(len(run.positions(part)) * run.rows_per_position for run in runs) for part in range(_parts(runs)))


def by_shape(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices grouped by image shape, since a forward pass takes only one; shapes in order of first appearance."""
    groups: dict[Shape, list[Slice]] = {}
    for each in slices:
        groups.setdefault(each[1].materials.samples.shape(each[1].step), []).append(each)
    return list(groups.values())


def in_chunks(slices: Sequence[Slice], most_rows: int | None) -> Iterator[list[Slice]]:
    """The slices that have rows, in groups of at most `most_rows` rows; a slice is split where necessary.

    The rows of one position of a batch stay together.
    """
    chunk: list[Slice] = []
    room = most_rows or sum(len(positions) * run.rows_per_position for _, run, positions in slices)
    free = room
    for index, run, positions in slices:
        rest = positions
        while len(rest):
            fitting = free // run.rows_per_position
            if not fitting and chunk:
                yield chunk
                chunk, free = [], room
                continue
            taken = rest[: max(1, fitting)]
            chunk.append((index, run, taken))
            rest, free = rest[len(taken) :], max(0, free - len(taken) * run.rows_per_position)
    if chunk:
        yield chunk


def _text_of(slices: Sequence[Slice], batches: Sequence[Batch], adapters: PackedAdapters) -> dict[str, torch.Tensor]:
    """The captions' embeddings, each job's from its own conditioner, stacked in the order of the batch."""
    if len(slices) == 1:
        return slices[0][1].materials.conditioner.text(batches[0].captions)
    texts = []
    for (index, run, _), batch in zip(slices, batches, strict=True):
        with adapters.using([(index, len(batch.sample_ids))], [batch.sample_ids]):
            texts.append(run.materials.conditioner.text(batch.captions))
    return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}
