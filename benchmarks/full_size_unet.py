"""Training speed of a pack of K jobs on the full-size SDXL UNet, on one NVIDIA GPU.

    python benchmarks/full_size_unet.py
    python benchmarks/full_size_unet.py --packs 1 4 --batches 1 2 --resolutions 512 --checkpointing off
    python benchmarks/full_size_unet.py --processes 2 4 8   # also this many processes at once, each with one job
    python benchmarks/full_size_unet.py --tiny         # a few seconds on a CPU: shows that it runs, not how fast

Random weights and synthetic latents and captions: no download, no VAE, no text encoder. It times the project's own step
(`runner.train.pack.Pack.step`): drawing the batch, forward, backward, clipping, every job's optimizer, new compute
copies. Times come from CUDA events around each step; the table shows medians after a warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from synthetic import FULL, TINY, SyntheticBase, synthetic_run

from runner.cache.measured import Conditions
from runner.errors import OutOfMemoryError
from runner.families.arithmetic import count_unet
from runner.train.base import DTYPES
from runner.train.memory import is_full
from runner.train.pack import Pack
from runner.train.place import Place


class Stopwatch:
    """Times actions on a device, in milliseconds: with CUDA events on a GPU, else with the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def milliseconds(
        self, action: Callable[[], object], *, warmup: int, count: int, meet: Callable[[], object] | None = None
    ) -> list[float]:
        """Times of `count` calls, after `warmup` others and after `meet`; the host does not wait between calls."""
        for _ in range(warmup):
            action()
        if meet is not None:
            meet()
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
    """Images per pass, if they did not all fit into one."""

    def row(self, base: SyntheticBase, peak: float, alone_ms: float | None, *, tiny: bool) -> str:
        """A line of the table; without shares of the peak for the tiny UNet."""
        images_per_s = self.jobs * self.batch / self.step_ms * 1e3
        cells = [str(base.resolution), str(self.jobs), str(self.batch), "on" if self.checkpointing else "off"]
        cells += [f"{self.step_ms:.1f}", f"{images_per_s:.2f}", f"{self.peak_gib:.1f}"]
        work = count_unet(base.config, latent_side=base.config["sample_size"])
        tflops = images_per_s * work.training_flop(checkpointing=self.checkpointing) / 1e12
        cells += ["-", "-"] if tiny else [f"{tflops:.0f}", f"{tflops / peak:.0%}"]
        cells.append("-" if alone_ms is None else f"{self.jobs * alone_ms / self.step_ms:.2f}")
        cells.append("" if self.most_rows is None else f"in passes of {self.most_rows}")
        return "| " + " | ".join(cells) + " |"


def measure(
    jobs: int,
    batch: int,
    checkpointing: bool,
    base: SyntheticBase,
    options: argparse.Namespace,
    meet: Callable[[], object] | None = None,
) -> Speed:
    """Assemble a pack, step it, take it apart.

    Args:
        meet: waits for other processes, between the warm-up and the timed steps.

    Raises:
        OutOfMemoryError: not even one image fits.
    """
    on_gpu = base.place.device.type == "cuda"
    base.collect()  # otherwise earlier packs would count towards this one's memory
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
        watch = Stopwatch(base.place.device)
        times = watch.milliseconds(pack.step, warmup=options.warmup, count=options.steps, meet=meet)
    finally:
        if pack.adapters is not None:
            pack.adapters.detach()
    assert pack.passes is not None
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return Speed(jobs, batch, checkpointing, statistics.median(times), peak_gib, pack.passes.most_rows)


def one_of_several(
    shape: dict[str, Any], batch: int, checkpointing: bool, options: argparse.Namespace, meeting: Any, found: Any
) -> None:
    """The work of each of several processes; puts its Speed into `found`, or None if the memory is full."""
    base = SyntheticBase(shape, Place.here("auto"), DTYPES[options.precision])
    try:
        found.put(measure(1, batch, checkpointing, base, options, meet=meeting.wait))
    except (OutOfMemoryError, RuntimeError):  # memory full, here or in another process, which then misses the meeting
        meeting.abort()
        found.put(None)


def at_once(
    count: int, shape: dict[str, Any], batch: int, checkpointing: bool, options: argparse.Namespace
) -> list[Speed]:
    """The speeds of `count` processes that each train one job on the same GPU; empty if they do not fit."""
    context = multiprocessing.get_context("spawn")
    meeting, found = context.Barrier(count), context.Queue()
    arguments = (shape, batch, checkpointing, options, meeting, found)
    processes = [context.Process(target=one_of_several, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    speeds = [found.get(timeout=LONGEST_S) for _ in processes]
    for process in processes:
        process.join()
    return [] if None in speeds else speeds


def all_processes(shape: dict[str, Any], options: argparse.Namespace, alone: Mapping[tuple[int, bool], float]) -> None:
    """Print a row for each number of processes, to compare with packs; this process itself does not use the GPU."""
    modes = MODES[options.checkpointing]
    for checkpointing, batch, count in itertools.product(modes, options.batches, options.processes):
        speeds = at_once(count, shape, batch, checkpointing, options)
        cells = [str(shape["sample_size"] * 8), f"{count} processes", str(batch), "on" if checkpointing else "off"]
        if speeds:
            images_per_s = sum(batch / speed.step_ms * 1e3 for speed in speeds)
            cells += [f"{statistics.median(speed.step_ms for speed in speeds):.1f}", f"{images_per_s:.2f}"]
            cells += [f"{sum(speed.peak_gib for speed in speeds):.1f}", "-", "-"]
            alone_ms = alone.get((batch, checkpointing))
            cells += ["-" if alone_ms is None else f"{images_per_s * alone_ms / batch / 1e3:.2f}", ""]
        else:
            cells += ["out of memory", *["-"] * 6]
        print("| " + " | ".join(cells) + " |", flush=True)


LONGEST_S = 300.0
"""How long the processes may take to load and train."""
MODES = {"off": [False], "on": [True], "both": [False, True]}
HEAD = (
    "| px | jobs | batch of each | checkpointing | ms per step | images/s | peak memory, GiB | TFLOP/s | of the peak "
    "| times faster than one after the other | |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def all_packs(base: SyntheticBase, options: argparse.Namespace, peak: float) -> dict[tuple[int, bool], float]:
    """Print the rows of one resolution, each as soon as it is known.

    Returns:
        (batch, whether activations are recomputed) -> milliseconds per step of one job by itself.
    """
    alone: dict[tuple[int, bool], float] = {}
    for checkpointing, batch, jobs in itertools.product(MODES[options.checkpointing], options.batches, options.packs):
        try:
            found = measure(jobs, batch, checkpointing, base, options)
            if jobs == 1:
                alone[batch, checkpointing] = found.step_ms
            print(found.row(base, peak, alone.get((batch, checkpointing)), tiny=options.tiny), flush=True)
        except (OutOfMemoryError, RuntimeError) as error:
            # Weights, gradients and moments may not fit either, before or after a pass that does.
            if not isinstance(error, OutOfMemoryError) and not is_full(error):
                raise
            cells = [str(base.resolution), str(jobs), str(batch), "on" if checkpointing else "off", "out of memory"]
            print("| " + " | ".join([*cells, *["-"] * 6]) + " |", flush=True)
    return alone


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a UNet of the same wiring that a CPU can train")
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="jobs trained together")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="images per job and step")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[1024, 512], help="side of the images, px")
    parser.add_argument("--processes", type=int, nargs="+", default=[], help="processes at once, each with one job")
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
        alone = all_packs(SyntheticBase(shape, place, dtype), options, peak)
        gc.collect()
        torch.cuda.empty_cache()
        all_processes(shape, options, alone)


if __name__ == "__main__":
    main()
