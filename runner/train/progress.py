"""What a person sees while a pack trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from runner.system.amounts import duration, number
from runner.train.cost import peak_memory_gb

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from runner.train.job_run import JobRun

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class Progress:
    """Steps of all jobs of a pack, loss, speed, time left and memory."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.bar: Bar | None = None
        self.known: dict[str, tuple[int, int]] = {}
        """(steps, steps left when it was first seen) of every job so far."""
        self.said = time.perf_counter()
        self.start: float | None = None
        """When the first round began; loading, encoding and measuring the base came before and happen only once."""

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
            self.task = self.bar.add_task("", total=None)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self) -> None:
        """A round begins."""
        if self.start is None:
            self.start = time.perf_counter()

    def update(self, runs: Sequence[JobRun]) -> None:
        """Show the pack's progress; costs nothing on the device."""
        if not self.enabled:
            return
        for run in runs:
            self.known.setdefault(run.job.id, (run.settings.steps, run.settings.steps - run.step + 1))
        total = sum(steps for steps, _ in self.known.values())
        before = sum(left for _, left in self.known.values())
        left = sum(run.settings.steps - run.step for run in runs)
        if self.bar is not None:
            self.bar.update(self.task, total=total, completed=total - left, description=_figures(runs))
        elif time.perf_counter() - self.said >= LINE_EVERY_S and runs:
            assert self.start is not None
            self.said = time.perf_counter()
            remaining_s = (self.said - self.start) / max(1, before - left) * left
            done = f"step {total - left} of {total}"
            if (jobs := len(self.known)) > 1:
                done = f"{total - left} of {total} steps of {jobs} jobs"
            log.info("%s  %s  %s left", done, _figures(runs), duration(remaining_s))


def _figures(runs: Sequence[JobRun]) -> str:
    losses = [run.last_loss for run in runs if run.images_per_s]
    text = ""
    if losses:
        text = f"loss {sum(losses) / len(losses):.4f}  {number(sum(run.images_per_s for run in runs), 3)} images/s"
    return f"{text}  {peak_memory_gb():.1f} GB"
