"""Opens the W&B run of a job: online if that works in time, else offline; under a sweep agent, the agent's run.

Takes settings and names, and returns a mirror. Nothing here raises.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.schema import LoggerSettings
from runner.track.agent import agent_run_id
from runner.track.mirror import OPEN_RUN_IDS, STEP_METRIC, Mirror, WandbMirror
from runner.track.reach import PROBE_TIMEOUT_S, RunMode, choose_mode, server_url, unreachable_because, within

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

# Id of a sweep agent's run -> the job that is mirrored in it.
_job_of_agent_run: dict[str, str] = {}


def open_mirror(
    settings: LoggerSettings,
    *,
    job_id: str,
    experiment_name: str,
    job_name: str,
    config: dict[str, Any],
    folder: Path,
) -> Mirror:
    """Open the W&B run of one job, in at most `settings.timeout_s` plus about a second. Never raises.

    The run's id is WANDB_RUN_ID, or is built from the job's id and the experiment's name: a resumed job continues the
    same run, and the same job in another experiment, which trains in another folder, gets its own run. Several runs
    may be open in one process. If the server cannot be reached, the run is offline. In a process that a W&B sweep
    agent started, the run is the agent's, in the sweep's project; only one job is mirrored there.

    Args:
        settings: the `logger` section; with name `none` or mode `disabled`, the mirror does nothing.
        experiment_name: the group of the run.
        job_name: the title of the run.
        config: the resolved settings, without secrets; they are passed on unchanged. The task becomes the run's type.
        folder: the job's folder; wandb writes into `folder/wandb`.
    """
    if settings.name == "none":
        return Mirror()
    # wandb sends error reports about itself even offline; without a network, the process then ends 10 s late.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        mode = choose_mode(settings.mode)
        if mode == "disabled":
            return Mirror()
        agent_run = agent_run_id()
        if agent_run is not None and _job_of_agent_run.setdefault(agent_run, job_id) != job_id:
            log.warning("W&B: %s is not mirrored: the sweep agent's run %s belongs to %s", job_id, agent_run,
                        _job_of_agent_run[agent_run])  # fmt: skip
            return Mirror()
        task = config.get("task", {}).get("name", "train")
        arguments: dict[str, Any] = {
            "group": experiment_name, "name": job_name, "tags": list(settings.tags), "job_type": task,
            "config": config, "dir": str(folder), "reinit": "create_new",
        }  # fmt: skip
        if agent_run is None:
            # An agent's run gets its id and place from the agent, as the sweep defines them.
            run_id = _run_id(f"{job_id}-{experiment_name}")
            arguments |= {"id": run_id, "project": settings.project, "entity": settings.entity}
        run = _start(arguments, mode, timeout_s=settings.timeout_s)
        run.define_metric("*", step_metric=STEP_METRIC)
    except Exception as error:  # noqa: BLE001 - never fatal, whatever wandb raises
        log.warning("W&B: not used (%s: %s); training continues without it", type(error).__name__, error)
        return Mirror()
    mirror = WandbMirror(run, job_id=job_id, folder=folder, timeout_s=settings.timeout_s)
    if mirror.url:
        log.info("W&B: %s", mirror.url)
    else:
        log.info("W&B: offline; upload it later with: wandb sync %s", run.settings.sync_dir)
    return mirror


def _run_id(own: str) -> str:
    named = os.environ.get("WANDB_RUN_ID")
    if named and named in OPEN_RUN_IDS:
        log.warning("W&B: WANDB_RUN_ID=%s is already used by another job of this process; using %s", named, own)
        return own
    return named or own


def _start(arguments: dict[str, Any], mode: RunMode, *, timeout_s: float) -> Run:
    """An online run if that works within `timeout_s`, else an offline one."""
    import wandb

    def init(run_mode: RunMode) -> Run:
        # wandb must give up shortly before `within` does, so that it still writes the end of its log.
        patience_s = max(timeout_s - 1, timeout_s / 2)
        settings = wandb.Settings(
            sagemaker_disable=True, console="off", silent=True, disable_job_creation=True,
            init_timeout=patience_s, finish_timeout=patience_s, finish_timeout_raises=True,
        )  # fmt: skip
        # Resume offline too: each attempt writes its own log, and a sync appends the steps of one to the other's.
        return wandb.init(**arguments, mode=run_mode, resume="allow", settings=settings)

    if mode == "online":
        reason = unreachable_because(server_url(), min(PROBE_TIMEOUT_S, timeout_s / 2))
        if reason is None:
            try:
                return within(timeout_s, lambda: init("online"), if_late=lambda run: run.finish(exit_code=1))
            except Exception as error:  # noqa: BLE001 - never fatal, whatever wandb raises
                reason = f"{type(error).__name__}: {error}"
                if "id" in arguments:  # wandb keeps the id of a run that it failed to open
                    arguments["id"] += "-offline"
        log.warning("W&B: cannot be reached (%s); this run is logged offline as %s", reason,
                    arguments.get("id", "the sweep agent's"))  # fmt: skip
    return init("offline")
