"""The table, refreshed every second: in a terminal of its own, or below a launcher's log; without one, lines."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from runner.status.experiment import ExperimentStatus, Watch
from runner.status.table import tables, totals

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

log = logging.getLogger(__name__)

REFRESH_S = 1.0
LINE_EVERY_S = 60.0


def follow(watch: Watch, console: Console) -> list[ExperimentStatus]:
    """Show the table until nothing changes by itself any more, or until Ctrl-C; returns the last look."""
    looked = watch.look()
    with _live(lambda: tables(looked, width=console.width, height=console.height), console, transient=False) as live:
        try:
            while any(experiment.is_active for experiment in looked):
                time.sleep(REFRESH_S)
                looked = watch.look()
                live.refresh()
        except KeyboardInterrupt:
            pass
    return looked


@contextmanager
def live_table(folders: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """Show the table of some jobs below the log while the block runs; without a terminal, log a line every minute.

    Args:
        folders: returns the job folders; called every second, in another thread.
    """
    watch = Watch(folders)
    if not sys.stdout.isatty():
        with _lines(watch):
            yield
        return
    from rich.console import Console

    console = Console()
    with (
        _live(lambda: tables(watch.look(), width=console.width, height=console.height), console, transient=True),
        _log_above(),
    ):
        yield


@contextmanager
def _lines(watch: Watch) -> Iterator[None]:
    """Log how far each experiment is, from another thread; a line is not repeated."""
    over, last = threading.Event(), dict[Path, str]()

    def say() -> None:
        while not over.wait(LINE_EVERY_S):
            for experiment in watch.look():
                steps = [(job.steps_done, job.steps) for job in experiment.jobs if job.record.trains and job.steps]
                done, total = (sum(each) for each in zip((0, 0), *steps, strict=True))
                told = f"{done:,} of {total:,} steps; " if total else ""
                line = f"{experiment.folder.name}: {told}{totals(experiment)}"
                if last.get(experiment.folder) != line:
                    log.info("%s", line)
                last[experiment.folder] = line

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _live(table: Callable[[], object], console: Console, *, transient: bool) -> Live:
    from rich.console import RenderableType
    from rich.live import Live

    return Live(
        get_renderable=lambda: cast("RenderableType", table()),
        console=console,
        refresh_per_second=1 / REFRESH_S,
        transient=transient,
    )


@contextmanager
def _log_above() -> Iterator[None]:
    """Send log lines through rich's replacements of the streams, so that they appear above the table."""
    proxies: dict[object, TextIO] = {sys.__stdout__: sys.stdout, sys.__stderr__: sys.stderr}
    replaced: list[tuple[logging.StreamHandler[TextIO], TextIO]] = [
        (handler, handler.stream)
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in proxies
    ]
    for handler, stream in replaced:
        handler.setStream(proxies[stream])
    try:
        yield
    finally:
        for handler, stream in replaced:
            handler.setStream(stream)
