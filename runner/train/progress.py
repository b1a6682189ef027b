"""What a person sees while a pack trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from runner.train.job_run import JobRun

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class Progress:
    """Steps of all jobs of a pack, loss, speed, time left and memory."""

    def __init__(self, runs: Sequence[JobRun], *, enabled: bool) -> None:
        self.enabled = enabled
        self.total = sum(run.settings.steps for run in runs)
        self.before = sum(run.settings.steps - run.step for run in runs)
        self.bar: Bar | None = None
        self.start = self.said = time.perf_counter()

    def __enter__(self) -> Progress:
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("", total=self.total, completed=self.total - self.before)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, runs: Sequence[JobRun]) -> None:
        """Show how far the pack is; costs nothing on the device."""
        if not self.enabled:
            return
        left = sum(run.settings.steps - run.step for run in runs)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.total - left, description=_figures(runs))
        elif time.perf_counter() - self.said >= LINE_EVERY_S and runs:
            self.said = time.perf_counter()
            done = max(1, self.before - left)
            remaining_s = (self.said - self.start) / done * left
            log.info("step %d of %d  %s  %.0f s left", self.total - left, self.total, _figures(runs), remaining_s)


def _figures(runs: Sequence[JobRun]) -> str:
    losses = [run.last_loss for run in runs if run.images_per_s]
    text = ""
    if losses:
        text = f"loss {sum(losses) / len(losses):.4f}  {sum(run.images_per_s for run in runs):.1f} images/s"
    return f"{text}  {_peak_memory_gb():.1f} GB"


def _peak_memory_gb() -> float:
    """Most memory held so far: of the GPU where there is one, of this process otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # kibibytes on Linux
