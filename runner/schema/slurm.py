"""`launcher=slurm`: the settings for a Slurm cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import field_validator

from runner.schema.knob import knob
from runner.schema.launching import QueuedLauncher
from runner.system.values import as_typed

ONLY_ON_SLURM = (
    "partition", "account", "qos", "constraint", "nodes", "mem_gb", "setup", "sbatch", "gpu_name", "gpu_memory_gb",
)  # fmt: skip

SBATCH_SETTINGS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "nodes": "nodes",
    "time": "time_limit_min", "cpus_per_task": "cpus_per_task", "mem": "mem_gb",
}  # fmt: skip
"""Parameters of sbatch that have settings of their own."""

SBATCH_TAKEN = (
    "array", "dependency", "error", "job_name", "ntasks", "ntasks_per_node", "open_mode", "output", "parsable",
    "signal", "wait", "wrap",
)  # fmt: skip
"""Parameters of sbatch that the launcher needs for itself."""


class SlurmLauncher(QueuedLauncher):
    """`launcher=slurm`: workers in a Slurm cluster's queue (docs/clusters.md)."""

    name: Literal["slurm"] = knob("slurm", doc="Where jobs run.")
    processes: int | None = knob(
        None, ge=1, doc="Processes that each job is spread over if there is no GPU; null means one for each node."
    )
    cluster: Literal["slurm", "local"] = knob(
        "slurm", doc="`local` runs the same workers in the background of this machine, without Slurm."
    )
    partition: str | None = knob(None, min_length=1, doc="Partition, or several with commas; null is Slurm's default.")
    account: str | None = knob(None, min_length=1, doc="Account to charge.")
    qos: str | None = knob(None, min_length=1, doc="Quality of service.")
    constraint: str | None = knob(None, min_length=1, doc="Features that the nodes must have, such as `a100`.")
    time_limit_min: int = knob(
        720,
        ge=1,
        unit="minutes",
        doc="Longest that a worker runs; unfinished jobs then continue in the next one.",
    )
    save_before_s: int = knob(
        120,
        ge=1,
        unit="seconds",
        doc="How long before that limit a worker is asked to save and stop.",
    )
    nodes: int = knob(1, ge=1, unit="nodes", doc="Nodes that each worker, and so each of its batches, is spread over.")
    gpus_per_node: int = knob(1, ge=0, unit="GPUs", doc="GPUs of a worker on each of its nodes; 0 trains on CPUs.")
    cpus_per_task: int | None = knob(
        None, ge=1, unit="cores", doc="Cores of a worker on each of its nodes; null is Slurm's default."
    )
    mem_gb: int | None = knob(None, ge=1, unit="GB", doc="Host memory on each node; null is Slurm's default.")
    gpu_name: str | None = knob(
        None,
        min_length=1,
        doc="The GPU's name as its driver reports it, such as `NVIDIA H100 80GB HBM3`; the plan uses it to predict "
        "times.",
    )
    gpu_memory_gb: float | None = knob(
        None,
        gt=0,
        unit="GB",
        doc="Memory of a GPU, which sizes `pack=auto`; without it, that is a fixed number of jobs.",
    )
    setup: tuple[str, ...] = knob((), doc="Shell lines to run before a worker starts, such as `module load cuda`.")
    sbatch: dict[str, str | bool] | None = knob(
        None, doc="Further parameters of sbatch by their long names, such as `{reservation: course, exclusive: true}`."
    )

    @field_validator("sbatch", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ValueError("should be a mapping, such as {reservation: course}")
        if wrong := [key for key, each in value.items() if not isinstance(each, (str, int, float)) or each is False]:
            said = "should be a text, a number or true; leave it out to turn it off"
            raise ValueError(f"{wrong[0]} = {as_typed(value[wrong[0]])}: {said}")
        return {str(key): each if each is True else str(each) for key, each in value.items()}

    @field_validator("sbatch")
    @classmethod
    def _not_taken(cls, value: dict[str, str | bool] | None) -> dict[str, str | bool] | None:
        for key in value or {}:
            plain = key.replace("-", "_")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", plain):
                raise ValueError(f"{key}: is not a parameter of sbatch; write its long name, without dashes in front")
            if plain in SBATCH_SETTINGS:
                raise ValueError(f"{key}: has a setting of its own; use launcher.{SBATCH_SETTINGS[plain]}")
            if plain in SBATCH_TAKEN:
                raise ValueError(f"{key}: is set by the launcher itself; remove it")
        return value

    @property
    def fixed_processes(self) -> int:
        """One for each GPU; on CPUs as many as asked for, or one for each node."""
        return self.gpus_per_node * self.nodes or self.processes or self.nodes

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.cluster == "local":
            yield from self.idle(*ONLY_ON_SLURM, because="with launcher.cluster=local")
        if self.save_before_s >= self.time_limit_min * 60:
            yield (
                f"save_before_s = {self.save_before_s}: nothing is left of launcher.time_limit_min = "
                f"{self.time_limit_min}; lower it"
            )
        yield from self._faults_of_gpus()

    def _faults_of_gpus(self) -> Iterator[str]:
        gpus = self.gpus_per_node
        if not gpus:
            yield from self.idle("gpu_name", "gpu_memory_gb", because="with launcher.gpus_per_node=0")
        if (self.device == "cpu" and gpus) or (self.device == "cuda" and not gpus):
            yield (f"device = {self.device!r}: contradicts launcher.gpus_per_node = {gpus}; leave out launcher.device")
        if gpus and self.processes is not None:
            yield (
                f"processes = {self.processes}: each GPU has one process, {self.fixed_processes} for each worker here; "
                "leave it out, and set launcher.gpus_per_node"
            )
        elif self.fixed_processes % self.nodes:
            yield f"processes = {self.processes}: cannot be spread evenly over {self.nodes} nodes"
        if self.cluster == "local" and gpus and (self.concurrency or 1) > 1:
            yield (
                f"concurrency = {self.concurrency}: with launcher.cluster=local all workers use the same GPUs; "
                "take launcher=local"
            )
