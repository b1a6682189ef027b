"""What fits which model family: settings that one family knows and another does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from runner.schema.knob import Settings, default_of

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
    """What a sampler is told, of which not every family knows all."""

    @property
    def negative_prompt(self) -> str | None:
        """What not to draw."""

    @property
    def guidance_rescale(self) -> float:
        """How much of the contrast that guidance adds is taken back."""


TRANSFORMERS = ("sd3", "flux")
"""Families whose denoiser is a transformer over patches of latents, trained by flow matching."""
PATCH_PX = 16
"""Side of the image squares that are one token of these transformers."""
NOISE_TABLE_ONLY = ("snr_gamma", "debiased", "noise_offset", "multires_levels", "timestep_bias")
"""Settings of `loss` that mend or weigh a table of noise levels, which flow matching does not have."""
DISTILLED_SAMPLERS, DISTILLED_STEPS = ("lcm", "tcd"), 50
"""Samplers that take some of the steps their network was distilled over (arXiv 2310.04378, 2402.19159), and how many
those are."""


def refuse_what_does_not_fit(experiment: Experiment) -> None:
    """Check an experiment against the family of its model.

    Raises:
        ValueError: settings have no effect with the family, or cannot be; a line each.
    """
    family = experiment.model.family
    faults = _not_for_transformers(experiment) if family in TRANSFORMERS else _not_for_unets(experiment)
    faults += drawing_faults(experiment, experiment.validation, where="validation.")
    if faults:
        raise ValueError("\n".join(faults))


def drawing_faults(settings: Draws, drawing: DrawingSettings, *, where: str = "") -> list[str]:
    """What the samplers of the model's family do not know, a line each.

    Args:
        where: what stands before the keys of `drawing` in the configuration.
    """
    sampler, faults = settings.scheduler.name, []
    if sampler in DISTILLED_SAMPLERS and drawing.inference_steps > DISTILLED_STEPS:
        faults.append(
            f"{where}inference_steps = {drawing.inference_steps}: scheduler={sampler} picks its steps out of "
            f"{DISTILLED_STEPS}; take fewer, such as 4"
        )
    told = (settings.model.family, settings.resolution, sampler, drawing)
    return faults + sampling_faults(*told, where=where, sampler_key="scheduler.name")


def sampling_faults(
    family: str, resolution: int, sampler: str, drawing: Drawn, *, where: str = "", sampler_key: str = "sampler"
) -> list[str]:
    """What the sampler of a family does not know, a line each.

    Args:
        resolution: side of the images in pixels.
        where: what stands before the keys of `drawing`.
        sampler_key: what the sampler is called where it was chosen.
    """
    faults = []
    if family == "flux" and drawing.negative_prompt is not None:
        faults.append(
            f"{where}negative_prompt = {drawing.negative_prompt!r}: has no effect with model.family=flux, which is "
            "told the guidance scale instead of comparing two predictions; remove it"
        )
    if family not in TRANSFORMERS:
        return faults
    if resolution % PATCH_PX:
        faults.append(
            f"resolution = {resolution}: should be a multiple of {PATCH_PX} with model.family={family}, "
            f"which cuts images into squares of {PATCH_PX} px"
        )
    if sampler != "model":
        faults.append(
            f"{sampler_key} = {sampler!r}: belongs to models with a table of noise levels; set "
            f"{sampler_key.partition('.')[0]}=model, the flow-matching sampler of model.family={family}"
        )
    if drawing.guidance_rescale:
        faults.append(
            f"{where}guidance_rescale = {drawing.guidance_rescale}: is not known to the sampler of "
            f"model.family={family}; remove it"
        )
    return faults


def _not_for_unets(experiment: Experiment) -> list[str]:
    return [
        f"flow.{key} = {value!r}: has no effect with model.family={experiment.model.family}, which has a table of "
        f"noise levels; it is for {' and '.join(TRANSFORMERS)}. Remove it"
        for key, value in _chosen(experiment.flow).items()
    ]


def _not_for_transformers(experiment: Experiment) -> list[str]:
    family, faults = experiment.model.family, []
    if experiment.dataset.buckets and experiment.dataset.bucket_step % PATCH_PX:
        faults.append(
            f"dataset.bucket_step = {experiment.dataset.bucket_step}: should be a multiple of {PATCH_PX} with "
            f"model.family={family}, which cuts images into squares of {PATCH_PX} px"
        )
    if experiment.model.prediction_type is not None:
        faults.append(
            f"model.prediction_type = {experiment.model.prediction_type!r}: has no effect with model.family={family}, "
            "which always predicts the velocity of flow matching; remove it"
        )
    if experiment.lora.targets == "linear_conv":
        faults.append(
            f"lora.targets = 'linear_conv': the blocks of model.family={family} have no convolutions; choose "
            "lora.targets=linear"
        )
    faults += [
        f"loss.{key} = {value!r}: is for models with a table of noise levels, but model.family={family} is trained by "
        "flow matching; remove it (flow.timesteps says which noise levels count)"
        for key, value in _chosen(experiment.loss).items()
        if key in NOISE_TABLE_ONLY
    ]
    if experiment.loss.name == "huber" and experiment.loss.huber_schedule == "snr":
        faults.append(
            f"loss.huber_schedule = 'snr': is for models with a table of noise levels, but model.family={family} is "
            "trained by flow matching; set loss.huber_schedule=exponential or constant"
        )
    if experiment.model.zero_terminal_snr is not None:
        faults.append(
            f"model.zero_terminal_snr = {experiment.model.zero_terminal_snr}: has no effect with "
            f"model.family={family}, whose last timestep always is noise alone; remove it"
        )
    return faults


def _chosen(settings: Settings) -> dict[str, object]:
    """What is not at its default."""
    values = {key: getattr(settings, key) for key in type(settings).model_fields}
    return {key: value for key, value in values.items() if value != default_of(settings, key)}
