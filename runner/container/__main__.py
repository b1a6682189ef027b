"""`python -m runner.container [train | serve]`: the image's entry point."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Train, or run as an endpoint if SageMaker passes `serve`."""
    if arguments[:1] == ["serve"]:
        from runner.container.serving import serve

        return serve(arguments[1:])
    from runner.container.entry import main as train

    return train(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
