"""`python -m runner.report DIR...` writes report.html, sweep.csv and sweep.json into experiment or job folders."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from runner.paths import ExperimentPaths
from runner.report.page import write_report


def main() -> int:
    """Write the report and the exports of each folder in turn, and say where they are; 1 where one cannot be."""
    parser = argparse.ArgumentParser(prog="python -m runner.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="outputs/<name>, or one job in it")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    failed = 0
    for folder in arguments.folders:
        try:
            write_report(folder)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = 1
            continue
        paths = ExperimentPaths(folder)
        print(paths.report, paths.table, paths.summary, sep="\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
