"""Weights & Biases as a mirror of the job folder: what is logged there is also in the record here.

Takes numbers, image files and folders. Nothing it does can stop or hold up training: a failure is logged
once, with its reason, and the mirror goes quiet. It does not read the record; `runner.track.rebuild` does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from runner.track.reach import RunMode, choose_mode, server_url, unreachable_because, within

if TYPE_CHECKING:
    from wandb import Run

LOG = logging.getLogger(__name__)

STEP_METRIC = "global_step"

# How long the question "is there a server at all" may take, out of logger.timeout_s.
PROBE_TIMEOUT_S = 5.0

# W&B knows a run as finished or failed by its exit code; these states are no failure.
GOOD_STATES = frozenset({"completed", "pruned"})

_open_run_ids: set[str] = set()


class LoggerSettings(Protocol):
    """The `logger` section of the settings, as far as the mirror reads it."""

    @property
    def name(self) -> str:
        """`wandb`, or `none` for no mirror."""

    @property
    def mode(self) -> str:
        """auto, online, offline or disabled."""

    @property
    def project(self) -> str | None:
        """The W&B project; None is W&B's default."""

    @property
    def entity(self) -> str | None:
        """The user or team; None is the key's default."""

    @property
    def tags(self) -> Sequence[str]:
        """Words to find the run by."""

    @property
    def timeout_s(self) -> float:
        """The longest that opening and that finishing may each take, in seconds."""


class Mirror(Protocol):
    """Where a job's numbers, images and adapter go besides its folder. No method raises."""

    url: str | None
    """The page of the run, or None where there is none (offline, disabled)."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named numbers at an optimizer step; steps may repeat and, after a resume, go back."""

    def images(self, step: int, images: Sequence[tuple[Path, str]]) -> None:
        """Log image files with their captions as one row of samples."""

    def adapter(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Log all files in `folder` as an artifact of type `lora`. They must not change afterwards."""

    def finish(self, state: str, summary: Mapping[str, Any]) -> None:
        """Close the run in a state of the job (completed, failed, interrupted, ...); a second call does nothing."""


class NullMirror:
    """The mirror of a job that has none."""

    url: str | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def images(self, step: int, images: Sequence[tuple[Path, str]]) -> None:
        """Do nothing."""

    def adapter(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, state: str, summary: Mapping[str, Any]) -> None:
        """Do nothing."""


class WandbMirror:
    """One W&B run, wrapped so that no call raises and none outlasts `timeout_s`. Made by `open_mirror`.

    Args:
        run: an initialised run.
        job_id: names the adapter's artifact.
        timeout_s: the longest that `finish` may take.
    """

    def __init__(self, run: Run, *, job_id: str, timeout_s: float) -> None:
        self.url: str | None = None if run.offline else run.url
        self._run = run
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._finished = False
        self._quiet = False
        self._last_step = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named numbers; the step is a value of its own, so that W&B drops none after a resume."""
        self._last_step = step
        self._guarded("logging metrics", lambda: self._run.log({**values, STEP_METRIC: step}))

    def images(self, step: int, images: Sequence[tuple[Path, str]]) -> None:
        """Log image files with their captions as one row under `samples`."""

        def send() -> None:
            import wandb

            row = [wandb.Image(str(path), caption=caption) for path, caption in images]
            self._run.log({"samples": row, STEP_METRIC: step})

        if images:
            self._guarded("logging images", send)

    def adapter(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Log all files in `folder` as the artifact `lora-<job id>`, with aliases latest and step-<last step>."""

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(f"lora-{self._job_id}", type="lora", metadata=dict(metadata))
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                # Immutable and uncached, or wandb copies each file to its own folders in the home directory.
                artifact.add_file(
                    str(path), name=path.relative_to(folder).as_posix(), skip_cache=True, policy="immutable"
                )
            self._run.log_artifact(artifact, aliases=["latest", f"step-{self._last_step}"])

        self._guarded("logging the adapter", send)

    def finish(self, state: str, summary: Mapping[str, Any]) -> None:
        """Upload what is left and close the run, within `timeout_s`; what did not get through stays on disk."""
        if self._finished:
            return
        self._finished = True
        _open_run_ids.discard(self._run.id)

        def send() -> None:
            self._run.summary.update({**summary, "state": state})
            if state == "interrupted":
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if state in GOOD_STATES else 1)

        def close() -> None:
            within(self._timeout_s, send)

        self._quiet = False
        self._guarded("finishing", close)

    def _guarded(self, what: str, call: Callable[[], None]) -> None:
        if self._quiet:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - never fatal, whatever wandb raises
            self._quiet = True
            LOG.warning(
                "W&B: %s failed (%s: %s); training goes on without it. The record is whole in metrics.jsonl; "
                "upload what wandb kept with: wandb sync --include-online %s",
                what, type(error).__name__, error, self._run.settings.sync_dir,
            )  # fmt: skip


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

    The run's id is WANDB_RUN_ID, or the job's id, so that a resumed job continues the same run. Several runs
    may be open in one process. When the server cannot be had, the run is offline.

    Args:
        settings: the `logger` section; with name `none` or mode `disabled` the mirror does nothing.
        job_id: the job's id.
        experiment_name: the group of the run.
        job_name: the title of the run.
        config: the resolved settings, without secrets; they are passed on as they are.
        folder: the job's folder; wandb writes into `folder/wandb`.
    """
    if settings.name == "none":
        return NullMirror()
    # wandb reports on itself to its server, even offline, and without a network the process then ends 10 s late.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        mode = choose_mode(settings.mode)
        if mode == "disabled":
            return NullMirror()
        arguments = {
            "id": job_id, "project": settings.project, "entity": settings.entity,
            "group": experiment_name, "name": job_name, "tags": list(settings.tags), "job_type": "train",
            "config": config, "dir": str(folder), "reinit": "create_new",
        }  # fmt: skip
        run = _start(arguments, mode, timeout_s=settings.timeout_s)
        run.define_metric("*", step_metric=STEP_METRIC)
    except Exception as error:  # noqa: BLE001 - never fatal, whatever wandb raises
        LOG.warning("W&B: not used (%s: %s); training goes on without it", type(error).__name__, error)
        return NullMirror()
    _open_run_ids.add(run.id)
    mirror = WandbMirror(run, job_id=job_id, timeout_s=settings.timeout_s)
    if mirror.url:
        LOG.info("W&B: %s", mirror.url)
    else:
        LOG.info("W&B: offline; upload it later with: wandb sync %s", run.settings.sync_dir)
    return mirror


def _run_id(job_id: str) -> str:
    named = os.environ.get("WANDB_RUN_ID")
    if named and named in _open_run_ids:
        LOG.warning("W&B: WANDB_RUN_ID=%s is taken by another job of this process; using %s", named, job_id)
        return job_id
    return named or job_id


def _start(arguments: dict[str, Any], mode: RunMode, *, timeout_s: float) -> Run:
    """An online run where that works within `timeout_s`, else an offline one."""
    import wandb

    def init(run_mode: RunMode, run_id: str) -> Run:
        # wandb gives up shortly before `within` does, so that it still writes the end of its log.
        patience_s = max(timeout_s - 1, timeout_s / 2)
        settings = wandb.Settings(
            sagemaker_disable=True, console="off", silent=True, disable_job_creation=True,
            init_timeout=patience_s, finish_timeout=patience_s, finish_timeout_raises=True,
        )  # fmt: skip
        # Offline there is nothing to resume: each attempt writes its own log, and a sync joins them by id.
        resume: Literal["allow"] | None = "allow" if run_mode == "online" else None
        return wandb.init(**arguments, id=run_id, mode=run_mode, resume=resume, settings=settings)

    run_id = _run_id(arguments.pop("id"))
    if mode == "online":
        reason = unreachable_because(server_url(), min(PROBE_TIMEOUT_S, timeout_s / 2))
        if reason is None:
            try:
                return within(timeout_s, lambda: init("online", run_id), if_late=lambda run: run.finish(exit_code=1))
            except Exception as error:  # noqa: BLE001 - never fatal, whatever wandb raises
                reason = f"{type(error).__name__}: {error}"
                run_id = f"{run_id}-offline"  # wandb keeps the id of a run it failed to open
        LOG.warning("W&B: cannot be reached (%s); this run is logged offline as %s", reason, run_id)
    return init("offline", run_id)
