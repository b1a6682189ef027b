"""What Hydra's sweeper `optuna` does: trials are composed as the jobs of a sweep are, and go through the same door."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from runner.check import Checker
from runner.command.compose import Composer, plain
from runner.command.grammar import space_of
from runner.errors import SettingsError
from runner.launch import Config, check_all, launch
from runner.paths import ExperimentPaths, outputs_dir
from runner.schema import ObjectiveSettings, SearchSettings
from runner.schema.messages import explain
from runner.search import OptunaSearch, Parameter

log = logging.getLogger(__name__)

WITHOUT_EFFECT = ("launcher", "logger", "checkpoint", "objective", "hydra", "name")
"""What all jobs share and no result depends on: another value does not make another search of it."""


def run_search(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Search with the sweeps in `arguments` as the space.

    Args:
        loader: composes jobs.
        master: what Hydra composed of the command.
        arguments: the overrides of the command, those of `hydra.sweeper.params` before them.
        settings: the other keys of `hydra.sweeper`.

    Raises:
        SettingsError: the space, the settings or one of the ends of the space is wrong; nothing was started.
    """
    chosen = _checked_settings(settings)
    space, fixed = space_of(arguments)
    composer = Composer(loader)

    def compose(overrides: Sequence[str]) -> Config:
        every = (*fixed, *overrides)
        return plain(composer.load_sweep_config(master, list(every))), every

    examples = _examples(space, compose)
    first = examples[0][0]
    experiment = check_all(Checker(outputs_dir()), examples)[0].experiment
    folder = ExperimentPaths(outputs_dir() / experiment.name)
    if experiment.launcher.dry_run:
        launch(examples[:1], expected=chosen.n_trials)
        return
    folder.folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(master, folder.multirun)
    search = OptunaSearch(
        folder,
        space=space,
        fixed=_fixed(first, space),
        settings=chosen,
        objective=ObjectiveSettings.model_validate(first.get("objective", {})),
        compose=compose,
    )
    trials = search.more(1)
    if trials:
        launch(trials, search=search)
        return
    for line in [*search.summary(), "nothing is left to try; raise hydra.sweeper.n_trials to go on"]:
        log.info("%s", line)


def _checked_settings(settings: Mapping[str, Any]) -> SearchSettings:
    try:
        return SearchSettings.model_validate(settings)
    except ValidationError as error:
        lines = [f"  hydra.sweeper.{line}" for line in explain(error, settings)]
        raise SettingsError("\n".join(["The configuration is invalid, nothing was started:", *lines])) from error


def _examples(space: Sequence[Parameter], compose: Callable[[Sequence[str]], Config]) -> list[Config]:
    """Every setting at each of its ends or values, the others at their first: what is wrong there shows before."""
    first = {parameter.key: parameter.examples()[0] for parameter in space}
    found = [compose([f"{key}={text}" for key, text in first.items()])]
    for parameter in space:
        for text in parameter.examples()[1:]:
            found.append(compose([f"{key}={value}" for key, value in {**first, parameter.key: text}.items()]))
    return found


def _fixed(config: Mapping[str, Any], space: Sequence[Parameter]) -> dict[str, Any]:
    """The settings of a job that the search does not choose, by dotted key."""
    chosen = {parameter.key for parameter in space}
    return {
        key: value
        for key, value in _flat(config)
        if key.partition(".")[0] not in WITHOUT_EFFECT
        and not any(key == name or key.startswith(f"{name}.") for name in chosen)
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found
