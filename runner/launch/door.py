"""The one door: a single run, a grid and a search all come through `launch` as a list of jobs."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from runner.check import Checker, launcher_of
from runner.errors import Defect, Detached, Interrupted, RunnerError, SettingsError
from runner.jobs.job import FINAL, Job, State, read_manifest, register, state_of
from runner.jobs.lock import LockedError, is_held, lock
from runner.jobs.submission import Submission
from runner.launch.announce import show
from runner.launch.outcome import conclude, take_over
from runner.launchers import find_launcher
from runner.paths import ExperimentPaths, cache_dir, last_step, outputs_dir, write_text
from runner.plan import Plan, Predictor, make_plan
from runner.plan.packs import is_done
from runner.schema import LauncherSettings, QueuedLauncher
from runner.schema.launchers import APART
from runner.schema.tasks.deploy import Deploy
from runner.system.machine import Machine, folder_fault

POLL_S = 1.0

Config = tuple[Mapping[str, Any], tuple[str, ...]]
"""A resolved configuration, and the overrides it was composed with."""


class Search(Protocol):
    """Chooses further jobs while others run (`runner.search`)."""

    @property
    def left(self) -> int:
        """How many configurations are still to come."""

    def more(self, count: int) -> Sequence[Config]:
        """Up to `count` further configurations; none if there are no more, or if it is waiting for results."""

    def started(self, overrides: Sequence[str], job: Job, *, again: bool) -> None:
        """A configuration has become this job, which is done already or (`again`) runs, however it ended before."""

    def refused(self, overrides: Sequence[str], reason: str) -> None:
        """A configuration is wrong and has become no job."""

    def learn(self) -> None:
        """Look at the jobs that have ended."""

    def summary(self) -> list[str]:
        """The findings, one per line."""


log = logging.getLogger(__name__)


def launch(configs: Sequence[Config], *, expected: int = 0, request: str = "") -> list[Job]:
    """Check all configurations, plan, run what is missing, and report the outcome.

    Args:
        configs: the resolved configuration and the overrides of each job.
        expected: how many jobs there will be in all, if that is more than `configs`.
        request: the whole request, in YAML; kept beside the jobs once they have started.

    Returns:
        The jobs, in the order of `configs`.

    Raises:
        SettingsError: at least one configuration is wrong; nothing has started.
        JobsFailed: at least one job did not complete.
        Interrupted: a signal stopped the run; the work so far is saved.
        RunnerError: the runner's own files, or the report, can no longer be written.
        Defect: something unforeseen went wrong after the checks.
    """
    if any(isinstance(raw.get("launcher"), Mapping) and raw["launcher"].get("dry_run") == "json" for raw, _ in configs):
        _leave_stdout_to_json()
    checker = Checker(outputs_dir())
    jobs = check_all(checker, configs)
    with _defects():
        _run(jobs, checker, expected=expected, request=request)
    return jobs


def launch_search(search: Search) -> None:
    """The same for jobs that a search chooses one after another.

    Raises:
        The same as `launch`.
    """
    checker = Checker(outputs_dir())
    jobs: list[Job] = []
    more = _MoreJobs(search, checker, jobs)
    with _defects():
        first = more(1)
        if first:
            _run(first, checker, more=more, expected=search.left + 1)
        search.learn()
        for line in search.summary():
            log.info("%s", line)
        if jobs:
            conclude(jobs)


@contextmanager
def _defects() -> Iterator[None]:
    """From here on, an unforeseen error is not the fault of the configuration."""
    try:
        yield
    except (RunnerError, OSError):
        raise
    except Exception as error:
        raise Defect from error


def _run(
    jobs: Sequence[Job], checker: Checker, *, more: _MoreJobs | None = None, expected: int, request: str = ""
) -> None:
    """Plan these jobs, and run what is missing."""
    settings = jobs[0].settings.launcher
    launcher = find_launcher(settings.name)
    machine, costs = launcher.machine(settings), Predictor()
    if settings.dry_run:
        plan = _plan(jobs, settings, machine, costs, expected)
        show(plan, checker, launcher.preview(plan, settings), as_json=settings.dry_run == "json")
        return
    _refuse_jobs_elsewhere(jobs, settings.name)
    if request:
        for folder in {job.folder.parent for job in jobs}:
            keep_request(folder, request)
    launcher.collect(jobs, settings)
    from runner.track import report_to_agent

    left = list(jobs)
    while left:
        plan = _plan(left, settings, machine, costs, expected)
        show(plan, checker)
        for job in plan.done:
            take_over(job)
            report_to_agent(job.settings.logger, job.folder)
        for job in plan.todo:
            _take_up(job, settings)
        try:
            # Workers in a queue outlive a command: their jobs are watched, or left to them, like newly submitted ones.
            if plan.packs or (plan.elsewhere and isinstance(settings, QueuedLauncher) and settings.name not in APART):
                launcher.launch(plan, settings, more)
            elif more is not None and (following := more(1)):
                left = following
                continue
        except Interrupted:
            break
        except OSError as error:  # workers have saved and ended by now: "nothing was started" would not be enough
            raise RunnerError(
                f"{error}: the command ended early, and some of its jobs may not be done. Once that is fixed, run "
                "the same command again to continue."
            ) from error
        held = [job for job in left if is_held(job.folder)]
        if held:
            _wait_for(held, settings)
        left = []
        for job in {job.folder: job for job in (*plan.elsewhere, *held)}.values():
            if state_of(job.folder) in FINAL:
                report_to_agent(job.settings.logger, job.folder)
            else:  # what another runner left unfinished continues here
                left.append(job)
    if more is None:
        conclude(jobs)


def keep_request(folder: Path, request: str) -> None:
    """Record the request that the jobs of an experiment answer."""
    write_text(ExperimentPaths(folder).multirun, request)


def _take_up(job: Job, settings: LauncherSettings) -> bool:
    """Prepare a job's folder for a worker, unless another runner is faster; returns whether it is ready."""
    try:
        with lock(job.folder):
            if is_done(job, _state(job)):
                return False
            register(job, _state_elsewhere(job, settings))
            return True
    except LockedError:
        log.info("%s: another runner has just started it", job.id)
        return False


def _state_elsewhere(job: Job, settings: LauncherSettings) -> State:
    """A job's state if workers in a queue have it: it costs money, and must be found even if this process dies."""
    manifest = read_manifest(job.folder)
    state = State(manifest.get("state", State.PENDING))
    submitted = isinstance(settings, QueuedLauncher) and Submission.of(manifest).ids
    return state if submitted and state in (State.SUBMITTED, State.RUNNING, State.INTERRUPTED) else State.PENDING


def _plan(jobs: Sequence[Job], settings: LauncherSettings, machine: Machine, costs: Predictor, expected: int) -> Plan:
    states = {job.folder: _state(job) for job in jobs}
    held = [job.folder for job in jobs if job.folder.is_dir() and is_held(job.folder)]
    steps_done = {job.folder: step for job in jobs if job.trains and (step := last_step(job.paths.checkpoints))}
    return make_plan(
        jobs, states, settings,
        machine=machine, costs=costs, elsewhere=held, expected=expected, steps_done=steps_done,
    )  # fmt: skip


class _MoreJobs:
    """Jobs of a search, checked and prepared like those of a sweep."""

    def __init__(self, search: Search, checker: Checker, jobs: list[Job]) -> None:
        self._search, self._checker, self._jobs = search, checker, jobs

    def __call__(self, count: int) -> list[Job]:
        found: list[Job] = []
        # A job that is already done gives its answer at once, and leaves room for others.
        while len(found) < count and (configs := self._search.more(count - len(found))):
            found += [job for config, overrides in configs if (job := self._checked(config, overrides))]
        return found

    def _checked(self, config: Mapping[str, Any], overrides: tuple[str, ...]) -> Job | None:
        try:
            job = self._checker.job(config, overrides)
        except SettingsError as error:
            log.warning("%s: %s", " ".join(overrides), error)
            self._search.refused(overrides, str(error))
            return None
        if done := is_done(job, _state(job)):
            take_over(job)
        self._search.started(overrides, job, again=not done)
        # A search may choose the same values twice before it knows the first result: one job answers for both.
        works = any(each.folder == job.folder for each in self._jobs) and state_of(job.folder) not in FINAL
        self._jobs.append(job)
        return job if not done and not works and _take_up(job, job.settings.launcher) else None


def _wait_for(jobs: Sequence[Job], settings: LauncherSettings) -> None:
    """Wait until another runner releases these jobs, either finished or to be continued here.

    Raises:
        Detached: `launcher.wait=false`.
        Interrupted: Ctrl-C.
    """
    ids = ", ".join(job.id for job in jobs)
    if isinstance(settings, QueuedLauncher) and not settings.wait:
        raise Detached(f"another runner works on {ids}: the same command again collects the results")
    log.info("waiting for %s, which another runner is working on", ids)
    try:
        while any(is_held(job.folder) for job in jobs):
            time.sleep(POLL_S)
    except KeyboardInterrupt as error:
        raise Interrupted("stopped waiting; the other runner goes on") from error


def _state(job: Job) -> State:
    """The state of a job's folder; a job marked completed whose weights are lost does not count as completed."""
    state = state_of(job.folder)
    if state is State.COMPLETED and not job.settings.done_once:
        return State.PENDING
    if state is State.COMPLETED and not job.has_result:
        log.warning("%s is marked as completed, but %s has lost its result: running it again", job.id, job.folder)
        return State.PENDING
    return state


def check_all(checker: Checker, configs: Sequence[Config]) -> list[Job]:
    """Turn every configuration into a job, or raise one error with all of their faults."""
    jobs: list[Job] = []
    faults: dict[str, list[str]] = {}
    places: dict[str, list[str]] = {}
    for config, overrides in configs:
        found = check_one(checker, config, overrides, places)
        if isinstance(found, Job):
            jobs.append(found)
        else:
            faults.setdefault("\n".join(found), []).append(" ".join(overrides) or "the defaults")
    if not faults:
        _refuse_one_endpoint_for_several(jobs)
        return jobs
    wrong = sum(map(len, faults.values()))
    lines = []
    for text, where in faults.items():
        if len(configs) > 1:
            lines.append(f"{where[0]}" + (f" and {len(where) - 1} more" if len(where) > 1 else "") + ":")
        lines += [f"  {line}" for line in text.splitlines()]
    head = "The configuration is invalid" if len(configs) == 1 else f"{wrong} of {len(configs)} jobs are invalid"
    raise SettingsError("\n".join([f"{head}, nothing was started:", *lines]))


def check_one(
    checker: Checker, config: Mapping[str, Any], overrides: tuple[str, ...], places: dict[str, list[str]]
) -> Job | list[str]:
    """The job of a configuration, or the faults in it and in the place where it would run.

    Args:
        places: the faults of places that were already checked, by their settings.
    """
    job: Job | None = None
    faults: list[str] = []
    try:
        job = checker.job(config, overrides)
    except SettingsError as error:
        faults = str(error).splitlines()
    if launcher := launcher_of(config) if job is None else job.settings.launcher:
        place = launcher.model_dump_json()
        # Once for all jobs: a check starts other programs, and the driver's own tool may take a second.
        if place not in places:
            places[place] = [*_folder_faults(), *find_launcher(launcher.name).check(launcher)]
        faults += places[place]
    return faults if job is None or faults else job


def _folder_faults() -> list[str]:
    """Folders on this machine that every job writes to but that cannot be used for it."""
    folders = {"RUNNER_OUTPUTS": outputs_dir()}
    with suppress(SettingsError):  # a missing one is reported where it is read
        folders["RUNNER_CACHE"] = cache_dir()
    return [
        f"{variable} = {str(folder)!r}: {fault}; set it to another folder (with launcher=slurm on a file system that "
        "the nodes share)"
        for variable, folder in folders.items()
        if (fault := folder_fault(folder))
    ]


def _refuse_one_endpoint_for_several(jobs: Sequence[Job]) -> None:
    """Refuse several deployments to the same endpoint in one command.

    Raises:
        SettingsError: several deployments would overwrite each other's endpoint.
    """
    made: dict[tuple[str, str | None], set[str]] = {}
    for job in jobs:
        if isinstance(job.settings, Deploy):
            endpoint = job.settings.endpoint
            made.setdefault((endpoint.name or job.settings.name, endpoint.region), set()).add(job.id)
    for (name, _), ids in made.items():
        if len(ids) > 1:
            raise SettingsError(
                f"endpoint.name: {len(ids)} jobs would deploy to the endpoint {name}, each in place of the other; give "
                "all adapters to one (adapter=[...]), or each job an endpoint.name of its own"
            )


def _refuse_jobs_elsewhere(jobs: Sequence[Job], launcher: str) -> None:
    """Refuse to train here what is being trained elsewhere, where its lock cannot be seen.

    Raises:
        SettingsError: some jobs are on a cluster that shares no files with this machine.
    """
    for job in jobs:
        manifest = read_manifest(job.folder)
        submission = Submission.of(manifest)
        if manifest.get("state") not in (State.SUBMITTED, State.RUNNING):
            continue
        if submission.tuning:
            raise SettingsError(
                f"{job.id} is a trial of the tuning job {submission.tuning}; run the command of that search again to "
                "collect it"
            )
        cluster = submission.cluster
        if cluster in APART and cluster != launcher:
            raise SettingsError(
                f"launcher = {launcher!r}: {job.id} was submitted to {cluster}; run this with launcher={cluster}, or "
                f"stop it first: python -m runner.stop {job.folder.parent}"
            )


def _leave_stdout_to_json() -> None:
    """Send progress messages, such as those about copies from S3, to stderr: a program reads the plan."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
