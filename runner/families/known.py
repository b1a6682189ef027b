"""What plans and checks know about each family, without torch: an entry here and a file of that name make a family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from runner.families import shapes, targets
from runner.families.arithmetic import Work, count_unet
from runner.families.dit import FLUX_TEXT_TOKENS, SD3_TEXT_TOKENS, count_flux, count_sd3
from runner.families.targets import Presets


class Count(Protocol):
    """Counts the cost of one image."""

    def __call__(self, config: Mapping[str, Any], *, latent_side: int) -> Work:
        """From the denoiser's config.json and the side of the latents."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A family."""

    pipeline: str
    """The class in `model_index.json`, which identifies a model's family."""
    denoiser: str
    """Folder of the denoiser in diffusers layout."""
    config: Mapping[str, Any]
    """The denoiser's usual configuration, for predictions before a model is on this machine."""
    count: Count
    presets: Presets
    """What the names in `lora.targets` stand for."""
    trained_shares: Mapping[str, float]
    """For each target name, an adapter's size per unit of rank, as a share of the base's parameters."""
    latent_channels: int
    usual_guidance: float
    """Default guidance of its images: that of its pipeline in diffusers."""
    caption_numbers: int
    """Numbers in an encoded caption."""
    text_parameters: float
    """Parameters of all its usual text encoders together."""
    original_layout: bool = False
    """Whether its authors' own layout is in use beside diffusers': whole models in one file, and adapters with alpha
    tensors that other programs read."""
    least_step_s: float = 0.0
    """Least time of a batch-1 step on a GPU, where launching kernels is the limit: published times are much the same on
    an L40S and an H100; SDXL took 0.26 to 0.41 s on an H200 (benchmarks/results/full_size_unet.md). Transformers have
    few, large kernels."""
    told_guidance: bool = False
    """Whether the guidance scale is an input of the model, which then needs one pass per sampling step, not two."""

    def guidance(self, asked: float | None) -> float:
        """The guidance of its images; None means the usual one."""
        return self.usual_guidance if asked is None else asked

    def rows(self, guidance: float) -> int:
        """Rows of one image in a pass through the denoiser: two with classifier-free guidance."""
        return 2 if guidance > 1 and not self.told_guidance else 1


FAMILIES = {
    "sd": Known(
        "StableDiffusionPipeline",
        "unet",
        shapes.SD15_UNET,
        count_unet,
        targets.UNET,
        trained_shares={"attention": 2.3e-4, "attention_ff": 4.4e-4, "linear": 4.9e-4, "linear_conv": 1.2e-3},
        latent_channels=4,
        usual_guidance=7.5,
        caption_numbers=77 * 768,
        text_parameters=0.12e9,
        original_layout=True,
        least_step_s=0.15,
    ),
    "sdxl": Known(
        "StableDiffusionXLPipeline",
        "unet",
        shapes.SDXL_UNET,
        count_unet,
        targets.UNET,
        trained_shares={"attention": 5.7e-4, "attention_ff": 1.02e-3, "linear": 1.04e-3, "linear_conv": 1.2e-3},
        latent_channels=4,
        usual_guidance=5.0,
        caption_numbers=77 * 2048 + 1280,
        text_parameters=0.82e9,
        original_layout=True,
        least_step_s=0.35,
    ),
    "sd3": Known(
        "StableDiffusion3Pipeline",
        "transformer",
        shapes.SD3_TRANSFORMER,
        count_sd3,
        targets.SD3,
        trained_shares={"attention": 2.9e-4, "attention_ff": 6.5e-4, "linear": 9.0e-4},
        latent_channels=16,
        usual_guidance=7.0,
        caption_numbers=SD3_TEXT_TOKENS * 4096 + 2048,
        text_parameters=5.58e9,
    ),
    "flux": Known(
        "FluxPipeline",
        "transformer",
        shapes.FLUX_TRANSFORMER,
        count_flux,
        targets.FLUX,
        trained_shares={"attention": 1.4e-4, "attention_ff": 3.4e-4, "linear": 4.5e-4},
        latent_channels=16,
        usual_guidance=3.5,
        caption_numbers=FLUX_TEXT_TOKENS * 4096 + 768,
        text_parameters=4.89e9,
        told_guidance=True,
    ),
}
