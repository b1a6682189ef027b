"""What Hydra composes, as plain data; composes the jobs of a sweep many times faster than Hydra does one by one."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.command.own_files import FIRST_LINE
from runner.errors import SettingsError, not_started
from runner.schema.messages import every_key, nearest
from runner.schema.texts import Unresolved, secret_faults

NO_SUCH_KEY = re.compile(r"Interpolation key '([^']+)' not found")
"""How OmegaConf says that a reference names nothing."""

SWEPT_LAUNCHER = "the launcher cannot be swept; run the command once for each"


class Composer:
    """Replaces Hydra's loader in a sweep.

    Hydra rebuilds the defaults list for each job, which takes 80 ms of processor time. The list depends only on the
    choices of groups, so Hydra composes each set of choices once, and the values of each job are laid over a copy by
    the same function that Hydra uses.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        assert isinstance(loader, ConfigLoaderImpl), type(loader)
        self._loader = loader
        self._compose = loader.load_sweep_config
        self._templates: dict[tuple[str, ...], DictConfig] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Like Hydra's own method of that name; equal overrides give the same object."""
        key = tuple(sweep_overrides)
        if key not in self._composed:
            self._composed[key] = self._load(master_config, sweep_overrides)
        return self._composed[key]

    def _load(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        overrides = OverridesParser.create().parse_overrides(list(sweep_overrides))
        chosen = tuple(str(each.input_line) for each in overrides if self._is_choice(each))
        if chosen not in self._templates:
            self._templates[chosen] = self._compose(master_config, list(chosen))
            refuse_idle_sweep(self._templates[chosen], master_config)
        config = copy.deepcopy(self._templates[chosen])
        values = [each for each in overrides if not self._is_choice(each)]
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        config.hydra.overrides.task = [str(each.input_line) for each in overrides if not each.is_hydra_override()]
        refuse_outdone(config, config.hydra)
        return config

    def _is_choice(self, override: Override) -> bool:
        # The same distinction as Hydra's (hydra._internal.defaults_list.Overrides).
        in_group = self._loader.repository.group_exists(override.key_or_group)
        return override.is_hydra_override() or (in_group and not isinstance(override.value(), dict))


def plain(config: DictConfig) -> dict[str, Any]:
    """What Hydra composed, resolved, without what only concerns Hydra.

    A value that refers to nothing is an `Unresolved`, which the checks report together with all other faults.

    Raises:
        SettingsError: nothing would read some part of it.
    """
    if below := config.get("recipe"):
        keys = ", ".join(f"recipe.{key!s}" for key in below) if isinstance(below, DictConfig) else "recipe"
        raise SettingsError(
            f"{keys}: nothing reads settings below recipe; a recipe's file begins with the line "
            f"'{FIRST_LINE}', and its settings are changed like those of any experiment, such as steps=100; "
            "nothing was started"
        )
    # A copy, because the composed object may be shared with Hydra.
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", "recipe")])
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:
        resolved = _resolved_apart(config)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def typed_in(hydra: HydraConf) -> list[str]:
    """The overrides as they were typed; read one by one, a reference in them would be resolved."""
    typed: Any = OmegaConf.to_container(hydra.overrides.task)
    return list(typed)


def _resolved_apart(node: Any) -> Any:
    """The content of a composed node, value by value: what refers to nothing must not hide what else is wrong."""
    if isinstance(node, DictConfig):
        return {key: _value_of(node, key) for key in node}
    if isinstance(node, ListConfig):
        return [_value_of(node, place) for place in range(len(node))]
    return node


def _value_of(holder: DictConfig | ListConfig, key: Any) -> Any:
    if OmegaConf.is_missing(holder, key):
        return MISSING
    try:
        return _resolved_apart(holder[key])
    except OmegaConfBaseException as error:
        typed: Any = OmegaConf.to_container(holder)
        found = Unresolved(typed[key])
        said = str(error).partition("\n")[0].rpartition(" raised while resolving interpolation: ")[2]
        said += nearest(name[1], every_key() - {name[1]}) if (name := NO_SUCH_KEY.search(said)) else ""
        found.why = f"cannot be resolved ({said}); correct it, or set a value"
        return found


def refuse_outdone(config: DictConfig, hydra: HydraConf) -> None:
    """Raises SettingsError if a recipe, which comes after the groups, has overridden settings of a typed choice.

    Args:
        config: what Hydra composed.
        hydra: Hydra's own account of the composition.
    """
    choices = hydra.runtime.choices
    if (recipe := choices.get("recipe")) is None:
        return
    typed = [text.partition("=")[::2] for text in typed_in(hydra)]
    keys, said = {key for key, _ in typed}, _content(f"recipe/{recipe}")
    faults = []
    for group, choice in typed:
        if group == "recipe" or group not in choices:
            continue
        for key, value in _leaves(_content(f"{group}/{choice}"), group):
            now = _plainly(OmegaConf.select(config, key))
            if key in keys or now == value or OmegaConf.select(said, key, default=value) == value:
                continue
            fix = f"{key}={json.dumps(value, separators=(',', ':'))}"
            faults.append(
                f"{group} = {choice}: the recipe {recipe} sets {key} too, and comes after it; type {fix} as well, or "
                f"leave out {group}={choice}"
            )
    if faults:
        raise not_started("The configuration is invalid", faults)


def refuse_idle_sweep(config: DictConfig, master: DictConfig) -> None:
    """Raises SettingsError if the recipe of a job has its own sweep: Hydra uses only the one of the command's recipe.

    Args:
        config: what Hydra composed for a job.
        master: what it composed for the command, without the swept values.
    """
    own, used = (_plainly(each.hydra.sweeper) for each in (config, master))
    if own != used:
        sweep = " ".join(f"{key}={value}" for key, value in (own.get("params") or {}).items())
        fault = f"its own sweep ({sweep}) has no effect where recipes are swept; run the command once for each"
        raise not_started("The configuration is invalid", [f"recipe = {config.hydra.runtime.choices.recipe}: {fault}"])


def _content(path: str) -> DictConfig:
    """The content of a choice's file before it is merged with anything; empty if there is no such file."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl), type(loader)
    found = loader.repository.load_config(path)
    content = OmegaConf.create() if found is None else found.config
    assert isinstance(content, DictConfig), path
    return content


def _leaves(content: DictConfig, below: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all settings of a file."""
    for name, value in content.items_ex(resolve=False):
        if isinstance(value, DictConfig):
            yield from _leaves(value, f"{below}.{name!s}")
        else:
            yield f"{below}.{name!s}", _plainly(value)


def _plainly(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def refuse_secrets(master: DictConfig) -> None:
    """Raises SettingsError if a secret would be in what Hydra writes about a sweep before any jobs exist."""
    raw = OmegaConf.to_container(master, resolve=False)
    assert isinstance(raw, dict)
    hydra = raw.pop("hydra")
    # Swept values appear only on the command line and in a recipe.
    typed = [text.partition("=") for text in hydra["overrides"]["task"]]
    swept = {key: value for key, _, value in typed} | dict(hydra["sweeper"].get("params") or {})
    set_already = {str(key): value for key, value in raw.items()}
    faults = dict.fromkeys(secret_faults(set_already) + secret_faults(swept))
    if faults:
        raise not_started("The configuration is invalid", faults)


def refuse_swept_launcher(configs: Sequence[tuple[DictConfig, tuple[str, ...]]]) -> None:
    """Raises SettingsError if the jobs of one sweep would run in different places."""
    if len({str(config.launcher) for config, _ in configs}) <= 1:
        return
    texts = [set(overrides) for _, overrides in configs]
    swept = sorted(
        {text for each in texts for text in each if text.startswith("launcher") and not all(text in o for o in texts)}
    )
    raise SettingsError(f"{', '.join(swept)}: {SWEPT_LAUNCHER}")
