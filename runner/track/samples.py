"""The sample images of a job's folder: the prompt, seed and step of each file.

Takes a folder, returns its images in step order. All it knows about W&B is how to hand it a table.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.paths import JobPaths, samples_in

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

TABLE_COLUMNS = ("step", "prompt", "seed", "image")

MAX_TABLE_IMAGES = 100
MAX_TABLE_SIDE_PX = 512
"""W&B copies each image of a table into the user's home directory, so a table holds only a few small ones."""


@dataclass(frozen=True, order=True)
class Sample:
    """One image file, and what it shows."""

    step: int
    number: int
    """The prompt's index in the list of prompts."""
    seed: int
    path: Path
    prompt: str

    @property
    def caption(self) -> str:
        """The prompt with its seed."""
        return f"{self.prompt} (seed {self.seed})"


def read_samples(folder: Path) -> list[Sample]:
    """All sample images of a job's folder by step, prompt and seed; an unknown prompt is shown as its number."""
    prompts = _prompts(JobPaths(folder).prompts)
    return sorted(
        Sample(step, number, seed, file, prompts[number] if number < len(prompts) else f"prompt {number}")
        for step, number, seed, file in samples_in(JobPaths(folder).samples)
    )


def is_whole(file: Path) -> bool:
    """Whether an image is undamaged; if not, this logs it. wandb would raise, and leave the file open.

    Raises:
        OSError: the file cannot be opened.
    """
    from PIL import Image

    with file.open("rb") as stream:
        try:
            Image.open(stream).load()
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged file
            log.warning("W&B: %s is left out, it cannot be read: %s", file, error)
            return False
    return True


def for_table(samples: Sequence[Sample]) -> list[Sample]:
    """As many samples as a table holds, in whole steps: the last step first, then the first, then those between."""
    steps = sorted({sample.step for sample in samples})
    wanted = [steps[-1], steps[0], *steps[1:-1][::-1]] if len(steps) > 1 else steps
    chosen: list[Sample] = []
    for step in wanted:
        of_step = [sample for sample in samples if sample.step == step]
        if not chosen or len(chosen) + len(of_step) <= MAX_TABLE_IMAGES:
            chosen += of_step[:MAX_TABLE_IMAGES]
    return sorted(chosen)


def samples_table(samples: Sequence[Sample]) -> wandb.Table:
    """A W&B table with one row per sample, which W&B can merge with the tables of other runs by prompt and seed."""
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
