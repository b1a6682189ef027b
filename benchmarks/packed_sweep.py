"""A sweep of eight demo jobs, packed, against the same eight run one after the other, each in its own process.

    python benchmarks/packed_sweep.py                          # all cases, one round: about half an hour on two cores
    python benchmarks/packed_sweep.py --rounds 3 --result benchmarks/results/packed_sweep.md

The packed sides are the project's own command: as it is, with a worker for every four jobs, and with a single worker.
Every side of every round starts with an empty cache and empty outputs; the eight single runs of a round share a cache,
as they would on anybody's machine. Sides are measured in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from runner.system.machine import cpu_name
from runner.work import git_commit

ROOT = Path(__file__).resolve().parents[1]
RANKS = (4, 8, 16, 32)
RATES = ("1e-3", "2e-3")
COMMON = ("recipe=demo", "logger=none", "launcher.device=cpu")


@dataclasses.dataclass(frozen=True)
class Case:
    """What all eight jobs have in common beside the recipe (500 steps of batch 1, linear layers and convolutions)."""

    name: str
    settings: tuple[str, ...]


CASES = (
    Case("the demo", ()),
    Case("batch 4, 300 steps", ("batch_size=4", "steps=300", "validation.every=100")),
    Case("attention layers", ("lora=attention",)),
)


@dataclasses.dataclass(frozen=True)
class Timing:
    """One side of one round."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    """Peak memory of all processes together; memory that several of them share is counted once."""
    objectives: tuple[float, ...]


def packed(case: Case, folder: Path, *further: str) -> Timing:
    """The sweep as one command."""
    sweep = [f"lora.rank={','.join(map(str, RANKS))}", f"optimizer.lr={','.join(RATES)}"]
    return measured([["-m", *COMMON, *case.settings, *sweep, *further]], folder)


def packed_by_one(case: Case, folder: Path) -> Timing:
    """The sweep as one command, with one pack and one training process."""
    return packed(case, folder, "launcher.concurrency=1")


def one_after_the_other(case: Case, folder: Path) -> Timing:
    """The same jobs as eight commands."""
    jobs = itertools.product(RANKS, RATES)
    commands = [[*COMMON, *case.settings, f"lora.rank={rank}", f"optimizer.lr={rate}"] for rank, rate in jobs]
    return measured(commands, folder)


SIDES = {"one after the other": one_after_the_other, "packed": packed, "packed, one worker": packed_by_one}


LOOK_S = 2.0
"""A look takes 25 ms of a core that a pack, unlike a single run, would use: twice a second, a fortieth of its time."""


class Memory:
    """Checks the memory of this process's descendants now and then, and remembers the peak."""

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self.peak_gb = max(self.peak_gb, sum(map(_held_gb, _descendants(os.getpid()))))


def _descendants(process: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in file.read_text().split()]
        except OSError:
            continue
        found += [each for child in children for each in (child, *_descendants(child))]
    return found


def _held_gb(process: int) -> float:
    """Proportional set size: a page that several processes share is divided among them."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def measured(commands: Sequence[list[str]], folder: Path) -> Timing:
    """Run the commands and measure them from their folders."""
    outputs = folder / "outputs"
    places = {"RUNNER_OUTPUTS": str(outputs), "RUNNER_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    start, cpu_start = time.perf_counter(), _children_cpu_s()
    with Memory() as memory:
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "runner", *command],
                env=os.environ | places,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(done.stdout[-4000:])
    wall_s, cpu_s = time.perf_counter() - start, _children_cpu_s() - cpu_start
    manifests = [json.loads(file.read_text(encoding="utf-8")) for file in outputs.glob("*/*/manifest.json")]
    assert len(manifests) == len(RANKS) * len(RATES), len(manifests)
    by_id = sorted(manifests, key=lambda manifest: manifest["id"])
    return Timing(wall_s, cpu_s, memory.peak_gb, tuple(manifest["objective"] for manifest in by_id))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(case: Case, options: argparse.Namespace) -> list[str]:
    """All rounds of one case, as lines of a table."""
    sides = {side: run for side, run in SIDES.items() if side not in options.without}
    timings: dict[str, list[Timing]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side, run in sides.items():
            folder = Path(tempfile.mkdtemp(prefix="packed-sweep-"))
            try:
                timings[side].append(run(case, folder))
            finally:
                shutil.rmtree(folder)
            print(f"{case.name}, round {number + 1}, {side}: {timings[side][-1]}", file=sys.stderr, flush=True)
    rows = [
        f"| {case.name} | {side} | {_spread([t.wall_s for t in found], 1)} | {_spread([t.cpu_s for t in found], 1)} "
        f"| {_spread([t.peak_gb for t in found], 2)} |"
        for side, found in timings.items()
    ]
    alone, *others = timings
    return rows + [row for side in others for row in _ratios(case, side, timings[alone], timings[side])]


def _ratios(case: Case, side: str, alone: Sequence[Timing], together: Sequence[Timing]) -> list[str]:
    pairs = list(zip(alone, together, strict=True))
    ratios = [
        _spread([one.wall_s / other.wall_s for one, other in pairs], 2),
        _spread([one.cpu_s / other.cpu_s for one, other in pairs], 2),
        _spread([other.peak_gb / one.peak_gb for one, other in pairs], 2),
    ]
    apart = max(abs(a - b) / a for one, other in pairs for a, b in zip(one.objectives, other.objectives, strict=True))
    return [
        f"| {case.name} | {side}: ratio | **{ratios[0]}** | **{ratios[1]}** | **{ratios[2]}** |",
        f"| {case.name} | {side}: objectives differ by at most | {apart:.1e} | | |",
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return (
        f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})" if len(values) > 1 else f"{middle:.{digits}f}"
    )


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--without", action="append", default=[], choices=list(SIDES)[1:], help="leave a side out")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--result", type=Path, help="write the table here as well")
    options = parser.parse_args()
    rows = [row for case in CASES if options.cases in case.name for row in compare(case, options)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "peft"))
    load = os.getloadavg()[2]
    jobs = f"ranks {', '.join(map(str, RANKS))} x learning rates {', '.join(RATES)}; recipe `demo`"
    lines = [
        "# Eight demo jobs: packed, and one after the other",
        "",
        f"- {datetime.now(UTC):%Y-%m-%d}; {cpu_name()}; {versions}; commit `{(git_commit() or 'unknown')[:10]}`",
        f"- {jobs}; {options.rounds} round(s), sides in turn; load of the machine at the end {load:.1f}",
        "",
        "Medians, (least to most). Ratios are taken round by round: wall and CPU time of one after the other / packed,",
        "memory of packed / one. Memory is that of all processes at one time.",
        "",
        "| case | side | wall, s | CPU, s | peak memory, GB |",
        "|---|---|---|---|---|",
        *rows,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.result is not None:
        options.result.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
