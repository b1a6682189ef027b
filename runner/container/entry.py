"""The container's first process: reads what was sent, trains, hands over results; on a signal, it saves and exits.

It exits with 0 if every job is completed or pruned, or if a signal ended the training; otherwise with 1, and the
reason in `output/failure`.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from runner.container.cache_folder import CacheFolder
from runner.container.code import run_sent_code
from runner.container.ending import conclude, how_far
from runner.container.objective import ObjectiveLines
from runner.container.relay import Relay
from runner.container.secret_values import fetch, lent
from runner.container.settings import sent_jobs
from runner.container.spread import Spread
from runner.container.tree import Host, Tree, meeting_port
from runner.container.user import leave_root
from runner.errors import Interrupted, RunnerError, SettingsError
from runner.jobs.job import FINAL, Job, State, read_manifest, register, state_of, update_manifest, write_config
from runner.launchers import local
from runner.launchers.schedule import Schedule
from runner.parcel import CACHE, CONFIG, Parcel
from runner.plan import Predictor, make_plan
from runner.plan.words import plan_lines
from runner.schema import LocalLauncher
from runner.system.machine import Machine
from runner.system.printable import log_to
from runner.work import WORKER_NAME

log = logging.getLogger(__name__)

TRACEBACK_CHARACTERS = 600
TRAINING_JOB = "TRAINING_JOB_NAME"
"""Environment variable with the name of the training job, from SageMaker."""


def main(arguments: Sequence[str]) -> int:
    """Train what was sent; returns the exit code. What SageMaker appends to the command adds no information."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    log_to(sys.stdout, logging.INFO)
    # The kernel does not kill a container's first process with a signal that it has no handler for.
    signal.signal(signal.SIGTERM, _interrupt)
    tree = Tree.here()
    # All training jobs of a tuner have the same environment: the name of each is only known here.
    if training_job := os.environ.get(TRAINING_JOB):
        os.environ.setdefault(WORKER_NAME, training_job)
    try:
        leave_root(tree)
        run_sent_code(tree, arguments)
        return _run(tree)
    except Interrupted as error:
        log.info("%s", error)
        return 0
    except RunnerError as error:
        log.error("%s", error)
        tree.write_failure(str(error))
    except Exception as error:
        log.exception("the container's entry failed")
        tree.write_failure(f"{type(error).__name__}: {error}\n{traceback.format_exc()[-TRACEBACK_CHARACTERS:]}")
    return 1


def _interrupt(_number: int, _frame: object) -> None:
    raise Interrupted("stopped by a signal")


def _note(_number: int, _frame: object) -> None:
    log.info("received a signal after the training had ended: the results are being put in place")


def _run(tree: Tree) -> int:
    host, parcel = tree.host(), Parcel.read(tree.channel(CONFIG))
    secrets = fetch(parcel.secrets, parcel.region)
    with tempfile.TemporaryDirectory(prefix="runner-container-") as name:
        work = Path(name)
        cache = CacheFolder(
            work / CACHE,
            sources=[tree.channel(CACHE), tree.cache],
            kept=tree.cache if host.is_first else None,
        )
        os.environ["RUNNER_CACHE"] = str(cache.folder)
        jobs = sent_jobs(parcel, tree.channel(CONFIG), tree.data, tree.jobs, tree.overrides(), models=work / "models")
        machine = _machine(parcel)
        if not host.is_first:
            jobs = [_lay_beside(job, work / "jobs") for job in jobs]
            open_jobs = jobs
        else:
            manifests = [read_manifest(tree.channel(CONFIG) / job_id) for job_id in parcel.jobs]
            open_jobs = [job for job, sent in zip(jobs, manifests, strict=True) if _take_up(job, sent)]
        training = _training(open_jobs, jobs, parcel, host, machine, work)
        interrupted = _train(training, jobs, cache, secrets, named=len(machine.devices) > 1)
        return conclude(tree, jobs, interrupted=interrupted) if host.is_first else 0


def _train(
    training: Callable[[], None], jobs: Sequence[Job], cache: CacheFolder, secrets: Mapping[str, str], *, named: bool
) -> bool:
    """Train, with cache, logs and secrets set up; returns whether a signal ended it."""
    relay = Relay(jobs[0].folder.parent, named=named, how_far=lambda: how_far(jobs))
    with cache.keeping(), relay.following(), _said_objective(jobs):
        try:
            with lent(secrets):
                training()
        except Interrupted:
            return True
        finally:
            signal.signal(signal.SIGTERM, _note)
    return False


def _said_objective(jobs: Sequence[Job]) -> AbstractContextManager[None]:
    return ObjectiveLines(jobs[0]).following() if len(jobs) == 1 and jobs[0].trains else nullcontext()


def _machine(parcel: Parcel) -> Machine:
    settings = _settings(parcel)
    if faults := local.check(settings):
        raise SettingsError("; ".join(faults))
    return local.machine(settings)


def _settings(parcel: Parcel) -> LocalLauncher:
    return LocalLauncher(device=parcel.device, pack=parcel.at_once, processes=parcel.processes)


def _training(
    open_jobs: Sequence[Job], jobs: Sequence[Job], parcel: Parcel, host: Host, machine: Machine, work: Path
) -> Callable[[], None]:
    """The function that trains the jobs: a schedule for this machine alone, or this host's part of a spread worker."""
    if len(host.names) > 1:
        spread = Spread(jobs, parcel, host=host, machine=machine, logs=jobs[0].folder.parent, port=meeting_port())
        return lambda: spread.run(work)
    states = {job.folder: state_of(job.folder) for job in open_jobs}
    plan = make_plan(open_jobs, states, _settings(parcel), machine=machine, costs=Predictor())
    for line in plan_lines(plan, None):
        log.info("%s", line)
    return Schedule(plan, _settings(parcel), None, keeps_logs=True).run


def _take_up(job: Job, sent: Mapping[str, Any]) -> bool:
    """Prepare a job's folder for a worker; returns whether there is anything left to do.

    What SageMaker has restored from an earlier container is kept, except for the paths in config.yaml.

    Args:
        sent: the manifest that came with the job; a new folder takes it over.

    Raises:
        RunnerError: the folder holds another job.
    """
    known = read_manifest(job.folder)
    if not known:
        update_manifest(job.folder, **sent)
        register(job)
        return True
    if known.get("id") != job.id:
        raise RunnerError(f"{job.folder} holds the job {known.get('id')!r}")
    write_config(job)
    state = State(known["state"])
    if state in FINAL and not (state is State.COMPLETED and not job.has_result):
        log.info("%s: %s already", job.id, state.value)
        return False
    log.info("%s: was %s after %d steps, continues", job.id, state.value, known.get("steps_done", 0))
    update_manifest(job.folder, state=State.PENDING, error=None, crashed=False)
    return True


def _lay_beside(job: Job, folder: Path) -> Job:
    """The same job in a folder of its own that only describes it, for hosts that write no results."""
    beside = Job(job.id, job.settings, job.identity, folder / job.id, job.overrides)
    register(beside)
    return beside
