"""The sample images of a job's folder: which prompt, seed and step each file is.

Takes a folder, gives its images in the order of steps. It knows nothing of W&B but how to hand it a table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.paths import JobPaths, samples_in

if TYPE_CHECKING:
    import wandb

TABLE_COLUMNS = ("step", "prompt", "seed", "image")

MAX_TABLE_IMAGES = 100
MAX_TABLE_SIDE_PX = 512
"""W&B keeps a copy of each image of a table in the user's home, so that there they are few and small."""


@dataclass(frozen=True, order=True)
class Sample:
    """One image file, and what it shows."""

    step: int
    number: int
    """The prompt's place in the list of prompts."""
    seed: int
    path: Path
    prompt: str

    @property
    def caption(self) -> str:
        """The prompt with its seed."""
        return f"{self.prompt} (seed {self.seed})"


def read_samples(folder: Path) -> list[Sample]:
    """All sample images of a job's folder, by step, prompt and seed; images of unknown prompts have their number."""
    prompts = _prompts(JobPaths(folder).prompts)
    return sorted(
        Sample(step, number, seed, file, prompts[number] if number < len(prompts) else f"prompt {number}")
        for step, number, seed, file in samples_in(JobPaths(folder).samples)
    )


def for_table(samples: Sequence[Sample]) -> list[Sample]:
    """As many as a table holds: whole steps, the last one before all, then the first, then those between."""
    steps = sorted({sample.step for sample in samples})
    wanted = [steps[-1], steps[0], *steps[1:-1][::-1]] if len(steps) > 1 else steps
    chosen: list[Sample] = []
    for step in wanted:
        of_step = [sample for sample in samples if sample.step == step]
        if not chosen or len(chosen) + len(of_step) <= MAX_TABLE_IMAGES:
            chosen += of_step[:MAX_TABLE_IMAGES]
    return sorted(chosen)


def samples_table(samples: Sequence[Sample]) -> wandb.Table:
    """A W&B table with a row for each sample, which W&B can merge with those of other runs by prompt and seed."""
    import wandb

    rows = [[sample.step, sample.prompt, sample.seed, _picture(sample.path)] for sample in samples]
    return wandb.Table(columns=list(TABLE_COLUMNS), data=rows)


def _picture(path: Path) -> wandb.Image:
    import wandb
    from PIL import Image

    with Image.open(path) as image:
        if max(image.size) <= MAX_TABLE_SIDE_PX:
            return wandb.Image(str(path))
        small = image.convert("RGB")
        small.thumbnail((MAX_TABLE_SIDE_PX, MAX_TABLE_SIDE_PX))
        return wandb.Image(small, file_type="jpg")


def _prompts(path: Path) -> list[Any]:
    try:
        prompts = json.loads(path.read_text(encoding="utf-8")).get("prompts")
    except (OSError, ValueError, AttributeError):
        return []
    return prompts if isinstance(prompts, list) else []
