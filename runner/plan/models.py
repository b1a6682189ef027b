"""What is known of a base model, and of adapters on it, before it is loaded.

Its own files say it where they lie on this machine, what is usual in its family otherwise. No torch.
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
    """The denoiser's config.json where the model lies here, its family's usual one otherwise."""
    folder = planning_folder(model)
    try:
        if folder is not None:
            return config_of(folder, family.denoiser)
    except (OSError, ValueError):
        return None
    return family.config


def text_parameters(model: ModelSettings) -> float:
    """Of the text encoders of a model that lies here; of its family's usual ones otherwise."""
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
    """Of each level of a VAE that lies here, the finest first; of the usual one otherwise."""
    folder = planning_folder(model)
    found = config_of(folder, "vae") if folder is not None and (folder / "vae" / CONFIG).is_file() else {}
    return list(found.get("block_out_channels", USUAL_VAE))


def trained_share(settings: Experiment) -> float:
    """Of the base's parameters, for each unit of rank; of layers that somebody named as if it were the attention."""
    shares = FAMILIES[settings.model.family].trained_shares
    return shares.get(settings.lora.targets, shares["attention"])


def adapter_size(settings: Experiment, work: Work | None) -> float:
    """Numbers of the adapter of a denoiser: as many as its layers ask for where they lie here, otherwise about."""
    if isinstance(settings.method, TextualInversion):
        return 0.0
    counted = adapter_numbers(settings.lora, settings.model)
    if counted is not None or work is None:
        return counted or 0.0
    return trained_share(settings) * settings.lora.rank * work.parameters
