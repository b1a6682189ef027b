"""Loads one frozen component from a model's folder; the VAE and the samplers are the same in every family."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor, nn

from runner.errors import ModelError, SettingsError
from runner.families.prediction import STARTS_WITHOUT_IMAGE, Prediction

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}

MORE_THAN_WEIGHTS = "has a pickled file that holds more than weights, and none of it is run; give .safetensors files"


def load_component(kind: Any, folder: Path, name: str, *, variant: str | None, dtype: torch.dtype) -> nn.Module:
    """One component, frozen, in evaluation mode, on the CPU.

    Raises:
        ModelError: the folder holds no such component, one of another kind, or an incomplete one.
    """
    where = folder / name if name else folder
    try:
        module, report = kind.from_pretrained(where, variant=variant, torch_dtype=dtype, output_loading_info=True)
    except pickle.UnpicklingError as error:
        # torch's own message explains how to run the file anyway.
        raise ModelError(f"model.path: {where} {MORE_THAN_WEIGHTS}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.path: {where} cannot be read as {kind.__name__} ({reason}); check model.path, model.family "
            "and model.variant"
        ) from error
    # transformers fills in missing weights with random numbers, different on each run; diffusers leaves them out.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model.path: {where} lacks {len(missing)} of the weights of a {kind.__name__}, such as {missing[0]}; "
            "give a whole one"
        )
    loaded: nn.Module = module
    return loaded.requires_grad_(False).eval()


def load_vae(folder: Path, vae_folder: Path | None, variant: str | None, device: torch.device) -> AutoencoderKL:
    """The model's VAE or its replacement, in fp32: SDXL's own overflows in fp16."""
    if vae_folder is None:
        vae = load_component(AutoencoderKL, folder, "vae", variant=variant, dtype=torch.float32)
    else:
        name = "vae" if (vae_folder / "vae").is_dir() else ""
        vae = load_component(AutoencoderKL, vae_folder, name, variant=None, dtype=torch.float32)
    return vae.to(device)


def scale_latents(vae_config: Any, raw_BCHW: Tensor) -> Tensor:
    """From the VAE's latents to those the denoiser works on."""
    shift, scale = _shift_and_scale(vae_config, raw_BCHW)
    scaled: Tensor = (raw_BCHW - shift) * scale
    return scaled


def decode_latents(vae: AutoencoderKL, latents_BCHW: Tensor) -> Tensor:
    """From the denoiser's latents to images in [0, 1], `[B, 3, H, W]`."""
    shift, scale = _shift_and_scale(vae.config, latents_BCHW)
    raw = latents_BCHW.float() / scale + shift
    # One at a time: at 1024 px the decoder needs several GiB per image.
    decoded = torch.cat([vae.decode(each, return_dict=False)[0] for each in raw.split(1)])
    return (decoded / 2 + 0.5).clamp(0, 1)


def _shift_and_scale(vae_config: Any, like: Tensor) -> tuple[Any, Any]:
    """How latents are normalised: by one factor, or per channel if the VAE has statistics (Playground 2.5)."""
    scale = float(vae_config["scaling_factor"])
    mean, deviation = vae_config.get("latents_mean"), vae_config.get("latents_std")
    if mean is None or deviation is None:
        return float(vae_config.get("shift_factor") or 0), scale
    by_channel = torch.tensor([mean, deviation], device=like.device).view(2, -1, 1, 1)
    return by_channel[0], scale / by_channel[1]


def noise_options(eta: float | None, steps: int, sampler: str, scheduler: Any) -> dict[str, float]:
    """The pipeline's argument for the share of fresh noise in each step, whose default is 0 for all samplers.

    Args:
        eta: the setting; None means the sampler's default.
        steps: number of sampling steps.

    Raises:
        SettingsError: the sampler does not support `eta`, or does not have this many steps.
    """
    most = scheduler.config.get("original_inference_steps")
    if most is not None and steps > most:
        raise SettingsError(
            f"inference_steps = {steps}: the sampler {sampler!r} picks its steps out of {most}; take fewer, such as 4"
        )
    known = inspect.signature(scheduler.step).parameters.get("eta")
    if known is None:
        if eta is not None:
            raise SettingsError(
                f"eta = {eta}: has no effect with the sampler {sampler!r}; take ddim or tcd, or leave it"
            )
        return {}
    return {"eta": float(known.default if eta is None else eta)}


def load_sampler(folder: Path, name: str, prediction: Prediction) -> Any:
    """The sampler named in the configuration, with the model's noise schedule."""
    own = diffusers.DiffusionPipeline.load_config(folder)["scheduler"][1]
    class_name, options = (own, {}) if name == "model" else SAMPLERS[name]
    zero = prediction.zero_terminal_snr
    if class_name.removesuffix("Scheduler") in STARTS_WITHOUT_IMAGE:
        options = options | {"rescale_betas_zero_snr": zero}
    if zero:  # a sampler that skips the last timestep would expect signal where there is none
        options = options | {"timestep_spacing": "trailing"}
    kind = getattr(diffusers, class_name)
    if "clip_sample" in inspect.signature(kind).parameters:
        # On by default in diffusers, for images in pixels: latents reach far beyond the range it would clip them to.
        options = options | {"clip_sample": False}
    return kind.from_pretrained(folder, subfolder="scheduler", prediction_type=prediction.kind, **options)
