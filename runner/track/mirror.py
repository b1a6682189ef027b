"""Weights & Biases as a mirror of the job folder: everything logged there is also in the local record.

Takes numbers, image files and folders. Nothing it does can stop or hold up training: a failure is logged
once, with its reason, and the mirror goes quiet. It does not read the record; `runner.track.rebuild` does.
`runner.track.opening` makes mirrors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.schema.metrics import HELD_OUT
from runner.track.agent import agent_run_id
from runner.track.reach import PROBE_TIMEOUT_S, silent_because, unreachable_because, within
from runner.track.samples import for_table, is_whole, read_samples, samples_table

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

STEP_METRIC = "global_step"

# `samples` holds the images as they are generated. A W&B key keeps its first type, so the table needs its own name.
SAMPLES_TABLE = "samples_table"

# W&B tells finished runs from failed ones by their exit code; these states are not failures.
GOOD_STATES = frozenset({"completed", "pruned"})

AGAIN_TIMEOUT_S = 5.0
"""How long to wait for a server that recently did not answer: giving up early loses nothing."""

OPEN_RUN_IDS: set[str] = set()
"""The unfinished runs of this process."""


class Mirror:
    """Where a job's numbers, images and adapter go besides its folder; this base class discards them.

    No method raises.
    """

    url: str | None = None
    """The page of the run, or None if it has none (offline, disabled)."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named numbers at an optimizer step; steps may repeat and, after a resume, go back."""

    def images(self, step: int, images: Sequence[tuple[Path, str]]) -> None:
        """Log image files with their captions as one row of samples."""

    def adapter(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Log all files in `folder` as an artifact of type `lora`. They must not change afterwards."""

    def finish(self, state: str, summary: Mapping[str, Any]) -> None:
        """Close the run with the job's state (completed, failed, interrupted, ...); a second call does nothing.

        The samples in the job's folder become a table. The summary's `objective` is also logged under its own name,
        which is `objective_name` or else validation/loss, because a W&B sweep looks for it there.
        """


class WandbMirror(Mirror):
    """One W&B run, wrapped so that no call raises and none outlasts `timeout_s`.

    Args:
        job_id: names the adapter's artifact.
        timeout_s: the longest that `adapter` and `finish` may take.
    """

    def __init__(self, run: Run, *, job_id: str, folder: Path, timeout_s: float) -> None:
        self.url = None if run.offline else run.url
        self._run = run
        OPEN_RUN_IDS.add(run.id)
        self._job_id = job_id
        self._folder = folder
        self._timeout_s = timeout_s
        self._finished = False
        self._quiet = False
        self._last_step = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named numbers; the step is logged as a separate value, so that W&B drops none after a resume."""
        self._last_step = step
        self._guarded("logging metrics", lambda: self._run.log({**values, STEP_METRIC: step}))

    def images(self, step: int, images: Sequence[tuple[Path, str]]) -> None:
        """Log image files with their captions as one row under `samples`."""

        def send() -> None:
            import wandb

            row = [wandb.Image(str(path), caption=caption) for path, caption in images if is_whole(path)]
            self._run.log({"samples": row, STEP_METRIC: step})

        if images:
            self._guarded("logging images", send)

    def adapter(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Log all files in `folder` as the artifact `lora-<job id>`, with aliases latest and step-<last step>."""

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(f"lora-{self._job_id}", type="lora", metadata=dict(metadata))
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                # Immutable and uncached: otherwise wandb copies each file to its own folders in the home directory.
                artifact.add_file(
                    str(path), name=path.relative_to(folder).as_posix(), skip_cache=True, policy="immutable"
                )
            self._run.log_artifact(artifact, aliases=["latest", f"step-{self._last_step}"])

        # Before it takes any file, wandb asks the server who is logged in, retrying again and again.
        self._guarded("logging the adapter", lambda: within(self._patience_s(), send))

    def finish(self, state: str, summary: Mapping[str, Any]) -> None:
        """Upload the rest and close the run within `timeout_s`; data that did not get through stays on disk."""
        if self._finished:
            return
        self._finished = True
        OPEN_RUN_IDS.discard(self._run.id)

        def send() -> None:
            if state != "interrupted":
                self._guarded("logging the table of samples", self._log_samples_table)
            objective = summary.get("objective")
            named = {} if objective is None else {summary.get("objective_name", HELD_OUT): objective}
            self._run.summary.update({**summary, **named, "state": state})
            # A sweep's server stops runs on purpose, and would start a preempted one again.
            if state == "interrupted" and agent_run_id() is None:
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if state in GOOD_STATES else 1)

        self._quiet = False
        self._guarded("finishing", lambda: within(self._patience_s(), send))

    def _patience_s(self) -> float:
        """How long to wait for calls that ask the server; short if it recently did not answer."""
        if self._run.offline:
            return self._timeout_s
        url, began_s = self._run.settings.base_url, time.monotonic()
        known = silent_because(url)
        # A failure is remembered for the runs that finish next.
        unreachable_because(url, min(PROBE_TIMEOUT_S, self._timeout_s / 2))
        left_s = self._timeout_s - (time.monotonic() - began_s)
        return left_s if known is None else min(left_s, AGAIN_TIMEOUT_S)

    def _log_samples_table(self) -> None:
        if samples := for_table(read_samples(self._folder)):
            self._run.log({SAMPLES_TABLE: samples_table(samples), STEP_METRIC: self._last_step})

    def _guarded(self, what: str, call: Callable[[], None]) -> None:
        if self._quiet:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - never fatal, whatever wandb raises
            self._quiet = True
            log.warning(
                "W&B: %s failed (%s: %s); training continues without it. The full record is in metrics.jsonl; "
                "upload what wandb kept with: wandb sync --include-online %s",
                what, type(error).__name__, error, self._run.settings.sync_dir,
            )  # fmt: skip
