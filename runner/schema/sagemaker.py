"""`launcher=sagemaker`: the settings of training jobs on Amazon SageMaker (docs/sagemaker.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from runner.schema.aws import INSTANCE, AwsSettings
from runner.schema.instances import INSTANCES
from runner.schema.knob import knob
from runner.schema.launching import QueuedLauncher
from runner.system.amounts import count


class SageMakerLauncher(QueuedLauncher, AwsSettings):
    """`launcher=sagemaker`: training jobs on Amazon SageMaker (docs/sagemaker.md)."""

    name: Literal["sagemaker"] = knob("sagemaker", doc="Where jobs run.")
    concurrency: int | None = knob(
        None,
        ge=1,
        unit="training jobs",
        doc="Training jobs that run at the same time, among which the jobs are divided. Null is one for each pack.",
    )
    wait: bool = knob(
        True,
        doc="Wait until all jobs are done; with `false` the command returns at once, and the same command, or `python "
        "-m runner.status`, collects the results later.",
    )
    local: bool = knob(
        False,
        doc="Run the same image with the same inputs in containers on this machine (docker or podman), without AWS; "
        "settings of the account are then not used.",
    )
    instance: Annotated[str, INSTANCE] = knob("ml.g6e.xlarge", doc="Instance type; each of its GPUs trains a pack.")
    instances: int = knob(
        1,
        ge=1,
        le=20,
        unit="instances",
        doc="Instances of each training job; if there are several, they share every batch.",
    )
    spot: bool = knob(True, doc="Spot instances: about a third of the price; an interrupted job continues by itself.")
    max_hours: float = knob(
        24.0,
        gt=0,
        le=672,
        unit="hours",
        doc="Longest that a training job may run; unfinished jobs are submitted again.",
    )
    max_wait_hours: float | None = knob(
        None,
        gt=0,
        le=672,
        unit="hours",
        doc="Longest that a training job may wait for spot instances and run in all; null is `max_hours` plus a day.",
    )
    keep_alive_s: int = knob(
        0,
        ge=0,
        le=21600,
        unit="seconds",
        doc="Keep instances, which are billed meanwhile, so that a next training job starts at once (not with spot).",
    )
    volume_gb: int = knob(200, ge=10, le=16384, unit="GB", doc="Disk of each instance.")
    fast_file_over_gb: float = knob(
        50.0, ge=0, unit="GB", doc="Larger data sets are streamed (FastFile) instead of being copied first."
    )
    wandb_secret: str | None = knob(
        None,
        min_length=1,
        doc="ARN or name of a Secrets Manager secret with the W&B API key, which the container fetches itself.",
    )
    hub_secret: str | None = knob(
        None, min_length=1, doc="ARN or name of a Secrets Manager secret with a Hugging Face token, for gated models."
    )
    pass_secrets: bool = knob(
        False,
        doc="Pass WANDB_API_KEY and HF_TOKEN of this environment in the request instead, where anyone who may describe "
        "the job can read them.",
    )
    logs: Literal["stream", "file"] = knob(
        "stream", doc="`stream` shows the lines of all jobs here, `file` only keeps them beside the results."
    )
    poll_s: float = knob(
        30.0, gt=0, le=600, unit="seconds", doc="How often SageMaker is polled; it allows two requests a second in all."
    )

    @property
    def fixed_processes(self) -> int | None:
        """One for each GPU of all instances if there are several; on a single instance, the plan decides."""
        if self.instances == 1:
            return self.processes
        return self.processes or self.instances * max(1, INSTANCES[self.instance].gpus)

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        gpus = INSTANCES[self.instance].gpus
        if self.spot and self.keep_alive_s:
            yield (
                f"keep_alive_s = {self.keep_alive_s}: spot instances cannot be kept; remove it, or set "
                "launcher.spot=false"
            )
        if not self.spot:
            yield from self.idle("max_wait_hours", because="with launcher.spot=false")
        elif self.max_wait_hours is not None and self.max_wait_hours < self.max_hours:
            yield (
                f"max_wait_hours = {self.max_wait_hours}: includes the time that a job runs, so it cannot be below "
                f"launcher.max_hours = {self.max_hours}; raise it"
            )
        if self.pass_secrets and (self.wandb_secret or self.hub_secret):
            yield "pass_secrets = true: has no effect on what wandb_secret or hub_secret name; remove one"
        if self.device == "cuda" and not gpus:
            yield f"device = 'cuda': {self.instance} has no GPU; choose another launcher.instance"
        yield from self._faults_of_processes(gpus if self.device != "cpu" else 0)

    def _faults_of_processes(self, gpus: int) -> Iterator[str]:
        if self.processes is None:
            return
        if self.processes % self.instances:
            yield f"processes = {self.processes}: cannot be spread evenly over {self.instances} instances"
        elif gpus and self.processes > gpus * self.instances:
            yield (
                f"processes = {self.processes}: {self.instances} x {self.instance} has "
                f"{count(gpus * self.instances, 'GPU')}; lower it"
            )
        elif gpus and self.instances > 1 and self.processes != gpus * self.instances:
            yield (
                f"processes = {self.processes}: over several instances each GPU has one process, "
                f"{gpus * self.instances} here; leave it out"
            )

    @property
    def max_wait_s(self) -> int:
        """Longest from the request to the end of a spot training job."""
        hours = self.max_wait_hours if self.max_wait_hours is not None else min(672.0, self.max_hours + 24.0)
        return int(hours * 3600)

    @property
    def max_runtime_s(self) -> int:
        """Longest that a training job runs."""
        return max(1, int(self.max_hours * 3600))
