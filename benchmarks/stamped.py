"""Run a script or a module unchanged, and record when each of its optimizer steps ended.

    python benchmarks/stamped.py STAMPS.json --script train.py [its arguments]
    python benchmarks/stamped.py STAMPS.json --module runner [its arguments]

Both sides of a comparison are timed by the same hook: torch calls it after every step of any optimizer. The runner
trains in a process that it starts itself; that process is started through this file too.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TRACKERS = ("wandb", "tensorboard", "tensorboardX")
"""Hidden from the other script, which would import or use them if installed; the runner is told not to."""


@contextmanager
def step_times(file: Path) -> Iterator[None]:
    """Write the wall and processor seconds at the end of each step into `file`, as JSON."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    wall: list[float] = []
    processor: list[float] = []

    def note(*_: object) -> None:
        wall.append(time.perf_counter())
        processor.append(time.process_time())

    handle = register_optimizer_step_post_hook(note)
    try:
        yield
    finally:
        handle.remove()
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        file.write_text(json.dumps({"wall": wall, "cpu": processor, "peak_mib": peak_mib}), encoding="utf-8")


def stand_in_for_torchvision() -> bool:
    """Put our few transforms on the path if torchvision is missing; returns whether it was."""
    if importlib.util.find_spec("torchvision") is not None:
        return False
    # The libraries must not take the stand-in for the real torchvision. They check only once, so let them check first.
    import datasets  # noqa: F401
    import diffusers.utils
    import transformers.utils

    assert not transformers.utils.is_torchvision_available()
    assert not diffusers.utils.is_torchvision_available()
    sys.path.append(str(Path(__file__).parent / "without_torchvision"))
    return True


def run_script(script: Path, arguments: Sequence[str], stamps: Path) -> None:
    """Run the other side's training script."""
    for name in TRACKERS:
        sys.modules[name] = None  # type: ignore[assignment]
    stand_in_for_torchvision()
    sys.argv = [str(script), *arguments]
    with step_times(stamps):
        runpy.run_path(str(script), run_name="__main__")


def run_module(module: str, arguments: Sequence[str], stamps: Path) -> None:
    """Run the runner, or the worker that trains for it."""
    sys.argv = [module, *arguments]
    if module == "runner.work":
        with step_times(stamps):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    from runner.launchers import worker

    plain = worker.worker_arguments

    def through_here(queue: Path, *, at_once: int, device: str) -> list[str]:
        python, _, *command = plain(queue, at_once=at_once, device=device)
        return [python, __file__, str(stamps), "--module", *command]

    worker.worker_arguments = through_here
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Read the command line and run what it names."""
    stamps, kind, name, *arguments = sys.argv[1:]
    if kind == "--script":
        run_script(Path(name), arguments, Path(stamps))
    else:
        run_module(name, arguments, Path(stamps))


if __name__ == "__main__":
    main()
