"""`python -m runner.work JOBDIR...`: train the jobs in these folders as one pack.

The seam between planning and training: it reads folders and writes folders, and knows nothing of Hydra, of
launchers or of clouds. Several processes of it, started by accelerate, work on the same pack.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

from runner.errors import Interrupted, RunnerError
from runner.job import Job, State, lock, read_job, read_manifest, update_manifest

log = logging.getLogger(__name__)

RECORDED_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
)


class StopSignal:
    """Whether somebody asked this process to save and end; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; 0 if every job completed, 130 if a signal stopped it, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m runner.work", description="Train the jobs in some folders.")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("folders", nargs="+", type=Path, metavar="JOBDIR")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with StopSignal() as stop:
        try:
            jobs = [read_job(folder) for folder in options.folders]
            return _work(jobs, options.device, stop)
        except Interrupted as error:
            log.info("%s", error)
            return 130
        except RunnerError as error:
            log.error("%s", error)
            return 1


def _work(jobs: Sequence[Job], device: str, stop: StopSignal) -> int:
    _quiet_libraries()
    from runner.artifacts import save_artifacts
    from runner.train.loop import train_pack
    from runner.train.place import Place

    place = Place.here(device)
    with ExitStack() as stack:
        if place.is_main:
            for job in jobs:
                stack.enter_context(lock(job.folder))
                stack.enter_context(_log_file(job))
        else:
            logging.getLogger().setLevel(logging.ERROR)
        try:
            about = {"versions": versions(), "git_commit": git_commit(), "device": place.describe()}
            completed = train_pack(jobs, place, about=about, save=save_artifacts, stop_requested=lambda: stop.requested)
        except Interrupted:
            raise
        except Exception as error:
            # Whatever it was, the folders must say it; the log has the rest.
            if not isinstance(error, RunnerError):
                log.exception("the pack failed")
            if place.is_main:
                _fail_unfinished(jobs, error)
            return 1
        return 0 if completed else 1


def _fail_unfinished(jobs: Sequence[Job], error: Exception) -> None:
    reason = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
    for job in jobs:
        if read_manifest(job.folder)["state"] not in (State.COMPLETED, State.FAILED):
            update_manifest(job.folder, state=State.FAILED, error=reason)


@contextmanager
def _log_file(job: Job) -> Iterator[None]:
    handler = logging.FileHandler(job.paths.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _quiet_libraries() -> None:
    # What they say while loading is about other ways of using them.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        found[name] = metadata.version(name)
    return found


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with `+` if it has changes; None for an installed one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main())
