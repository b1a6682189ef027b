"""What Hydra calls after composing: passes plain configurations to the one door, and results back."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runner.check import Checker
from runner.command.compose import plain, refuse_outdone, refuse_swept_launcher, typed_in
from runner.command.grammar import empty_sweeps
from runner.errors import Refusals, SettingsError, not_started
from runner.jobs.job import read_manifest
from runner.launch.door import Config, check_all, launch
from runner.paths import outputs_dir

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig


MANY_JOBS = 200
"""This many take some seconds to compose and check; a thousand take half a minute."""


def single(config: DictConfig) -> None:
    """Run what Hydra composed without `-m`: a batch of one."""
    from hydra.core.hydra_config import HydraConfig

    # On stderr, because a program may be reading stdout (launcher.dry_run=json).
    if params := HydraConfig.get().sweeper.get("params"):
        sweeps = " ".join(f"{key}={value}" for key, value in params.items())
        sys.stderr.write(f"a single job: the sweep of the recipe ({sweeps}) needs -m (python -m runner -m ...)\n")
    configs = [(plain(config), tuple(typed_in(HydraConfig.get())))]
    _refuse(configs, lambda: _refuse_search(HydraConfig.get()), lambda: refuse_outdone(config, HydraConfig.get()))
    launch(configs)


def _refuse_search(hydra: HydraConf) -> None:
    sweeper = hydra.runtime.choices.get("hydra/sweeper")
    if sweeper not in (None, "grid"):
        raise SettingsError(f"hydra/sweeper = {sweeper}: has no effect without -m (python -m runner -m ...)")


def _refuse(configs: Sequence[Config], *looks: Callable[[], None]) -> None:
    """Raises SettingsError if a look does, and adds the faults of the jobs, which the door would report only later."""
    wrong = Refusals()
    for look in looks:
        wrong.of(look)
    if wrong.texts:
        wrong.of(lambda: check_all(Checker(outputs_dir()), configs))
        wrong.raise_if_any()


def _as_typed(override: str) -> str:
    # Hydra writes the values of a sweep anew, with the braces of references escaped.
    return re.sub(r"\$\\\{([^{}\\]*)\\\}", r"${\1}", override)


def sweep(loader: ConfigLoader, master: DictConfig, batch: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Run what Hydra's sweeper composed with `-m`; all jobs are known before the first starts."""
    from hydra.core.utils import JobReturn, JobStatus
    from omegaconf import OmegaConf

    if not batch:
        params = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
        faults = empty_sweeps([*params, *typed_in(master.hydra)], loader)
        raise not_started("The sweep has no jobs", faults)
    if len(batch) >= MANY_JOBS:  # on stderr, as above
        sys.stderr.write(f"{len(batch)} jobs: every one is composed and checked before the first one starts\n")
    configs = [
        (loader.load_sweep_config(master, list(overrides)), tuple(map(_as_typed, overrides))) for overrides in batch
    ]
    resolved = [(plain(config), overrides) for config, overrides in configs]
    _refuse(resolved, lambda: refuse_swept_launcher(configs))
    jobs = launch(resolved, request=OmegaConf.to_yaml(master))
    results = []
    for job, (config, overrides) in zip(jobs, configs, strict=True):
        result = JobReturn(overrides=overrides, cfg=config, working_dir=str(job.folder), task_name="runner")
        result.status = JobStatus.COMPLETED
        result.return_value = read_manifest(job.folder).get("objective")
        results.append(result)
    return results
