"""`python -m runner.report DIR...` writes report.html, sweep.csv and sweep.json into experiment or job folders."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.job_folders import faults_of, find_jobs
from runner.paths import ExperimentPaths
from runner.report.page import write_report
from runner.system.printable import log_to, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Write reports and exports and print their paths; returns 1 if one cannot be written, 2 if there are no jobs."""
    parser = argparse.ArgumentParser(prog="python -m runner.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="outputs/<name>, or one job in it")
    folders: list[Path] = parser.parse_args(arguments).folders
    if faults := faults_of(folders, find_jobs):
        print(*faults, sep="\n", file=sys.stderr)
        return 2
    log_to(sys.stderr, logging.WARNING)
    failed = 0
    for folder in folders:
        try:
            write_report(folder)
        except (OSError, ValueError) as error:
            print(printable(f"error: {error}"), file=sys.stderr)
            failed = 1
            continue
        paths = ExperimentPaths(folder)
        print(*(printable(str(each)) for each in (paths.report, paths.table, paths.summary)), sep="\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
