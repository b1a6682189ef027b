"""`python -m runner.track JOBDIR...` logs job folders anew to Weights & Biases."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from runner.track.rebuild import rebuild


def main() -> int:
    """Rebuild each run in turn; 1 where a folder cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m runner.track", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="JOBDIR")
    parser.add_argument("--mode", choices=("auto", "online", "offline"), default="auto")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for folder in arguments.folders:
        try:
            rebuild(folder, mode=arguments.mode)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
