"""What is known about a base model, and adapters on it, before it is loaded.

Read from its own files if they are on this machine, otherwise what is usual in its family. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.families.arithmetic import Work, count_text_encoder
from runner.families.files import planning_folder
from runner.families.known import FAMILIES, Known
from runner.families.layout import CONFIG, config_of
from runner.families.targeted import adapter_numbers
from runner.schema import Experiment, ModelSettings
from runner.schema.method import TextualInversion

USUAL_VAE = (128, 256, 512, 512)


def denoiser_config(model: ModelSettings, family: Known) -> Mapping[str, Any] | None:
    """The denoiser's config.json if the model is here, otherwise its family's usual one."""
    folder = planning_folder(model)
    try:
        if folder is not None:
            return config_of(folder, family.denoiser)
    except (OSError, ValueError):
        return None
    return family.config


def text_parameters(model: ModelSettings) -> float:
    """Parameters of the text encoders if the model is here, otherwise of its family's usual ones."""
    folder = planning_folder(model)
    try:
        encoders = [] if folder is None else [*folder.glob("text_encoder*/")]
        found = sum(count_text_encoder(config_of(encoder)) for encoder in encoders)
    except (OSError, ValueError, KeyError, TypeError):
        found = 0.0
    return found or FAMILIES[model.family].text_parameters


def latent_side(model: ModelSettings, resolution: int) -> int:
    """Side of the latents of square images."""
    return int(resolution // 2 ** (len(vae_channels(model)) - 1))


def vae_channels(model: ModelSettings) -> list[int]:
    """Channels of each level of the VAE, the finest first, if it is here; otherwise of the usual one."""
    folder = planning_folder(model)
    found = config_of(folder, "vae") if folder is not None and (folder / "vae" / CONFIG).is_file() else {}
    return list(found.get("block_out_channels", USUAL_VAE))


def trained_share(settings: Experiment) -> float:
    """Trained share of the base's parameters per unit of rank; custom target layers count like the attention."""
    shares = FAMILIES[settings.model.family].trained_shares
    return shares.get(settings.lora.targets, shares["attention"])


def adapter_size(settings: Experiment, work: Work | None) -> float:
    """Count of numbers in a denoiser's adapter: exact if the model's layers are known here, otherwise approximate."""
    if isinstance(settings.method, TextualInversion):
        return 0.0
    counted = adapter_numbers(settings.lora, settings.model)
    if counted is not None or work is None:
        return counted or 0.0
    return trained_share(settings) * settings.lora.rank * work.parameters
