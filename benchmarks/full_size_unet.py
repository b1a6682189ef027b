"""Training speed of a pack of K jobs on the full-size SDXL UNet, on one NVIDIA GPU.

    python benchmarks/full_size_unet.py
    python benchmarks/full_size_unet.py --packs 1 4 --batches 1 2 --resolutions 512 --checkpointing off
    python benchmarks/full_size_unet.py --tiny         # a few seconds on a CPU: that it runs, nothing about speed

Random weights and synthetic latents and captions: no download, no VAE, no text encoder. What is timed is the project's
own step (`runner.train.pack.Pack.step`): drawing the batch, forward, backward, clipping, every job's optimizer, new
compute copies. Times are CUDA events around each step; medians after a warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from runner.data import Item
from runner.data.address import FileAddress
from runner.data.views import crops_of
from runner.errors import OutOfMemoryError
from runner.families import find_family
from runner.families.arithmetic import count_unet
from runner.families.noise import NoiseSchedule
from runner.families.prediction import Prediction
from runner.job import make_job
from runner.measured import Conditions
from runner.schema import Experiment
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.base import DTYPES
from runner.train.clock import Clock
from runner.train.inputs.samples import EMPTY, Samples
from runner.train.inputs.text import EncodedText
from runner.train.job_run import JobRun
from runner.train.memory import is_full
from runner.train.pack import Pack
from runner.train.place import Place

FULL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
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
    """What a pack uses of `runner.train.base.Base`, around a UNet that was never trained."""

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
        """Give back the memory of what was let go of."""
        gc.collect()  # an optimizer and its schedule know each other
        torch.cuda.empty_cache()

    def checkpoint_gradients(self) -> bool:
        """A pack that does not fit is a result here, not something to be helped."""
        return False

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass or keep them."""
        self.checkpointing = enabled
        if enabled:
            self.denoiser.enable_gradient_checkpointing()
        else:
            self.denoiser.disable_gradient_checkpointing()


def synthetic_items(side_px: int) -> list[Item]:
    """Images that nobody opens."""
    address = FileAddress(Path("synthetic"))
    return [Item(caption, caption, caption, side_px, side_px, address=address) for caption in CAPTIONS]


def synthetic_run(
    seed: int, batch_size: int, base: SyntheticBase, clock: Clock, *, rank: int, precision: str
) -> JobRun:
    """One job of a pack, on latents and captions that were never encoded."""
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


class Stopwatch:
    """Milliseconds of actions on a device: CUDA events where there are any, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def milliseconds(self, action: Callable[[], object], *, warmup: int, count: int) -> list[float]:
        """Of each of `count` calls, after `warmup` others; the host does not wait in between."""
        for _ in range(warmup):
            action()
        if not self.on_gpu:
            return [self._by_host(action) for _ in range(count)]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            action()
            event.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in itertools.pairwise(events)]

    def _by_host(self, action: Callable[[], object]) -> float:
        start = time.perf_counter()
        action()
        return (time.perf_counter() - start) * 1e3


def matrix_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """TFLOP/s of one large square matrix product on random numbers (zeros would draw less power and run faster)."""
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = Stopwatch(device).milliseconds(lambda: first @ second, warmup=5, count=20)
    return 2 * side**3 / statistics.median(times) / 1e9


@dataclasses.dataclass(frozen=True)
class Speed:
    """One pack of `jobs`, each with `batch` images."""

    jobs: int
    batch: int
    checkpointing: bool
    step_ms: float
    peak_gib: float
    most_rows: int | None
    """Images in a pass, where all together did not fit."""

    def row(self, base: SyntheticBase, peak: float, alone_ms: float | None, *, tiny: bool) -> str:
        """A line of the table; shares of the peak are not given for the tiny UNet."""
        images_per_s = self.jobs * self.batch / self.step_ms * 1e3
        cells = [str(base.resolution), str(self.jobs), str(self.batch), "on" if self.checkpointing else "off"]
        cells += [f"{self.step_ms:.1f}", f"{images_per_s:.2f}", f"{self.peak_gib:.1f}"]
        work = count_unet(base.config, latent_side=base.config["sample_size"])
        tflops = images_per_s * work.training_flop(checkpointing=self.checkpointing) / 1e12
        cells += ["-", "-"] if tiny else [f"{tflops:.0f}", f"{tflops / peak:.0%}"]
        cells.append("-" if alone_ms is None else f"{self.jobs * alone_ms / self.step_ms:.2f}")
        cells.append("" if self.most_rows is None else f"in passes of {self.most_rows}")
        return "| " + " | ".join(cells) + " |"


def measure(jobs: int, batch: int, checkpointing: bool, base: SyntheticBase, options: argparse.Namespace) -> Speed:
    """Assemble a pack, step it, take it apart.

    Raises:
        OutOfMemoryError: not even one image fits.
    """
    on_gpu = base.place.device.type == "cuda"
    base.collect()  # or the packs before this one would be in its figure
    base.set_checkpointing(checkpointing)
    pack = Pack(base.place)
    runs = [
        synthetic_run(seed, batch, base, pack.clock, rank=options.rank, precision=options.precision)
        for seed in range(jobs)
    ]
    pack.found(base, Conditions.of(runs[0].job, device="", processes=1))  # type: ignore[arg-type]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        pack.join(runs)
        times = Stopwatch(base.place.device).milliseconds(pack.step, warmup=options.warmup, count=options.steps)
    finally:
        if pack.adapters is not None:
            pack.adapters.detach()
    assert pack.passes is not None
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return Speed(jobs, batch, checkpointing, statistics.median(times), peak_gib, pack.passes.most_rows)


HEAD = (
    "| px | jobs | batch of each | checkpointing | ms per step | images/s | peak memory, GiB | TFLOP/s | of the peak "
    "| times faster than one after the other | |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def all_packs(base: SyntheticBase, options: argparse.Namespace, peak: float) -> None:
    """Print the rows of one resolution, each as soon as it is known."""
    modes = {"off": [False], "on": [True], "both": [False, True]}[options.checkpointing]
    alone: dict[int, float] = {}
    for checkpointing, batch, jobs in itertools.product(modes, options.batches, options.packs):
        try:
            found = measure(jobs, batch, checkpointing, base, options)
            if jobs == 1:
                alone[batch] = found.step_ms
            print(found.row(base, peak, alone.get(batch), tiny=options.tiny), flush=True)
        except (OutOfMemoryError, RuntimeError) as error:
            # Weights, gradients and moments may be too much too, before or after a pass that fits.
            if not isinstance(error, OutOfMemoryError) and not is_full(error):
                raise
            cells = [str(base.resolution), str(jobs), str(batch), "on" if checkpointing else "off", "out of memory"]
            print("| " + " | ".join([*cells, *["-"] * 6]) + " |", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a UNet of the same wiring that a CPU can train")
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="jobs trained together")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="images per job and step")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[1024, 512], help="side of the images, px")
    parser.add_argument("--checkpointing", choices=("off", "on", "both"), default="both")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure the peak and every pack."""
    options = parse()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no NVIDIA GPU: the full-size UNet is measured on one only; --tiny runs on a CPU")
    place = Place.here("auto")
    dtype = DTYPES[options.precision]
    side = 256 if options.tiny else 8192
    peak = matrix_peak(place.device, dtype, side)
    print(f"{place.describe()}, torch {torch.__version__}, {options.precision}, rank {options.rank}")
    print(f"{side} x {side} matrix product: {peak:.1f} TFLOP/s\n\n{HEAD}", flush=True)
    shapes = [TINY] if options.tiny else [FULL | {"sample_size": px // 8} for px in options.resolutions]
    for shape in shapes:
        all_packs(SyntheticBase(shape, place, dtype), options, peak)


if __name__ == "__main__":
    main()
