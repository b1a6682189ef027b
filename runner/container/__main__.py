"""`python -m runner.container [train]`: the image's entry point."""

from __future__ import annotations

import sys

from runner.container.entry import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
