"""How a command's jobs went: the reports of their experiments, one table, and an error if a job did not complete."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.errors import Interrupted, JobsFailed, RunnerError, SettingsError
from runner.jobs.job import (
    GOOD,
    Job,
    State,
    common_overrides,
    own_overrides,
    read_job,
    read_manifest,
    update_manifest,
    write_config,
)
from runner.jobs.lock import LockedError, lock
from runner.paths import ExperimentPaths
from runner.schema import Experiment

log = logging.getLogger(__name__)


def take_over(job: Job) -> None:
    """Give a job that was done before what this command needs of its folder.

    That is its config.yaml if it was lost or damaged, because reports, tasks and clean read it, and for a training the
    result that this command compares by; its id does not depend on that choice.
    """
    _restore_config(job)
    _judge(job)


def _restore_config(job: Job) -> None:
    try:
        read_job(job.folder)
    except RunnerError:
        with suppress(LockedError), lock(job.folder):
            write_config(job)


def _judge(job: Job) -> None:
    from runner.track import MetricsFile

    manifest = read_manifest(job.folder)
    if not job.trains or "objective_name" not in manifest:
        return
    name, direction = job.experiment.objective.name, job.experiment.objective.direction
    if (name, direction) == (manifest["objective_name"], manifest.get("objective_direction")):
        return
    curve = MetricsFile(job.paths.metrics).values(name)
    if not curve:
        log.warning("%s: its record has no %s, so it cannot be compared by that metric", job.id, name)
    result = {"objective": curve[-1][1] if curve else None} if "objective" in manifest else {}
    with suppress(LockedError), lock(job.folder):  # or another runner has it
        trained = read_job(job.folder)
        chosen = trained.experiment.model_copy(update={"objective": job.experiment.objective})
        write_config(dataclasses.replace(trained, settings=chosen))
        update_manifest(job.folder, **result, objective_name=name, objective_direction=direction)


def conclude(jobs: Sequence[Job]) -> None:
    """Write each experiment's report, and report how every job went.

    Raises:
        JobsFailed: at least one failed; the message is a table of them.
        Interrupted: none failed, but at least one is not done.
        RunnerError: all are done, but a report cannot be written.
    """
    distinct = {job.folder: job for job in jobs}
    manifests = {folder: _manifest_in(folder) for folder in distinct}
    states = {folder: State(manifest.get("state", State.PENDING)) for folder, manifest in manifests.items()}
    reports: list[Path] = []
    fault: OSError | None = None
    try:
        reports = _write_reports(list(distinct.values()))
    except OSError as full:  # the outcome of the jobs must still be reported
        fault = full
    _log_table(list(distinct.values()), manifests, best=_best_of(distinct, reports))
    for report in reports:
        log.info("report: %s", report)
    if fault is not None:
        log.error("the report cannot be written: %s", fault)
    failed = [job for job in distinct.values() if states[job.folder] is State.FAILED]
    if failed:
        common = common_overrides(jobs)
        lines = [f"{len(failed)} of {len(distinct)} jobs failed:"]
        for job in failed:
            error = manifests[job.folder].get("error")
            own = own_overrides(job, common)
            lines += [f"  {job.id} {own}".rstrip(), f"    {error}", f"    log: {job.paths.log}"]
        raise JobsFailed("\n".join([*lines, "Run the same command again to retry only these."]))
    stopped = [job for job in distinct.values() if states[job.folder] not in GOOD]
    if stopped:
        raise Interrupted(
            f"interrupted: {len(stopped)} of {len(distinct)} jobs are not done. "
            "Run the same command again to continue them."
        )
    if fault is not None:
        raise RunnerError(
            "All jobs are done but for the report. Once that is fixed, write it with: python -m runner.report "
            + " ".join(sorted({str(job.folder.parent) for job in distinct.values()}))
        ) from fault


def _write_reports(jobs: Sequence[Job]) -> list[Path]:
    from runner.report import differing_keys, write_report
    from runner.track import save_workspace

    experiments = {job.folder.parent: job.settings for job in jobs}
    reports = []
    for folder, experiment in experiments.items():
        reports.append(write_report(folder))
        if isinstance(experiment, Experiment) and (keys := differing_keys(folder)):
            name, chosen = experiment.name, experiment.objective
            save_workspace(experiment.logger, experiment=name, keys=keys, folder=folder, objective=chosen)
    return reports


def _manifest_in(folder: Path) -> Mapping[str, Any]:
    """The content of a manifest; if it was damaged after its job ended, a note of that."""
    try:
        return read_manifest(folder)
    except SettingsError as error:
        return {"state": State.FAILED, "error": str(error)}


def _best_of(folders: Collection[Path], reports: Sequence[Path]) -> set[Path]:
    """The folders of the jobs that reports call the best of their experiment, for experiments with several jobs."""
    sizes = Counter(folder.parent for folder in folders)
    experiments = [report.parent for report in reports if sizes[report.parent] > 1]
    summaries = {each: json.loads(ExperimentPaths(each).summary.read_text(encoding="utf-8")) for each in experiments}
    return {experiment / summary["best"] for experiment, summary in summaries.items() if summary["best"]}


def _log_table(
    jobs: Sequence[Job], manifests: Mapping[Path, Mapping[str, Any]], *, best: Collection[Path] = ()
) -> None:
    common = common_overrides(jobs)
    results = [_result(manifests[job.folder]) + " (best)" * (job.folder in best) for job in jobs]
    width = max(map(len, results), default=0)
    for job, result in zip(jobs, results, strict=True):
        state = manifests[job.folder].get("state", State.PENDING)
        log.info("%s", f"{job.id}  {state:<11} {result:<{width}}  {own_overrides(job, common)}".rstrip())


def _result(manifest: Mapping[str, Any]) -> str:
    """A job's result, in words."""
    if (objective := manifest.get("objective")) is not None:
        return f"{manifest['objective_name']} {objective:.4f}"
    # The reason for pruning stays in the manifest of a job that is continued later.
    return str(manifest.get("reason", "")) if manifest.get("state") == State.PRUNED else ""
