"""Jobs on an untrained SDXL UNet, with random latents and captions instead of encoded ones: no download.

The work is the project's own; what the jobs learn means nothing.
"""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from runner.data import Item
from runner.data.address import FileAddress
from runner.data.views import crops_of
from runner.families import find_family
from runner.families.noise import NoiseSchedule
from runner.families.prediction import Prediction
from runner.families.shapes import SDXL_UNET
from runner.jobs.job import make_job
from runner.schema import Experiment
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.clock import Clock
from runner.train.inputs.samples import EMPTY, Samples
from runner.train.inputs.text import EncodedText
from runner.train.job_run import JobRun
from runner.train.place import Place

FULL: dict[str, Any] = SDXL_UNET | {
    "sample_size": 128,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The UNet of SDXL 1.0."""

TINY: dict[str, Any] = FULL | {
    "sample_size": 8,
    "block_out_channels": [32, 32, 64],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1, 1],
    "attention_head_dim": [1, 1, 2],
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
"""The same wiring, for a machine without a GPU."""

TOKENS = 77
CAPTIONS = tuple(f"caption {number}" for number in range(16))
NOISE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class SyntheticBase:
    """The parts of `runner.train.base.Base` that a pack uses, around an untrained UNet."""

    def __init__(self, config: dict[str, Any], place: Place, dtype: torch.dtype) -> None:
        self.config, self.place, self.dtype = config, place, dtype
        self.family = find_family("sdxl")
        self.noise = NoiseSchedule(NOISE, Prediction("epsilon", zero_terminal_snr=False)).to(place.device)
        self.resolution = config["sample_size"] * 8
        self.checkpointing = self.live_text = False
        with torch.device(place.device):
            unet = UNet2DConditionModel.from_config(config)
        self.denoiser: Any = unet.requires_grad_(False).to(dtype).eval()

    def components(self) -> dict[str, nn.Module]:
        """The UNet carries all adapters."""
        return {"unet": self.denoiser}

    def collect(self) -> None:
        """Release the memory of objects that are no longer used."""
        gc.collect()  # an optimizer and its schedule refer to each other
        torch.cuda.empty_cache()

    def checkpoint_gradients(self) -> bool:
        """Never falls back to checkpointing: here, a pack that does not fit is a result."""
        return False

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass or keep them."""
        self.checkpointing = enabled
        if enabled:
            self.denoiser.enable_gradient_checkpointing()
        else:
            self.denoiser.disable_gradient_checkpointing()


def synthetic_items(side_px: int) -> list[Item]:
    """Items whose images are never opened."""
    address = FileAddress(Path("synthetic"))
    return [Item(caption, caption, caption, side_px, side_px, address=address) for caption in CAPTIONS]


def synthetic_run(
    seed: int, batch_size: int, base: SyntheticBase, clock: Clock, *, rank: int, precision: str
) -> JobRun:
    """One job of a pack, on random latents and captions."""
    experiment = Experiment.model_validate(
        {
            "seed": seed,
            "batch_size": batch_size,
            "resolution": base.resolution,
            "precision": precision,
            "lora": {"rank": rank},
            "logger": {"name": "none"},
        }
    )
    items = synthetic_items(base.resolution)
    side, text_width = base.config["sample_size"], base.config["cross_attention_dim"]
    pooled_width = base.config["projection_class_embeddings_input_dim"] - 6 * base.config["addition_time_embed_dim"]
    mean, std = torch.zeros(4, side, side), torch.ones(4, side, side)
    posteriors = {(item.id, crop): (mean, std) for item in items for crop in crops_of(item, experiment)}
    encoded = {
        caption: {"embeds": torch.randn(TOKENS, text_width), "pooled": torch.randn(pooled_width)}
        for caption in (*CAPTIONS, EMPTY)
    }
    scaling: dict[str, object] = {"scaling_factor": 0.13025}
    materials: Any = SimpleNamespace(
        samples=Samples(experiment, items, posteriors, vae_config=scaling, process=base.noise),
        conditioner=EncodedText(encoded, zeros_for_empty=True, device=base.place.device),
    )
    sites = find_sites(experiment.lora, base.components())
    adapter = Adapter(experiment.lora, sites, seed=seed, device=base.place.device)
    job = make_job(experiment, model="synthetic", dataset="synthetic", outputs=Path("not-written"))
    return JobRun(job, materials, adapter, base, clock)  # type: ignore[arg-type]
