"""Everything that keeps workers from being submitted, found before anything is, with key, value and fix."""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache
from importlib.util import find_spec

from runner.schema import SlurmLauncher
from runner.schema.messages import nearest
from runner.system.amounts import count
from runner.system.machine import find_gpus

COMMANDS = ("sbatch", "srun", "squeue")
SINFO_TIMEOUT_S = 20


def check(settings: SlurmLauncher) -> list[str]:
    """Everything that is wrong with the place; a dry run submits nothing and works anywhere."""
    faults = []
    if find_spec("submitit") is None:
        faults.append(
            "launcher = 'slurm': needs the package submitit, which is not installed; pip install 'lora-runner[slurm]'"
        )
    if settings.cluster == "local":
        gpus = len(find_gpus()) if settings.gpus_per_node else 0
        if settings.gpus_per_node > gpus:
            faults.append(
                f"launcher.gpus_per_node = {settings.gpus_per_node}: this machine has {count(gpus, 'GPU')}; lower it"
            )
    elif not settings.dry_run:
        faults += _slurm_faults(settings)
    return faults


def _slurm_faults(settings: SlurmLauncher) -> list[str]:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        words = f"there is no {', no '.join(missing)} here; run this on a login node, or set launcher.cluster=local"
        return [f"launcher.cluster = 'slurm': {words} to do without Slurm"]
    known = _partitions()
    wanted = (settings.partition or "").split(",")
    return [
        f"launcher.partition = {name!r}: the cluster has no such partition{nearest(name, known) or ';'} there are: "
        f"{', '.join(known)}"
        for name in wanted
        if name and known and name not in known
    ]


@lru_cache
def _partitions() -> tuple[str, ...]:
    """The cluster's partitions; empty if it does not say."""
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True, timeout=SINFO_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(sorted(set(answer.stdout.split()))) if answer.returncode == 0 else ()
