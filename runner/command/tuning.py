"""What Hydra's sweeper `sagemaker_tuning` does: the space of the command line becomes a SageMaker tuning job."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from runner.check import Checker
from runner.command.compose import Composer, plain
from runner.command.grammar import space_of, unswept
from runner.command.trials import (
    checked_settings,
    checked_trainings,
    examples,
    first_values,
    flat,
    other_values,
)
from runner.container.settings import laid_over
from runner.errors import Refusals, RunnerError
from runner.jobs.job import Job
from runner.launch.door import Config, keep_request
from runner.launchers import sagemaker
from runner.paths import outputs_dir
from runner.plan import Plan, Predictor, make_plan
from runner.schema import SageMakerLauncher, TuningSettings
from runner.search import Parameter
from runner.search.tuning.checks import (
    faults_of_inputs,
    faults_of_permissions,
    faults_of_settings,
    refuse,
    require_sagemaker,
)
from runner.search.tuning.preview import all_trials, preview_data, preview_lines, search_lines
from runner.search.tuning.ranges import Range, ranges_of
from runner.search.tuning.request import search_key
from runner.search.tuning.search import TuningSearch

log = logging.getLogger(__name__)


class _Space:
    """The space of a command, and the jobs in it."""

    def __init__(
        self, loader: ConfigLoader, master: DictConfig, parameters: Sequence[Parameter], fixed: Sequence[str]
    ) -> None:
        self.parameters, self.fixed = parameters, fixed
        self.checker = Checker(outputs_dir())
        self._composer, self._master = Composer(loader), master

    def compose(self, overrides: Sequence[str]) -> Config:
        """The configuration of one job."""
        every = (*self.fixed, *overrides)
        return plain(self._composer.load_sweep_config(self._master, list(every))), every

    def composed(self, key: str, text: str) -> Mapping[str, Any]:
        """The configuration with one setting at a given value, and all others at their first."""
        chosen = {**first_values(self.parameters), key: text}
        return self.compose([f"{each}={value}" for each, value in chosen.items()])[0]


def run_tuning(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Let SageMaker search with the sweeps in `arguments` as the space; see `run_search` for the arguments.

    Raises:
        SettingsError: the space, the settings or one of the ends of the space is wrong; nothing has started.
    """
    wrong = Refusals()
    chosen = wrong.of(lambda: checked_settings(TuningSettings, settings))
    known = wrong.of(lambda: space_of(arguments, loader))
    space = _Space(loader, master, *(known or ([], unswept(arguments, loader))))
    found = examples(space.parameters, space.compose)
    first = found[0][0]
    jobs = wrong.of(lambda: checked_trainings(space.checker, found))
    ranges = wrong.of(lambda: _ranges_there(space, first))
    wrong.raise_if_any()
    assert chosen is not None and jobs is not None and ranges is not None
    base, launcher = jobs[0], jobs[0].settings.launcher
    assert isinstance(launcher, SageMakerLauncher)
    tried = [f"{key}={text}" for key, text in other_values(space.parameters)]
    refuse([*faults_of_settings(base.experiment, launcher, chosen), *faults_of_inputs(jobs, tried)])
    refuse(_faults_of_laying(space, ranges, first, jobs))
    plan = _plan_of_one(base, launcher)
    search = TuningSearch(
        key=search_key(ranges, base.identity, chosen, base.experiment.objective),
        base=base,
        fixed=space.fixed,
        ranges=ranges,
        settings=chosen,
        processes=plan.packs[0].processes,
        job_of=lambda values: _job_of(space, ranges, values),
    )
    if launcher.dry_run == "json":
        log.info("%s", json.dumps(preview_data(search, plan, launcher), indent=2))
        return
    data = space.checker.dataset_of(base).report.lines()
    if launcher.dry_run:
        _say([*preview_lines(search, plan, launcher), *data])
        return
    refuse(faults_of_permissions(launcher))
    _say([*search_lines(search), *data])
    reached = sagemaker.ready(all_trials(plan, chosen.n_trials), launcher)
    keep_request(base.folder.parent, OmegaConf.to_yaml(master))
    search.run(reached)


def _ranges_there(space: _Space, first: Mapping[str, Any]) -> list[Range]:
    """The space as SageMaker's ranges, after checking that jobs run on SageMaker."""
    require_sagemaker(first)
    return ranges_of(space.parameters, space.composed)


def _plan_of_one(base: Job, launcher: SageMakerLauncher) -> Plan:
    """How a trial runs: alone in a training job."""
    alone = launcher.model_copy(update={"pack": 1})
    return make_plan([base], {}, alone, machine=sagemaker.machine(alone), costs=Predictor())


def _job_of(space: _Space, ranges: Sequence[Range], values: Mapping[str, str]) -> Job:
    if missing := [each.name for each in ranges if each.name not in values]:
        raise RunnerError(f"SageMaker has chosen no {', '.join(missing)}")
    config, every = space.compose([each.override(values[each.name]) for each in ranges])
    return space.checker.job(config, every)


def _faults_of_laying(
    space: _Space, ranges: Sequence[Range], first: Mapping[str, Any], jobs: Sequence[Job]
) -> list[str]:
    """Faults of choices that change more in Hydra than in the container, which only lays values over settings."""
    by_key: dict[str, Range] = dict(zip([each.key for each in space.parameters], ranges, strict=True))
    faults = []
    for (key, text), job in zip(other_values(space.parameters), jobs[1:], strict=True):
        each = by_key[key]
        sent = next((value for value, override in each.values.items() if override == f"{key}={text}"), text)
        laid = laid_over(first, {each.name: sent})
        if space.checker.job(laid).id != job.id:
            there, here = flat(laid), flat(space.composed(key, text))
            also = sorted(name for name in here if here[name] != there.get(name) and not name.startswith(each.name))
            faults.append(
                f"{key}={text}: changes {', '.join(also)} too, and SageMaker varies single settings; sweep those, or "
                "give them values of their own"
            )
    return faults


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        log.info("%s", line)
