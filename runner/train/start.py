"""What a job starts from if it continues an earlier training, and how much of that training is left at the end.

What is kept of the earlier training is measured on its own images: the loss without any adapter, with the adapter that
the job starts from, and with the job's own. The share that is kept is how far the loss is still below that of the base,
divided by how far it was below it at the start.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from runner.data import Item, read_dataset, split
from runner.data.captions import as_measured
from runner.errors import CheckpointError, SettingsError
from runner.jobs.adapter_file import AdapterFile
from runner.schema import Experiment
from runner.schema.method import NewTokens
from runner.schema.metrics import HELD_OUT
from runner.system.tensor_file import TEXT_MODEL
from runner.train.adapters.adapter import MAGNITUDE, Adapter
from runner.train.base import Base
from runner.train.drawing import UseRows
from runner.train.inputs.text import Conditioner
from runner.train.validation import HeldOut

log = logging.getLogger(__name__)


def start_from(earlier: AdapterFile, adapter: Adapter) -> None:
    """Give an adapter the weights of an earlier one.

    Raises:
        SettingsError: the earlier one is on other layers, or holds numbers that are not finite.
    """
    named = {(site.component, site.name) for site in adapter.sites}
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(earlier.file).items():
        component, _, name = key.partition(".")
        # Files use names that transformers no longer has (runner.artifacts.files).
        if (component, name.rpartition(".lora_")[0]) not in named:
            name = name.removeprefix(TEXT_MODEL)
        if name.endswith(f"{MAGNITUDE}.weight"):
            name = name.removesuffix(".weight")
        if not bool(torch.isfinite(tensor).all()):
            raise SettingsError(
                f"lora.init_from: {earlier.file}: {key} holds numbers that are not finite; take another"
            )
        state.setdefault(component, {})[name] = tensor
    try:
        adapter.load_state(state)
    except CheckpointError as error:
        raise SettingsError(
            f"lora.init_from: {earlier.file} is on other layers than this job's ({error}); set lora.targets and "
            "lora.blocks as in the earlier training"
        ) from error


@dataclasses.dataclass
class Kept:
    """The earlier training's images, on which the loss is measured in addition to the job's own."""

    held_out: HeldOut

    def loss(self, base: Base, conditioner: Conditioner, use_rows: UseRows) -> float:
        """The loss on them with the adapter whose rows are used."""
        return self.held_out.loss(base, conditioner, use_rows)[HELD_OUT]

    def of_base(self, base: Base, conditioner: Conditioner) -> float:
        """The loss on them without any adapter."""
        key = ("earlier", self.held_out.key)
        if key not in base.untrained:
            base.untrained[key] = self.loss(base, conditioner, lambda _rows: nullcontext())
        found: float = base.untrained[key]
        return found


def earlier_items(earlier: AdapterFile, experiment: Experiment) -> tuple[Item, ...]:
    """The images that the earlier training's loss was measured on; none if they cannot be measured as they were."""
    if earlier.job is None:
        return ()
    settings = earlier.job.experiment
    if isinstance(settings.method, NewTokens):
        log.warning(
            "what remains of %s is not measured: this job does not know the words of its captions", earlier.job.id
        )
        return ()
    try:
        dataset = read_dataset(settings.dataset, refresh=False)
    except SettingsError as error:
        log.warning("what remains of %s is not measured: %s", earlier.job.id, str(error).splitlines()[0])
        return ()
    if dataset.fingerprint != earlier.job.identity["dataset"]:
        log.warning("what remains of %s is not measured: its images have changed", earlier.job.id)
        return ()
    training, held_out = split(dataset.items, held_out=settings.validation.held_out)
    measured = (held_out or training)[: experiment.validation.max_images]
    return as_measured(measured, settings.dataset)


def kept_share(losses: Mapping[int, float], of_base: float) -> dict[str, Any]:
    """What is kept, for the manifest.

    Args:
        losses: step -> loss with the adapter; the first is the one at the start.
    """
    start, end = losses[min(losses)], losses[max(losses)]
    learned = of_base - start
    share = (of_base - end) / learned if learned > 0 else None
    return {"loss_of_base": of_base, "loss_at_start": start, "loss_at_end": end, "share": share}
