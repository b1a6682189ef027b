"""`python -m runner.work JOBDIR...`: train the jobs in these folders as one pack, or run their other tasks.

The seam between planning and training: it reads folders and writes folders, and knows nothing about Hydra, launchers or
clouds. Several of its processes, started by accelerate, can work on the same pack.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from runner import PACKAGE
from runner.errors import Interrupted, RunnerError, in_words, refusal
from runner.job_folders import faults_of, the_job
from runner.jobs.job import Job, State, read_job, update_manifest
from runner.jobs.queue import Claims, FixedQueue, Queue
from runner.system.printable import Printable, log_to
from runner.system.quiet import quiet_libraries
from runner.system.signals import StopSignal

if TYPE_CHECKING:
    from runner.train.job_run import JobRun

log = logging.getLogger(__name__)

STARTED_S = time.perf_counter()
INTERRUPTED_CODE = 130
CRASHED_CODE = 70
"""Exit code after an error that no single job caused: the jobs in training are marked as failed and may be retried. If
nothing can be trained at all, the same goes for all other jobs."""

LAUNCHER_PID = "RUNNER_LAUNCHER_PID"
"""Environment variable with the id of the process that started this worker and will settle what it leaves behind."""

WORKER_NAME = "RUNNER_WORKER"
"""Environment variable with the name under which this worker was started; recorded with its jobs."""

MADE_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Environment variable that torchrun sets for the processes that it starts."""

LOOK_S = 1.0

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the jobs of the named folders, or of a queue.
    Returns:
        0 if every job completed, 1 if some failed, 70 after a crash that failed all jobs in training, 130 after a
        signal, 2 if a folder is not a job's.
    """
    options = _parse(arguments)
    log_to(sys.stderr, logging.INFO)
    # Checked before loading the libraries, which takes many seconds.
    if faults := faults_of(options.folders, the_job):
        log.error("%s", "\n".join(faults))
        return 2
    queue = Queue(options.queue) if options.queue else FixedQueue(options.folders)
    with StopSignal() as stop:
        try:
            return _work(Claims(queue, _log_file), options, stop)
        except RunnerError as error:
            log.error("%s", error)
            return 1
        except KeyboardInterrupt:
            log.info("stopped at once; the next run continues from the last save")
            return INTERRUPTED_CODE


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runner.work", description="Train the jobs in some folders.")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--at-once", type=int, help="most jobs that train together; all by default")
    parser.add_argument(
        "--queue", type=Path, metavar="FILE", help="take pending jobs from this list (runner.jobs.queue)"
    )
    parser.add_argument(
        "--only-crash-fails", action="store_true", help="end with 0 unless it crashes; the folders say how jobs went"
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="JOBDIR")
    options = parser.parse_args(arguments)
    if bool(options.folders) == bool(options.queue):
        parser.error("name job folders, or a list of them with --queue")
    return options


def _work(claims: Claims, options: argparse.Namespace, stop: StopSignal) -> int:
    loading_s, began = load_libraries(), time.perf_counter()
    from runner.tasks.run import run_tasks
    from runner.train.admission import SharedSource
    from runner.train.loop import train
    from runner.train.place import Place

    try:
        with _no_longer_than_its_parent():
            place = Place.here(options.device)
    except RunnerError as error:
        log.error("%s", error)
        return CRASHED_CODE  # no other job would do better here
    if not place.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    # Only the main process, which may be on another machine, reports how the jobs went; others exit as successful.
    says_more = place.is_main and not options.only_crash_fails
    about = {
        "versions": versions(),
        "git_commit": git_commit(),
        "device": place.describe(),
        "worker": os.environ.get(WORKER_NAME),
    }

    def stop_requested() -> bool:
        return stop.requested or _orphaned()

    try:
        if not _trains(claims.queue):
            good = run_tasks(claims, place, about=about, stop_requested=stop_requested)
        else:
            good = train(
                SharedSource(claims if place.is_main else None, place, lambda each: read_job(claims.queue.here(each))),
                place,
                at_once=options.at_once or len(options.folders) or 1,
                startup_s=loading_s + time.perf_counter() - began,
                about=about,
                save=partial(_saved, stop=stop_requested),
                stop_requested=stop_requested,
            )
    except Interrupted as error:
        log.info("%s", error)
        place.leave()
        return INTERRUPTED_CODE if says_more else 0
    except Exception as error:
        # Whatever the error was, the folders must record it; the log has the details.
        if not isinstance(error, RunnerError) and refusal(error) is None:
            log.exception("the pack failed")
        elif not claims.held:
            log.error("%s", in_words(error))  # no job's manifest will record it
        for job in claims.held:
            try:
                update_manifest(job.folder, state=State.FAILED, error=in_words(error), crashed=True)
            except (RunnerError, OSError) as fault:  # a full disk: the launcher learns of it from the lock
                log.error("%s cannot be written: %s", job.paths.manifest, fault)
        return CRASHED_CODE
    finally:
        claims.release_all()
    place.leave()
    return 1 if says_more and not good else 0


def _saved(
    run: JobRun,
    use_rows: Callable[[int], AbstractContextManager[None]],
    losses: Mapping[str, float],
    *,
    stop: Callable[[], bool],
) -> None:
    """Save the trained weights, and evaluate them if the settings ask for it."""
    from runner.artifacts import save_artifacts
    from runner.tasks.evaluate.work import evaluate_training

    save_artifacts(run, use_rows, losses)
    if run.settings.evaluation.metrics is not None:
        evaluate_training(run, stop=stop)


def _trains(queue: Queue) -> bool:
    """Whether the jobs of a queue are trainings. A plan puts other tasks into queues of their own.

    Raises:
        RunnerError: the named folders contain both.
    """
    kinds = set()
    for folder in queue.read()[0]:
        try:
            kinds.add(read_job(folder).trains)
        except RunnerError:
            if isinstance(queue, FixedQueue):
                raise  # in a queue file, the other jobs still run, and claiming this one reports its fault
    if len(kinds) > 1:
        raise RunnerError(
            "some of these folders hold trainings, and some other tasks; name them in commands of their own"
        )
    return kinds != {False}


def _orphaned() -> bool:
    """Whether the launcher that waits for this worker is gone: nobody would collect the work or want to pay for it."""
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None:
        return False
    try:
        os.kill(int(launcher), 0)
        # A launcher that was killed but not yet waited for is still in the process table, as a zombie.
        return Path(f"/proc/{launcher}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False  # no /proc on this system


@contextmanager
def _no_longer_than_its_parent() -> Iterator[None]:
    """Within it, each of several processes ends with torchrun, their meeting point; otherwise they wait for hours.

    At this point nothing is held and nothing needs saving. Later they do not need torchrun and may continue.
    """
    parent, is_over = os.getppid(), threading.Event()

    def watch() -> None:
        while not is_over.wait(LOOK_S):
            if os.getppid() != parent or _orphaned():
                os._exit(INTERRUPTED_CODE)

    if os.environ.get(MADE_BY_TORCHRUN):
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


class _LogFile(logging.FileHandler):
    """On a full disk, drops lines without a traceback for each: the worker's output has them as well."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # raised for what could not be written
            super().close()


@contextmanager
def _log_file(job: Job) -> Iterator[None]:
    handler = _LogFile(job.paths.log, encoding="utf-8")
    handler.setFormatter(Printable("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@cache
def load_libraries() -> float:
    """Load what work needs; returns seconds since the start of the process that loaded it, here or before a fork."""
    quiet_libraries()
    # What is loaded stays: scanning it for garbage takes a fifth of the time, and later copies memory that forked
    # processes share.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import runner.artifacts
        import runner.tasks.run
        import runner.train.loop  # noqa: F401
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
    return time.perf_counter() - STARTED_S


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        found[name] = metadata.version(name)
    return found


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+` if it has changes; None if it is installed."""
    root = PACKAGE.parent
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
