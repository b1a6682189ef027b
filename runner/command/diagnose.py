"""Why Hydra could not compose a command line: all of its faults at once, not only the first.

Runs only after a composition has failed, so it can afford to compose each override by itself to find the culprits.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from runner import HOME
from runner.check import Checker
from runner.command.compose import SWEPT_LAUNCHER, plain
from runner.command.own_files import faults_of_defaults, no_choice
from runner.command.reasons import COMPOSITION_ERRORS, first_line, of_file, of_item, own_folder, reason
from runner.command.typed import in_shell, mended, quoted
from runner.errors import SettingsError, not_started
from runner.jobs.job import Job
from runner.launch.door import check_one
from runner.paths import outputs_dir
from runner.schema import GROUPS
from runner.schema.defaults import SEARCHES
from runner.schema.knob import Settings
from runner.schema.messages import nearest, takes_list

MOST_JOBS = 64
SWEEPERS = ("grid", *SEARCHES)
"""The choices for `hydra/sweeper`."""


def diagnose(arguments: Sequence[str], error: Exception | None, flags: Sequence[str] = ()) -> SettingsError:
    """Everything that is wrong with a command line, one fault per line.

    Args:
        error: what Hydra raised, if it was asked; reported only if a closer look finds no fault.
        flags: faults of the command's flags, which are not among the arguments.
    """
    parsed = get_args_parser().parse_args(list(arguments))
    search = [f"hydra.searchpath=[file://{parsed.config_dir}]"] if parsed.config_dir else []
    sweepers = [text.partition("=")[2] for text in parsed.overrides if text.startswith("hydra/sweeper=")]
    searching = SEARCHES.get(sweepers[-1]) if sweepers else None
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        good: list[str] = []
        several: list[str] = []
        overrides, faults = mended(parsed.overrides)
        for text in overrides:
            found = _faults_of(text, search, multirun=parsed.multirun, searching=searching)
            faults += found
            good += _as_text(text) if found else [text]
            several += [f"{text.lstrip('+').partition('=')[0]} = "] if found and "," in text else []
        # Which settings exist depends on the task.
        if not any(fault.startswith("task = ") for fault in faults):
            # What stands in for several values is no fault of the user's.
            swept = _swept_by_recipe(good, search) if parsed.multirun and not faults else []
            of_values = _faults_of_values([*swept, *good], search)
            faults += [fault for fault in of_values if not fault.startswith(tuple(several))]
        if parsed.multirun and error is not None:
            said = {fault.partition(" = ")[0] for fault in faults}
            faults += [line for key, line in _below_swept(good, search).items() if key not in said]
        if not faults and isinstance(error, TypeError):
            raise error  # not the user's mistake
        if not faults and error is not None:
            faults = [of_file(error, search) or of_item(good, search) or " ".join(str(error).split())]
    title = "The command is invalid" if flags else "The configuration is invalid"
    return not_started(title, dict.fromkeys([*flags, *faults]))


def _faults_of(text: str, search: list[str], *, multirun: bool, searching: type[Settings] | None) -> list[str]:
    """Faults of one override that keep it from being composed at all; values are checked later, together."""
    try:
        override = OverridesParser.create().parse_override(text)
    except COMPOSITION_ERRORS as error:
        key, _, value = text.partition("=")
        typed = in_shell(key, value) if _may_be_text(value) else text
        typed = "'key=\"value\"'" if typed == text else typed
        said = re.sub(r"^token recognition error at: ", "cannot be read at ", first_line(error))
        return [f"{text}: {said}; quote values with special characters: {typed}"]
    key, _, value = text.lstrip("+~").partition("=")
    if override.is_sweep_override() and not multirun:
        return [f"{key} = {value}: {_several(override, key, value)}"]
    if override.is_interval_sweep() and searching is None:
        fix = "name them, use range(start,stop,step), or search with hydra/sweeper=optuna"
        return [f"{key} = {value}: the values of an interval cannot be listed; {fix}"]
    if key.partition(".")[0] == "launcher" and override.is_sweep_override() and "," in value:
        return [f"{key}={value}: {SWEPT_LAUNCHER}"]
    if key == "task" and override.is_sweep_override():
        return [f"{key} = {value}: tasks have settings of their own, so run the command once for each of them"]
    if key in (*GROUPS, "recipe"):
        return _faults_of_choice(override, key, search)
    if key == "hydra/sweeper":
        return [] if value in SWEEPERS else [no_choice(key, value, SWEEPERS)]
    owner, _, name = key.rpartition(".")
    if override.is_delete() and name.isdecimal() and (fault := of_item([text], search)):
        return [fault]
    if searching is not None and owner == "hydra.sweeper" and name not in (*searching.model_fields, "params"):
        return [f"{key} = {value}: unknown key{nearest(name, searching.model_fields)}"]
    return []


def _several(override: Override, key: str, value: str) -> str:
    """What to do about several values without -m."""
    said = "several values need -m (python -m runner -m ...)"
    if key in (*GROUPS, "recipe") or not override.is_choice_sweep():
        return said
    if takes_list(key):
        said += f"; a list needs brackets: {in_shell(key, f'[{value}]')}"
    return f"{said}; a text with commas needs quotes of its own: {in_shell(key, value)}" if _is_text(value) else said


def _as_text(text: str) -> list[str]:
    """A faulty setting in quotes, if that was meant, or with its first value; otherwise it would also seem missing."""
    key, _, value = text.partition("=")
    if key in (*GROUPS, "recipe") or "/" in key or not _may_be_text(value):
        return []
    first, is_several, _ = value.partition(",")
    one = first if is_several and not _is_text(value) else value
    one = one if re.fullmatch(r"[\w./:@-]+", one, re.ASCII) else quoted(one)
    meant = f"{key}=[{one}]" if is_several and takes_list(key) else f"{key}={one}"
    try:
        OverridesParser.create().parse_override(meant)
    except COMPOSITION_ERRORS:
        return []
    return [meant]


def _may_be_text(value: str) -> bool:
    # Something that starts like a list, a mapping or a function may be one with another fault.
    return re.match(r"[\[{\"']|\w+\(|$", value) is None


def _is_text(value: str) -> bool:
    # Numbers and names contain no spaces except after a comma, and no letters other than a to z.
    return not value.isascii() or any(" " in part.strip() for part in value.split(","))


def _faults_of_choice(override: Override, group: str, search: list[str]) -> list[str]:
    """Faults of an override such as `model=sdxl`: a choice that does not exist, or a value in place of a group."""
    options = _options(group, search)
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
    faults = []
    for value in map(str, values):
        if search and (misnamed := own_folder(search) / group / f"{value}.yml").is_file():
            faults.append(f"{group} = {value}: {misnamed} is not read, because its name must end with .yaml; rename it")
        elif value not in options:
            faults.append(no_choice(group, value, options))
        elif search:
            own = own_folder(search)
            faults += faults_of_defaults(own, group, value, lambda other: _options(other, search))
    return faults


def _options(group: str, search: list[str]) -> list[str]:
    """The choices in a group; the folder given with --config-dir adds some."""
    loader = GlobalHydra.instance().config_loader()
    own = [file.stem for file in (own_folder(search) / group).glob("*.yaml")] if search else []
    return [name for name in loader.get_group_options(group) if not name.startswith("_")] + own


def _faults_of_values(overrides: Sequence[str], search: list[str]) -> list[str]:
    """Faults of the values in the overrides that Hydra accepts."""
    parser = OverridesParser.create()
    columns = [_single_values(parser.parse_override(text), text) for text in overrides]
    checker, places = Checker(outputs_dir()), dict[str, list[str]]()
    faults: list[str] = []
    left_out: set[str] = set()
    for combination in itertools.islice(itertools.product(*columns), MOST_JOBS):
        given = [text for text in combination if text not in left_out]
        config, kept, said = _composed(given, search)
        faults += said
        if config is None:
            continue
        left_out |= {*given} - {*kept}
        # What is left out may seem missing.
        gone = tuple(f"{_name_of(text)}{sign}" for text in left_out for sign in (" = ", ": "))
        try:
            found = check_one(checker, plain(config), tuple(kept), places)
            faults += [] if isinstance(found, Job) else [line for line in found if not line.startswith(gone)]
        except SettingsError as error:
            faults += str(error).splitlines()
    return faults


def _composed(overrides: Sequence[str], search: list[str]) -> tuple[DictConfig | None, list[str], list[str]]:
    """(what can be composed, the overrides in it, a line for each of the others).

    Choices come first, wherever they were typed: which settings exist depends on them. None if a choice cannot be
    composed, because settings that it should have would seem not to exist.
    """
    try:
        return compose("config", [*search, *overrides]), list(overrides), []
    except COMPOSITION_ERRORS as error:
        whole = error
    kept: list[str] = []
    faults: list[str] = []
    config: DictConfig | None = None
    is_left_out = False
    for text in sorted(overrides, key=lambda text: _name_of(text) not in (*GROUPS, "recipe")):
        try:
            config = compose("config", [*search, *kept, text])
        except COMPOSITION_ERRORS as error:
            faults.append(reason(error, [*kept, text], search))
            is_left_out |= _name_of(text) in (*GROUPS, "recipe")
        else:
            kept.append(text)
    faults = faults or [reason(whole, overrides, search)]
    return None if is_left_out else config, kept, faults


def _below_swept(overrides: Sequence[str], search: list[str]) -> dict[str, str]:
    """Settings that only choices of a swept group have, each with its fault: Hydra first composes without them."""
    parser = OverridesParser.create()
    shared = [text for text in overrides if not parser.parse_override(text).is_sweep_override()]
    swept = {_name_of(text) for text in overrides if text not in shared} & {*GROUPS, "recipe"}
    _, kept, _ = _composed(shared, search)
    faults = {}
    for text in shared:
        key, _, value = text.partition("=")
        group = "recipe" if "recipe" in swept else key.partition(".")[0]
        if group in swept and text not in kept:
            faults[key] = (
                f"{key} = {value}: whether there is such a setting depends on {group}, which has several values; write "
                f"{in_shell(f'++{key}', value)}"
            )
    return faults


def _name_of(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]


def _swept_by_recipe(overrides: Sequence[str], search: list[str]) -> list[str]:
    """The settings that the chosen recipe gives several values (`hydra.sweeper.params`), as if they were typed."""
    recipes = [text for text in overrides if text.lstrip("+").startswith("recipe=")]
    try:
        params = compose("config", [*search, *recipes], return_hydra_config=True).hydra.sweeper.get("params") or {}
        swept = [f"{key}={value}" for key, value in params.items()]
        OverridesParser.create().parse_overrides(swept)
    except COMPOSITION_ERRORS:  # found again, and reported, where everything is composed
        return []
    return swept


def _single_values(override: Override, text: str) -> list[str]:
    """The override for each of its values, forced in: the schema reports best what does not belong there."""
    key, given, value = text.partition("=")
    name = key.lstrip("+~")
    force = "" if key.startswith("~") or name.startswith("hydra") or name in (*GROUPS, "recipe") else "++"
    values = [value]
    if override.is_discrete_sweep():
        values = list(override.sweep_string_iterator())
    elif override.is_interval_sweep():
        sweep: Any = override.value()
        values = [str(sweep.start), str(sweep.end)]
    given = "=" if given else ""  # a key can be removed whatever its value is
    return [f"{force}{name if force else key}{given}{single}" for single in values]
