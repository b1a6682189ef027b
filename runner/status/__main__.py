"""`python -m runner.status [DIR...]`: how far the jobs in experiment folders are, live on a terminal."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from runner.job_folders import faults_of, job_folders
from runner.paths import outputs_dir
from runner.status.experiment import ExperimentStatus, Watch, as_data
from runner.status.live import follow
from runner.status.table import tables
from runner.system.printable import log_to
from runner.system.signals import silence

PLAIN_WIDTH = 200
"""Columns of a table written to a file or a program, where nothing is wrapped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the table; 0, 1 if a job failed or died, 2 if there is nothing to show."""
    options = _parse(arguments)
    roots: list[Path] = options.folders or [outputs_dir()]
    if faults := faults_of(roots, job_folders):
        faults = [f"{fault}; the default is {outputs_dir()}" for fault in faults]
        print(*faults, sep="\n", file=sys.stderr)
        return 2
    log_to(sys.stderr, logging.WARNING)
    # Only this command imports launchers: a launcher that shows the table below its log collects results itself.
    from runner.launchers.elsewhere import Elsewhere

    elsewhere = Elsewhere()

    def folders() -> list[Path]:
        found = [job for root in roots for job in _jobs(root)]
        elsewhere.collect(found)
        return found

    watch = Watch(folders)
    try:
        looked = _show(watch, once=options.once, as_json=options.json)
        sys.stdout.flush()
    except BrokenPipeError:  # a reader that stops, such as head; the remaining output is discarded
        silence([sys.stdout.fileno()])
        return 0
    return int(any(experiment.has_losses for experiment in looked))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runner.status", description="Show the progress of jobs.")
    parser.add_argument("--once", action="store_true", help="print the table once, also on a terminal")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, once")
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", help="outputs/<name>, a job in it, or a folder of experiments"
    )
    return parser.parse_args(arguments)


def _show(watch: Watch, *, once: bool, as_json: bool) -> list[ExperimentStatus]:
    if as_json:
        looked = watch.look()
        print(json.dumps(as_data(looked), indent=2, allow_nan=False, default=str))
        return looked
    console = Console()
    if console.is_terminal and not once:
        return follow(watch, console)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    looked = watch.look()
    console.print(tables(looked, width=console.width))
    return looked


def _jobs(root: Path) -> list[Path]:
    try:
        return job_folders(root)
    except (OSError, ValueError):
        return []  # removed while it was being watched


if __name__ == "__main__":
    sys.exit(main())
