"""Turns settings into the file for sbatch; pure, and the same for a dry run as for a submission."""

from __future__ import annotations

import shlex
from typing import Any

from runner.launchers.cluster import Order
from runner.launchers.worker import python_path, torch_arguments, worker_arguments, worker_defaults
from runner.paths import cache_dir
from runner.schema import SlurmLauncher
from runner.work import WORKER_NAME

NAMES = {"slurm": "slurm", "local": "background"}
"""The name of each kind of `launcher.cluster` in folders and messages."""
GPU_PARAMETERS = ("gres", "gpus", "gpus_per_node", "gpus_per_task")
"""Other ways to ask sbatch for GPUs; if one of them is used, ours is left out."""
FIRST_PORT, PORTS = 20000, 20000
MEETING_POINT = "RUNNER_MEETING_POINT"
"""Environment variable with the host and port where the processes of several nodes find each other."""


def submission_text(settings: SlurmLauncher, order: Order) -> str:
    """The whole file."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(
        command=command_text(settings, order), folder=order.queue.parent, **parameters(settings, order)
    )


def command_text(settings: SlurmLauncher, order: Order) -> str:
    """The shell command that srun starts on each node."""
    if settings.nodes == 1:
        return shlex.join(order.command)
    python, *worker = worker_arguments(order.queue, at_once=order.at_once, device=order.device)
    group = torch_arguments(order.processes // settings.nodes, nodes=settings.nodes)
    meeting = f'--rdzv_backend c10d --rdzv_endpoint "${MEETING_POINT}" --rdzv_id "$SLURM_JOB_ID"'
    return f"{shlex.join([python, *group])} {meeting} {shlex.join(worker)}"


def parameters(settings: SlurmLauncher, order: Order, *, after: str | None = None) -> dict[str, Any]:
    """The parameters that submitit makes the file from."""
    others = {key.replace("-", "_"): value for key, value in (settings.sbatch or {}).items()}
    asks_itself = any(key in others for key in GPU_PARAMETERS)
    cores = settings.cpus_per_task
    # A worker that Slurm restarts under the same id finds its jobs as the killed one left them, and does not recognise
    # them as its own: a new worker is submitted instead, once the fate of the first is known.
    restarts = {} if "requeue" in others else {"no_requeue": True}
    return {
        "job_name": order.title,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "time": settings.time_limit_min,
        "nodes": settings.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": None if asks_itself else settings.gpus_per_node or None,
        "cpus_per_task": cores,
        "mem": None if settings.mem_gb is None else f"{settings.mem_gb}GB",
        "dependency": None if after is None else f"afterany:{after}",
        "wckey": None,
        "stderr_to_stdout": True,
        # A worker saves on TERM; Slurm sends it to the processes that srun started.
        "additional_parameters": {"signal": f"TERM@{settings.save_before_s}", **restarts, **others},
        "setup": [*_exports(settings, order), *settings.setup],
        # Since Slurm 22.05, srun no longer inherits the number of cores from sbatch.
        "srun_args": ["--kill-on-bad-exit=1", *([] if cores is None else [f"--cpus-per-task={cores}"])],
    }


def _exports(settings: SlurmLauncher, order: Order) -> list[str]:
    """Shell lines that set a worker's environment."""
    processes = order.processes // settings.nodes
    threads = None if settings.cpus_per_task is None else max(1, settings.cpus_per_task // processes)
    fixed = {"PYTHONPATH": python_path(), "RUNNER_CACHE": str(cache_dir())}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in fixed.items()]
    lines += [f'export {name}="${{{name}:-{value}}}"' for name, value in worker_defaults(threads).items()]
    lines.append(f'export {WORKER_NAME}="$SLURM_JOB_ID"')
    if settings.nodes > 1:
        host = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        lines.append(f'export {MEETING_POINT}="{host}:$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))"')
    return lines
