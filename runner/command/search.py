"""What Hydra's sweeper `optuna` does: trials are composed like the jobs of a sweep, and go through the same door."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from runner.check import Checker, launcher_of
from runner.command.compose import Composer, plain
from runner.command.grammar import space_of, unswept
from runner.command.trials import (
    checked_settings,
    checked_trainings,
    contents_of,
    examples,
    fixed_settings,
)
from runner.errors import Refusals, SettingsError
from runner.jobs.lock import LockedError, lock
from runner.launch.door import Config, keep_request, launch, launch_search
from runner.paths import ExperimentPaths, outputs_dir
from runner.schema import ObjectiveSettings, QueuedLauncher, SearchSettings
from runner.search import OptunaSearch

log = logging.getLogger(__name__)


def run_search(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Search with the sweeps in `arguments` as the space.

    Args:
        loader: composes jobs.
        master: what Hydra composed for the command.
        arguments: the overrides of the command, preceded by those of `hydra.sweeper.params`.
        settings: the other keys of `hydra.sweeper`.

    Raises:
        SettingsError: the space, the settings or one of the ends of the space is wrong; nothing has started.
    """
    wrong = Refusals()
    chosen = wrong.of(lambda: checked_settings(SearchSettings, settings))
    space, fixed = wrong.of(lambda: space_of(arguments, loader)) or ([], unswept(arguments, loader))
    composer = Composer(loader)

    def compose(overrides: Sequence[str]) -> Config:
        every = (*fixed, *overrides)
        return plain(composer.load_sweep_config(master, list(every))), every

    found = examples(space, compose)
    first = found[0][0]
    jobs = wrong.of(lambda: checked_trainings(Checker(outputs_dir()), found))
    wrong.of(lambda: _require_waiting(first))
    wrong.raise_if_any()
    assert chosen is not None and jobs is not None
    experiment = jobs[0].experiment
    folder = ExperimentPaths(outputs_dir() / experiment.name)
    if experiment.launcher.dry_run:
        launch(found[:1], expected=chosen.n_trials)
        return
    with _alone(folder):
        search = OptunaSearch(
            folder,
            space=space,
            fixed=fixed_settings(first, space) | contents_of(jobs),
            settings=chosen,
            objective=ObjectiveSettings.model_validate(first.get("objective", {})),
            compose=compose,
        )
        keep_request(folder.folder, OmegaConf.to_yaml(master))
        if search.left:
            launch_search(search)
            return
        for line in [*search.summary(), "nothing is left to try; raise hydra.sweeper.n_trials to go on"]:
            log.info("%s", line)


def _require_waiting(config: Mapping[str, Any]) -> None:
    launcher = launcher_of(config)
    if isinstance(launcher, QueuedLauncher) and not launcher.wait:
        raise SettingsError("launcher.wait = false: a search depends on results, and has to wait for them; remove it")


@contextmanager
def _alone(folder: ExperimentPaths) -> Iterator[None]:
    """Allow one search of an experiment at a time: a second would mistake the trials of the first for cut off."""
    with ExitStack() as held:
        try:
            held.enter_context(lock(folder.folder))
        except LockedError as error:
            raise SettingsError(
                f"name = {folder.folder.name!r}: another command searches there at this moment ({error}); or choose "
                "another name"
            ) from error
        yield
