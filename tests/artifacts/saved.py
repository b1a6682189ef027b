"""Saved adapters as independent readers see them, and files that differ from what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.jobs.job import Job
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.adapters.packed import PackedAdapters
from runner.train.inputs.samples import collate
from tests.train.bench import CPU, Bench

ATTENTION_AND_CONVOLUTION = r".*(to_q|to_v|to_out\.0|ff\.net\.2|proj_in|conv1|conv_shortcut|downsamplers\.0\.conv)"
DIFFUSERS = "pytorch_lora_weights.safetensors"


def header(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


@torch.no_grad()
def output(pipeline: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 16, 16, generator=draw)
    encoded = pipeline.encode_prompt(
        ["a red circle", "a blue star"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    sizes = {"text_embeds": encoded[2], "time_ids": torch.full((2, 6), 64.0)} if len(encoded) == 4 else None
    predicted: Tensor = pipeline.unet(noisy, 500, encoded[0], added_cond_kwargs=sizes).sample
    return predicted


def apart(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


def as_trained(bench: Bench, job: Job) -> tuple[Any, Any, dict[str, dict[str, Tensor]], Any, Any]:
    """(base, conditioner, layers, batch, a context for rows) as at the end of a job's training."""
    base = bench.base(job)
    materials = bench.materials(job, base)
    settings, parts = job.experiment.lora, base.components()
    adapter = Adapter(settings, find_sites(settings, parts), seed=0, device=CPU.device, components=parts)
    saved = load_file(job.paths.lora / DIFFUSERS)
    names = adapter.state()
    adapter.load_state(
        {component: {key: saved[published_key(component, key)] for key in names[component]} for component in names}
    )
    pack = PackedAdapters(base.components(), [adapter], dtype=torch.float32)
    batch = collate(range(1), materials.held_out_samples.samples[:1])
    return base, materials.conditioner, adapter.state(), batch, lambda count: pack.using([(0, count)])


def published_key(component: str, key: str) -> str:
    legacy = "" if component == "unet" or key.startswith("text_model.") else "text_model."
    # The only name that transformers 5.23 reads for it.
    ending = ".weight" if component != "unet" and key.endswith("lora_magnitude_vector") else ""
    return f"{component}.{legacy}{key}{ending}"


def rewritten(change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Callable[[Path], None]:
    def rewrite(file: Path) -> None:
        tensors, metadata = load_file(file), header(file)
        change(tensors, metadata)
        save_file(tensors, file, metadata=metadata)

    return rewrite
