"""What works with which model family: settings that one family supports and another does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from runner.system.values import as_typed

if TYPE_CHECKING:
    from runner.schema.drawing import DrawingSettings
    from runner.schema.experiment import Experiment
    from runner.schema.inputs import ModelSettings
    from runner.schema.training import SchedulerSettings


class Draws(Protocol):
    """Settings of a job that draws."""

    @property
    def model(self) -> ModelSettings:
        """The base model."""

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""

    @property
    def scheduler(self) -> SchedulerSettings:
        """The sampler."""


class Drawn(Protocol):
    """What a sampler is told; not every family supports all of it."""

    @property
    def negative_prompt(self) -> str | None:
        """What not to draw."""

    @property
    def guidance_rescale(self) -> float:
        """How much of the contrast that guidance adds is removed."""


TRANSFORMERS = ("sd3", "flux")
"""Families whose denoiser is a transformer over patches of latents, trained by flow matching."""
PATCH_PX = 16
"""Side of the image squares that are one token of these transformers."""
NOISE_TABLE_ONLY = ("snr_gamma", "debiased", "noise_offset", "multires_levels", "timestep_bias")
"""Settings of `loss` that correct or weight a table of noise levels, which flow matching does not have."""
DISTILLED_SAMPLERS, DISTILLED_STEPS = ("lcm", "tcd"), 50
"""Samplers that pick from the steps their network was distilled on (arXiv 2310.04378, 2402.19159), and how many such
steps there are."""


def family_faults(experiment: Experiment) -> Iterator[str]:
    """Settings of an experiment that have no effect with the family of its model, or do not work with it."""
    family = experiment.model.family
    if family in TRANSFORMERS:
        yield from _not_for_transformers(experiment)
    else:
        said = f"with model.family={family}, which has a table of noise levels; it is for {' and '.join(TRANSFORMERS)}"
        yield from experiment.flow.idle(because=said, where="flow.")
    yield from drawing_faults(experiment, experiment.validation, where="validation.")


def drawing_faults(settings: Draws, drawing: DrawingSettings, *, where: str = "") -> Iterator[str]:
    """Settings that the samplers of the model's family do not support.

    Args:
        where: prefix of the keys of `drawing` in the configuration.
    """
    sampler = settings.scheduler.name
    if sampler in DISTILLED_SAMPLERS and drawing.inference_steps > DISTILLED_STEPS:
        yield (
            f"{where}inference_steps = {drawing.inference_steps}: scheduler={sampler} picks its steps out of "
            f"{DISTILLED_STEPS}; take fewer, such as 4"
        )
    told = (settings.model.family, settings.resolution, sampler, drawing)
    yield from sampling_faults(*told, where=where, sampler_key="scheduler.name")


def sampling_faults(
    family: str, resolution: int, sampler: str, drawing: Drawn, *, where: str = "", sampler_key: str = "sampler"
) -> Iterator[str]:
    """Settings that the sampler of a family does not support.

    Args:
        resolution: side of the images in pixels.
        where: prefix of the keys of `drawing`.
        sampler_key: the key that the sampler was chosen with.
    """
    if family == "flux" and drawing.negative_prompt is not None:
        yield (
            f"{where}negative_prompt = {drawing.negative_prompt!r}: has no effect with model.family=flux, which is "
            "told the guidance scale instead of comparing two predictions; remove it"
        )
    if family not in TRANSFORMERS:
        return
    if resolution % PATCH_PX:
        yield (
            f"resolution = {resolution}: should be a multiple of {PATCH_PX} with model.family={family}, "
            f"which cuts images into squares of {PATCH_PX} px"
        )
    if sampler != "model":
        yield (
            f"{sampler_key} = {sampler!r}: belongs to models with a table of noise levels; set "
            f"{sampler_key.partition('.')[0]}=model, the flow-matching sampler of model.family={family}"
        )
    if drawing.guidance_rescale:
        yield (
            f"{where}guidance_rescale = {drawing.guidance_rescale}: has no effect on the sampler of "
            f"model.family={family}; remove it"
        )


def _not_for_transformers(experiment: Experiment) -> Iterator[str]:
    family = experiment.model.family
    if experiment.dataset.buckets and experiment.dataset.bucket_step % PATCH_PX:
        yield (
            f"dataset.bucket_step = {experiment.dataset.bucket_step}: should be a multiple of {PATCH_PX} with "
            f"model.family={family}, which cuts images into squares of {PATCH_PX} px"
        )
    always = f"with model.family={family}, which always predicts the velocity of flow matching"
    yield from experiment.model.idle("prediction_type", because=always, where="model.")
    if experiment.lora.targets == "linear_conv":
        yield (
            f"lora.targets = 'linear_conv': the blocks of model.family={family} have no convolutions; choose "
            "lora.targets=linear"
        )
    yield from (
        f"loss.{key} = {as_typed(value)}: is for models with a table of noise levels, but model.family={family} is "
        "trained by flow matching; remove it (flow.timesteps says which noise levels count)"
        for key, value in experiment.loss.chosen(*NOISE_TABLE_ONLY).items()
    )
    if experiment.loss.name == "huber" and experiment.loss.huber_schedule == "snr":
        yield (
            f"loss.huber_schedule = 'snr': is for models with a table of noise levels, but model.family={family} is "
            "trained by flow matching; set loss.huber_schedule=exponential or constant"
        )
    noise = f"with model.family={family}, whose last timestep is always pure noise"
    yield from experiment.model.idle("zero_terminal_snr", because=noise, where="model.")
