"""What a DDPM-style model predicts, and if its schedule ends in pure noise; from its configuration, without torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from runner.errors import ModelError
from runner.families.files import planning_folder
from runner.families.layout import config_of, index_of
from runner.schema import Experiment, ModelSettings
from runner.schema.family import TRANSFORMERS

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""Noise, velocity (arXiv 2202.00512), and the image itself, by their names in diffusers."""
OTHER_PROCESSES = ("EDM", "FlowMatch")
"""Prefixes of samplers whose models learn something else (arXiv 2206.00364, 2209.03003): reading their configuration
for DDPM would give diffusers' own defaults."""
STARTS_WITHOUT_IMAGE = (
    "DDIM",
    "DDPM",
    "DPMSolverMultistep",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "UniPCMultistep",
    "LCM",
    "TCD",
)
"""Samplers, without the suffix `Scheduler`, that support a schedule whose last timestep is pure noise."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model was trained to predict."""

    kind: str
    zero_terminal_snr: bool
    scheduler: str = "DDPMScheduler"
    """Class of the model's own scheduler, ..."""
    has_betas: bool = True
    """... and whether its configuration gives the noise of each timestep."""

    @property
    def fault(self) -> str:
        """Why this cannot be trained; empty if it can."""
        if self.kind not in PREDICTIONS:
            return f"model.prediction_type = {self.kind!r}: should be one of {', '.join(PREDICTIONS)}"
        if self.zero_terminal_snr and self.kind == "epsilon":
            return (
                "model.prediction_type = 'epsilon': the schedule ends in pure noise (zero terminal SNR), from which no "
                "image follows if noise is predicted; set model.prediction_type=v_prediction, or "
                "model.zero_terminal_snr=false"
            )
        return ""

    @property
    def untrained(self) -> str:
        """Why the model does not learn what is trained here, even if it can draw; empty if it does."""
        if not self.scheduler.startswith(OTHER_PROCESSES) and self.has_betas:
            return ""
        return (
            f"model.path: its scheduler, {self.scheduler}, is not one of noise in steps of beta (DDPM), which "
            "model.family=sd and sdxl are trained with; take another model"
        )


def prediction_of(folder: Path, settings: ModelSettings) -> Prediction:
    """From the settings, or from the model's scheduler configuration if they say nothing."""
    config = config_of(folder, "scheduler")
    zero = settings.zero_terminal_snr
    return Prediction(
        settings.prediction_type or str(config.get("prediction_type", "epsilon")),
        bool(config.get("rescale_betas_zero_snr", False)) if zero is None else zero,
        str(config.get("_class_name", "its scheduler_config.json")),
        "beta_start" in config or bool(config.get("trained_betas")),
    )


def check_noise(folder: Path, settings: ModelSettings) -> None:
    """Check that the model in `folder`, which may only just have arrived, learns what is trained.

    Raises:
        ModelError: it does not.
    """
    if settings.family not in TRANSFORMERS and (fault := prediction_of(folder, settings).untrained):
        raise ModelError(fault)


def prediction_faults(experiment: Experiment) -> list[str]:
    """What in a job conflicts with its checked model's noise schedule, one line each; none if the model is not here."""
    found = _planned(experiment.model)
    if found is None:
        return []
    if fault := found.untrained or found.fault:
        return [fault]
    draws = experiment.validation.prompts != () or experiment.evaluation.metrics is not None
    return sampler_faults(experiment.model, experiment.scheduler.name) if draws else []


def sampler_faults(model: ModelSettings, sampler: str) -> list[str]:
    """Why a checked model cannot draw with this sampler, one line; empty if the model is not here.

    Args:
        sampler: the name in `scheduler`.
    """
    found, folder = _planned(model), planning_folder(model)
    if found is None or folder is None:
        return []
    if found.fault:
        return [found.fault]
    if sampler != "model":
        return []
    index = index_of(folder)
    fault = start_fault(str(index["scheduler"][1]), found)
    return [f"scheduler = 'model': {fault}; choose scheduler=ddim, or another that is named"] if fault else []


def start_fault(sampler: str, prediction: Prediction) -> str:
    """Why a sampler, given its class name, cannot draw with a model; empty if it can."""
    if not prediction.zero_terminal_snr or sampler.removesuffix("Scheduler") in STARTS_WITHOUT_IMAGE:
        return ""
    return f"{sampler} cannot start from noise alone (model.zero_terminal_snr)"


def _planned(model: ModelSettings) -> Prediction | None:
    """What a checked model predicts; None if it is not here or not of this kind."""
    folder = planning_folder(model)
    if folder is None or model.family in TRANSFORMERS:
        return None
    try:
        return prediction_of(folder, model)
    except (OSError, ValueError):
        return None  # loading the model reads it again and reports the error
