"""`python -m runner.track JOBDIR...` logs job folders to Weights & Biases again."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.job_folders import faults_of, the_job
from runner.system.printable import log_to, printable
from runner.track.rebuild import rebuild


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild each run in turn; returns 1 if a folder cannot be read, 2 if one is not a job's folder."""
    parser = argparse.ArgumentParser(prog="python -m runner.track", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="JOBDIR", help="the folder of a job")
    parser.add_argument(
        "--mode",
        choices=("auto", "online", "offline"),
        default="auto",
        help="auto: as WANDB_MODE says, else online where W&B finds an API key",
    )
    options = parser.parse_args(arguments)
    if faults := faults_of(options.folders, the_job):
        print(*faults, sep="\n", file=sys.stderr)
        return 2
    log_to(sys.stderr, logging.INFO)
    for folder in options.folders:
        try:
            rebuild(folder, mode=options.mode)
        except (OSError, ValueError) as error:
            print(printable(f"error: {error}"), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
