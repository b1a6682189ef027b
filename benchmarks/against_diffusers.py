"""Solo training speed against the diffusers project's SDXL text-to-image LoRA script, on the same work.

    python benchmarks/against_diffusers.py --diffusers-script train_text_to_image_lora_sdxl.py

You fetch the script yourself; it is run unchanged. Model, images, number of steps, batch, rank, layers, optimizer
settings and threads are the same; there are no validation images, checkpoints or trackers on either side. Each run is
its own process, one after the other, sides in turn; its caches are empty at the start.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path

from cases import CASES, LR, RANK, Case, gflop_of_one_image, images_folder, model_folder, same_adapters

from runner.work import git_commit

ROOT = Path(__file__).resolve().parents[1]
STAMPED = Path(__file__).resolve().parent / "stamped.py"
UNET_ALONE = STAMPED.with_name("unet_alone.py")
ADAPTER = "pytorch_lora_weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Timing:
    """The timing of one process."""

    steps_per_s: float
    cpu_s_per_step: float
    whole_s: float
    whole_cpu_s: float
    peak_mib: float


def diffusers_command(case: Case, options: argparse.Namespace, folder: Path) -> list[str]:
    """The command of diffusers' side."""
    settings = {
        "pretrained_model_name_or_path": model_folder(case, options.work),
        "train_data_dir": images_folder(case, options.work),
        "caption_column": "text",
        "resolution": case.resolution,
        "train_batch_size": case.batch_size,
        "max_train_steps": options.steps,
        "checkpointing_steps": options.steps + 1,
        "learning_rate": LR,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "rank": RANK,
        "seed": 0,
        "dataloader_num_workers": 0,
        "mixed_precision": "no",
        "cache_dir": folder / "datasets",
        "output_dir": folder / "lora",
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    return ["--script", str(options.diffusers_script), *words, "--center_crop"]


def runner_command(case: Case, options: argparse.Namespace, folder: Path) -> list[str]:
    """The command of this project's side."""
    settings = {
        "model.path": model_folder(case, options.work),
        "dataset.path": images_folder(case, options.work),
        "resolution": case.resolution,
        "batch_size": case.batch_size,
        "steps": options.steps,
        "checkpoint.every": 0,
        "optimizer.lr": LR,
        "lora.rank": RANK,
        "lora.targets": "attention",
        "launcher.device": "cpu",
        "logger": "none",
        # All images are trained on, as on the other side; validation is kept to the minimum.
        "validation": "loss_only",
        "validation.held_out": 0,
        "validation.max_images": 1,
        "validation.timesteps": 1,
    }
    return ["--module", "runner", *(f"{name}={value}" for name, value in settings.items())]


def unet_command(case: Case, options: argparse.Namespace, folder: Path) -> list[str]:
    """The command of what both sides have to compute in each step."""
    words = [model_folder(case, options.work), case.resolution, case.batch_size, options.steps]
    return ["--script", str(UNET_ALONE), *map(str, words)]


SIDES = {"diffusers script": diffusers_command, "runner": runner_command}
ALONE = "the UNet alone"
COMMANDS = SIDES | {ALONE: unet_command}


def measure(side: str, case: Case, options: argparse.Namespace) -> tuple[Timing, list[Path]]:
    """Run one side once, from start to end of its process; returns its timing and the adapters it wrote."""
    folder = Path(tempfile.mkdtemp(dir=options.work, prefix="run-"))
    stamps = folder / "stamps.json"
    command = [sys.executable, str(STAMPED), str(stamps), *COMMANDS[side](case, options, folder)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "RUNNER_OUTPUTS": str(folder / "outputs"),
        "RUNNER_CACHE": str(folder / "cache"),
    }
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        start, cpu_start = time.perf_counter(), _children_cpu_s()
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
        whole_s, whole_cpu_s = time.perf_counter() - start, _children_cpu_s() - cpu_start
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{(folder / 'log.txt').read_text(encoding='utf-8')[-4000:]}")
    return _timing(stamps, options, whole_s, whole_cpu_s), list(folder.rglob(f"lora/{ADAPTER}"))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _timing(stamps: Path, options: argparse.Namespace, whole_s: float, whole_cpu_s: float) -> Timing:
    found = json.loads(stamps.read_text(encoding="utf-8"))
    if len(found["wall"]) != options.steps:
        raise SystemExit(f"{len(found['wall'])} optimizer steps were seen, not {options.steps}")
    wall_s, cpu_s = (found[clock][-1] - found[clock][options.warmup - 1] for clock in ("wall", "cpu"))
    steps = options.steps - options.warmup
    return Timing(steps / wall_s, cpu_s / steps, whole_s, whole_cpu_s, found["peak_mib"])


def compare(case: Case, options: argparse.Namespace) -> list[str]:
    """All rounds of one case, as lines of a table."""
    timings: dict[str, list[Timing]] = {side: [] for side in COMMANDS}
    adapters: dict[str, list[Path]] = {}
    for number in range(options.rounds):
        for side in COMMANDS:
            timing, adapters[side] = measure(side, case, options)
            timings[side].append(timing)
            print(f"{case.name}, round {number + 1}, {side}: {timing}", file=sys.stderr, flush=True)
    same_adapters(*(adapters[side][0] for side in SIDES))
    rows = table_rows(case, *(timings[side] for side in SIDES))
    theirs, alone = ([each.steps_per_s for each in timings[side]] for side in ("diffusers script", ALONE))
    most = _spread(_ratios("steps_per_s", theirs, alone), 2)
    return [*rows, f"| {case.name} | {ALONE} | {_spread(alone, 2)}: {most} times the script | | | | |"]


def table_rows(case: Case, theirs: Sequence[Timing], ours: Sequence[Timing]) -> list[str]:
    """A row for each side, and one with the ratios in our favour, round by round."""
    names = [field.name for field in dataclasses.fields(Timing)]
    columns = {name: tuple([getattr(each, name) for each in side] for side in (theirs, ours)) for name in names}
    rows = []
    for index, side in enumerate(SIDES):
        cells = [_spread(columns[name][index], 3 if name == "cpu_s_per_step" else 2) for name in names]
        rows.append(f"| {case.name} | {side} | " + " | ".join(cells) + " |")
    ratios = [_ratios(name, *columns[name]) for name in names]
    cells = [f"**{_spread(each, 2)}**" for each in ratios]
    return [*rows, f"| {case.name} | ratio | " + " | ".join(cells) + " |"]


def _ratios(name: str, theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    pairs = zip(theirs, ours, strict=True)
    return [mine / other if name == "steps_per_s" else other / mine for other, mine in pairs]


def _spread(values: Sequence[float], digits: int) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def head(options: argparse.Namespace) -> list[str]:
    """What was measured, when, and on which machine."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    digest = hashlib.sha256(options.diffusers_script.read_bytes()).hexdigest()
    stands_in = (
        "installed" if util.find_spec("torchvision") else "missing, replaced by `benchmarks/without_torchvision`"
    )
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), {options.threads} thread(s) for each side"
    work = f"{options.steps} steps, the first {options.warmup} not counted in steps/s; rank {RANK}, attention layers"
    return [
        "# Against the diffusers script: SDXL text-to-image LoRA, fp32, CPU",
        "",
        f"- {datetime.now(UTC):%Y-%m-%d}; {machine}; {versions}",
        f"- runner: commit `{(git_commit() or 'unknown')[:10]}`",
        f"- script: `{options.diffusers_script.name}`, sha256 `{digest[:16]}`; torchvision: {stands_in}",
        f"- {work}; {options.rounds} rounds, the sides in turn; load of the machine {os.getloadavg()[1]:.1f}",
        "",
        "Medians, (least to most). A ratio is taken round by round; above 1 is in the runner's favour.",
        "",
        "| case | side | steps/s | CPU s per step | whole process, s | its CPU s | peak memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]


def arithmetic(cases: Sequence[Case], work: Path) -> list[str]:
    """The arithmetic of each step: if only arithmetic counted, a cache could save at most that of the encoders."""
    rows = ["", "| model | UNet, GFLOP per image | VAE | text | a step that encodes / one that does not |"]
    rows.append("|---|---|---|---|---|")
    for case in {case.model: case for case in cases}.values():
        parts = gflop_of_one_image(case, model_folder(case, work))
        limit = sum(parts.values()) / parts["unet"]
        rows.append(
            f"| {case.model}, {case.resolution} px | {parts['unet']:.2f} | {parts['vae']:.2f} | {parts['text']:.3f} "
            f"| {limit:.2f} |"
        )
    return rows


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers-script", type=Path, required=True, help="train_text_to_image_lora_sdxl.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="OMP_NUM_THREADS of both sides")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--result", type=Path, help="write the table here as well")
    options = parser.parse_args()
    options.diffusers_script = options.diffusers_script.resolve()
    return options


def main() -> None:
    """Run all cases and print the table."""
    options = parse()
    cases = [case for case in CASES if options.cases in case.name]
    options.work = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        rows = [row for case in cases for row in compare(case, options)]
        text = "\n".join([*head(options), *rows, *arithmetic(cases, options.work)]) + "\n"
    finally:
        shutil.rmtree(options.work)
    print(text)
    if options.result is not None:
        options.result.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
