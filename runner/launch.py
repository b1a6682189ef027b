"""The one door: a single run, a grid and a search all come through `launch` as a list of jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from runner.check import Checker
from runner.errors import Interrupted, JobsFailed, SettingsError
from runner.job import Job, State, lock, read_manifest, register, state_of
from runner.launchers import find_launcher
from runner.paths import outputs_dir
from runner.plan import Plan, make_plan
from runner.schema import LocalLauncher

log = logging.getLogger(__name__)


def launch(configs: Sequence[tuple[Mapping[str, Any], tuple[str, ...]]]) -> list[Job]:
    """Check all configurations, plan, run what is missing, and say how it went.

    Args:
        configs: the resolved configuration and the overrides of each job.

    Returns:
        The jobs, in the order of `configs`.

    Raises:
        SettingsError: at least one configuration is wrong; nothing was started.
        JobsFailed: at least one job did not complete.
        Interrupted: a signal stopped the run; what was done is saved.
    """
    checker = Checker(outputs_dir())
    jobs = check_all(checker, configs)
    launcher = jobs[0].experiment.launcher
    plan = make_plan(jobs, {job.folder: _state(job) for job in jobs}, launcher)
    show(plan, checker)
    if launcher.dry_run:
        return jobs
    if plan.packs:
        _run(plan, launcher)
    _report(jobs)
    return jobs


def _state(job: Job) -> State:
    """The state of a job's folder; one that says completed and has lost its weights is not."""
    state = state_of(job.folder)
    if state is State.COMPLETED and not job.paths.weights.is_file():
        log.warning("%s says that it is completed, but %s is gone: it runs again", job.id, job.paths.weights)
        return State.PENDING
    return state


def check_all(checker: Checker, configs: Sequence[tuple[Mapping[str, Any], tuple[str, ...]]]) -> list[Job]:
    """Turn every configuration into a job, or raise one error with the faults of all of them."""
    jobs: list[Job] = []
    faults: dict[str, list[str]] = {}
    for config, overrides in configs:
        try:
            job = checker.job(config, overrides)
            launcher = job.experiment.launcher
            if wrong_place := find_launcher(launcher.name).check(launcher):
                raise SettingsError("\n".join(wrong_place))
            jobs.append(job)
        except SettingsError as error:
            faults.setdefault(str(error), []).append(" ".join(overrides) or "the defaults")
    if not faults:
        return jobs
    wrong = sum(map(len, faults.values()))
    lines = []
    for text, where in faults.items():
        if len(configs) > 1:
            lines.append(f"{where[0]}" + (f" and {len(where) - 1} more" if len(where) > 1 else "") + ":")
        lines += [f"  {line}" for line in text.splitlines()]
    head = "The configuration is invalid" if len(configs) == 1 else f"{wrong} of {len(configs)} jobs are invalid"
    raise SettingsError("\n".join([f"{head}, nothing was started:", *lines]))


def show(plan: Plan, checker: Checker) -> None:
    """Print the plan, and what of each data set is used."""
    for line in plan.lines():
        log.info("%s", line)
    shown = set()
    for job in plan.todo:
        dataset = checker.dataset_of(job)
        key = (dataset.fingerprint, job.experiment.resolution)
        if key not in shown:
            shown.add(key)
            for line in dataset.report.lines():
                log.info("%s", line)


def _run(plan: Plan, launcher: LocalLauncher) -> None:
    for job in plan.todo:
        with lock(job.folder):
            register(job)
    find_launcher(launcher.name).launch(plan, launcher)


def _report(jobs: Sequence[Job]) -> None:
    """Write each experiment's report, print how every job went, and raise if one did not complete."""
    from runner.report import write_report

    distinct = list({job.folder: job for job in jobs}.values())
    states = {job.folder: state_of(job.folder) for job in distinct}
    common = set.intersection(*(set(job.overrides) for job in distinct)) if len(distinct) > 1 else set()
    reports = [write_report(folder) for folder in dict.fromkeys(job.folder.parent for job in distinct)]
    for job in distinct:
        manifest = read_manifest(job.folder)
        objective = manifest.get("objective")
        log.info(
            "%s  %-11s %s  %s",
            job.id,
            states[job.folder].value,
            "" if objective is None else f"{manifest['objective_name']} {objective:.4f}",
            " ".join(text for text in job.overrides if text not in common),
        )
    for report in reports:
        log.info("report: %s", report)
    failed = [job for job in distinct if states[job.folder] is State.FAILED]
    if failed:
        lines = [f"{len(failed)} of {len(distinct)} jobs failed:"]
        for job in failed:
            lines += [
                f"  {job.id} {' '.join(job.overrides)}",
                f"    {read_manifest(job.folder).get('error')}",
            ]
            lines += [f"    log: {job.paths.log}"]
        raise JobsFailed("\n".join([*lines, "Run the same command again to retry only these."]))
    stopped = [job for job in distinct if states[job.folder] is not State.COMPLETED]
    if stopped:
        raise Interrupted(
            f"interrupted: {len(stopped)} of {len(distinct)} jobs are not done. "
            "Run the same command again to continue them."
        )
