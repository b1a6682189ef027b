"""What Hydra sees of the project: the schema's defaults, the launcher, the sweepers and the group `recipe`.

Hydra 1.3 accepts plugins only from the namespace `hydra_plugins`, and imports this file at every start,
so it stays light; the actual work is in `runner.command`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.utils import JobReturn
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runner import HOME
from runner.schema.defaults import base_node, search_nodes, task_nodes, variant_nodes

SWEEPERS = {"optuna": "OptunaSweeper", "sagemaker_tuning": "SageMakerTuningSweeper"}
"""The class below for each kind of search."""


def _store_schema() -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=base_node(), provider="runner")
    for (group, kind), node in variant_nodes().items():
        store.store(group=f"schema/{group}", name=kind, node=node, provider="runner")
    for task, node in task_nodes().items():
        store.store(group="schema/task", name=task, node=node, provider="runner")
    store.store(
        group="hydra/launcher",
        name="runner",
        node={"_target_": "hydra_plugins.runner_plugins.RunnerLauncher"},
        provider="runner",
    )
    for name, node in search_nodes().items():
        sweeper = {"_target_": f"hydra_plugins.runner_plugins.{SWEEPERS[name]}", "params": {}, **node}
        store.store(group="hydra/sweeper", name=name, node=sweeper, provider="runner")
    grid = {"_target_": "hydra_plugins.runner_plugins.GridSweeper", "params": {}}
    store.store(group="hydra/sweeper", name="grid", node=grid, provider="runner")


_store_schema()


class RunnerLauncher(Launcher):
    """Passes every batch of a sweep, whole, through the one door that single runs use too."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes jobs, and compose each job only once."""
        from runner.command.compose import Composer, refuse_secrets

        refuse_secrets(config)
        self.config, self.loader = config, hydra_context.config_loader
        # Hydra checks a batch by composing each job; our launch reuses the result.
        self.loader.load_sweep_config = Composer(self.loader).load_sweep_config  # type: ignore[method-assign]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch; see `runner.command.entry`."""
        from runner.command.entry import sweep

        return sweep(self.loader, self.config, job_overrides)


class GridSweeper(BasicSweeper):
    """Every combination of the values, as one batch.

    Hydra's own sweeper writes into the results folder before anything is checked, even if nothing is to start.
    """

    def __init__(self, params: DictConfig) -> None:
        super().__init__(max_batch_size=None, params={str(key): value for key, value in params.items()})

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Pass them all to the launcher; the command line comes after the configuration's parameters, and so wins."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        assert self.hydra_context is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (batch,) = self.split_arguments(overrides, max_batch_size=None)
        return [self.launcher.launch(batch, initial_job_idx=0)]


class _SearchSweeper(Sweeper):
    """Searches the space that the sweeps of the command describe."""

    def __init__(self, params: DictConfig, **settings: Any) -> None:
        self.params, self.settings = params, settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes jobs."""
        from runner.command.compose import refuse_secrets

        refuse_secrets(config)
        self.config, self.loader = config, hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> None:
        """Search; the command line comes after the configuration's parameters, and so wins."""
        from omegaconf import OmegaConf

        own = [f"{key!s}={value}" for key, value in self.params.items()]
        plain = OmegaConf.to_container(OmegaConf.create(self.settings), resolve=True)
        assert isinstance(plain, dict)
        self.search([*own, *arguments], {str(key): value for key, value in plain.items()})

    def search(self, arguments: list[str], settings: dict[str, Any]) -> None:
        """Search with these overrides and settings."""
        raise NotImplementedError


class OptunaSweeper(_SearchSweeper):
    """Chooses values on this machine; see `runner.command.search`."""

    def search(self, arguments: list[str], settings: dict[str, Any]) -> None:
        """As the base has it."""
        from runner.command.search import run_search

        assert self.config is not None
        run_search(self.loader, self.config, arguments, settings)


class SageMakerTuningSweeper(_SearchSweeper):
    """Lets SageMaker choose values; see `runner.command.tuning`."""

    def search(self, arguments: list[str], settings: dict[str, Any]) -> None:
        """As the base has it."""
        from runner.command.tuning import run_tuning

        assert self.config is not None
        run_tuning(self.loader, self.config, arguments, settings)


class RecipeSource(FileConfigSource):
    """The folder `recipes/` beside `conf/`, shown to Hydra as the group `recipe`."""

    @staticmethod
    def scheme() -> str:
        """Prefix of the search path entries that this source serves."""
        return "recipes"

    def _file(self, config_path: str) -> str:
        group, _, name = config_path.partition("/")
        return os.path.join(self.path, self._normalize_file_name(name)) if group == "recipe" and name else ""

    def available(self) -> bool:
        """Whether the folder exists."""
        return os.path.isdir(self.path)

    def is_group(self, config_path: str) -> bool:
        """Only `recipe` is a group here."""
        return config_path in ("", "recipe")

    def is_config(self, config_path: str) -> bool:
        """Whether `recipe/<name>` is a file."""
        return os.path.isfile(self._file(config_path))

    def load_config(self, config_path: str) -> ConfigResult:
        """Read `recipe/<name>`."""
        return super().load_config(config_path.partition("/")[2])

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The group, or the recipes in it."""
        if config_path == "":
            return ["recipe"] if results_filter != ObjectType.CONFIG else []
        return sorted(name[:-5] for name in os.listdir(self.path) if name.endswith(".yaml"))


class RecipeSearchPath(SearchPathPlugin):
    """Adds `recipes/` to every composition."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder after conf/, so that conf/ cannot be shadowed."""
        search_path.append("recipes", f"recipes://{HOME / 'recipes'}")


__all__: list[Any] = [
    "GridSweeper",
    "OptunaSweeper",
    "RecipeSearchPath",
    "RecipeSource",
    "RunnerLauncher",
    "SageMakerTuningSweeper",
]
