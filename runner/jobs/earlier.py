"""The adapter that a job starts from (`lora.init_from`): whether it has the rank and scale that the job asks for.

The setting may give the folder of the job that trained it, which then also says what it was trained on.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import SettingsError
from runner.families.known import FAMILIES
from runner.families.targeted import adapted_shapes
from runner.jobs.adapter_file import FIX, AdapterFile, find_adapter, header_of
from runner.jobs.scales import Config, alpha_in, configs_in
from runner.schema import LoraSettings, ModelSettings
from runner.schema.training import matches_layer
from runner.system.amounts import count
from runner.system.tensor_file import TEXT_MODEL
from runner.system.values import as_typed

DOWN = ".lora_A.weight"


def find_earlier(settings: LoraSettings, *, fits: bool = True) -> AdapterFile | None:
    """The adapter that a job starts from; None if it starts from scratch.

    Args:
        fits: whether its rank and scale are compared with the settings; some of those may be wrong themselves.

    Raises:
        SettingsError: none exists, it has trained words, or its rank or scale differs from the settings.
    """
    if settings.init_from is None:
        return None
    earlier = find_adapter(settings.init_from, key="lora.init_from", words=True)
    named = f"lora.init_from = {settings.init_from!r}"
    if earlier.words:
        words = ", ".join(file.stem for file in earlier.words)
        fix = f"to start from its layers alone, name {earlier.file}, and leave the words out of captions"
        fix = fix if earlier.file not in earlier.words else "there is nothing else in it to start from"
        raise SettingsError(f"{named}: was taught words ({words}), which this job would not know; {fix}")
    if fits:
        _check_fits(earlier.file, settings, named)
    return earlier


def layer_faults(earlier: AdapterFile, settings: LoraSettings, model: ModelSettings) -> list[str]:
    """The faults if an adapter is on other layers of a checked model's denoiser than the job's adapter would be."""
    here = adapted_shapes(settings, model)
    if here is None:
        return []
    named, component = f"lora.init_from = {settings.init_from!r}", f"{FAMILIES[model.family].denoiser}."
    there = {
        key.removeprefix(component).removesuffix(DOWN): about["shape"]
        for key, about in header_of(earlier.file, named).tensors.items()
        if key.startswith(component) and key.endswith(DOWN) and len(about["shape"]) > 1
    }
    if not there:
        fix = f"run task=export adapter={settings.init_from}, and name the folder export/ of that job"
        return [f"{named}: its layers do not have diffusers' names (which begin with {component}); {fix}"]
    for name in sorted(here.keys() & there.keys()):
        if (inputs := there[name][1]) != here[name][1]:
            there_and_here = f"{name} takes {inputs} inputs there, and {here[name][1]} in {model.path}"
            return [
                f"{named}: was trained on another model: {there_and_here}; set model.path to that one, or remove this"
            ]
    more, fewer = sorted(there.keys() - here.keys()), sorted(here.keys() - there.keys())
    said = [f"has {count(len(more), 'layer')} that this job would not have, such as {more[0]}"] if more else []
    said += [f"lacks {count(len(fewer), 'layer')} that it would have, such as {fewer[0]}"] if fewer else []
    trained = earlier.job.experiment.lora if earlier.job is not None else None
    as_there = f" (targets = {trained.targets!r}, blocks = {as_typed(trained.blocks)})" if trained is not None else ""
    fix = f"set lora.targets and lora.blocks as in the earlier training{as_there}"
    return [f"{named}: {', and '.join(said)}; {fix}"] if said else []


def _check_fits(file: Path, settings: LoraSettings, named: str) -> None:
    header = header_of(file, named)
    ranks = {
        key.removesuffix(DOWN): int(about["shape"][0])
        for key, about in header.tensors.items()
        if key.endswith(DOWN) and about["shape"]
    }
    if not ranks:
        raise SettingsError(f"{named}: holds no LoRA under peft's names (...{DOWN}); {FIX}")
    of_text = any(layer.startswith("text_encoder") for layer in ranks)
    configs = configs_in(file, header.metadata)
    faults = [
        *_other(settings, "text_encoder", settings.text_encoder, of_text),
        *_other(settings, "dora", settings.dora, bool(_said(configs, "use_dora", False))),
    ]
    faults += _faults_of_ranks(settings, ranks) or _faults_of_scales(settings, ranks, configs)
    if faults:
        raise SettingsError("\n".join(faults))


def _faults_of_ranks(settings: LoraSettings, ranks: Mapping[str, int]) -> list[str]:
    wrong = [layer for layer, rank in ranks.items() if settings.rank_of(_bare(layer)) != rank]
    if not wrong:
        return []
    found = ", ".join(map(str, sorted(set(ranks.values()))))
    key = "rank" if settings.rank_pattern is None else "rank_pattern"
    where = "" if key == "rank" else f", in {_bare(wrong[0])} {ranks[wrong[0]]}"
    said = f"lora.{key} = {as_typed(getattr(settings, key))}: {settings.init_from} has rank {found}{where}; set "
    return [said + _settings_for("rank", ranks)]


def _faults_of_scales(settings: LoraSettings, ranks: Mapping[str, int], configs: Mapping[str, Config]) -> list[str]:
    """The faults of the scales, for a job whose ranks are right: scales depend on ranks."""
    scales = {layer: _scale(configs, layer, rank) for layer, rank in ranks.items()}
    wrong = [layer for layer, scale in scales.items() if not _same(settings.scale_of(_bare(layer)), scale)]
    if not wrong:
        return []
    alpha = settings.rank if settings.alpha is None else settings.alpha
    faults = _other(settings, "alpha", alpha, _said(configs, "lora_alpha", settings.rank))
    faults += _other(settings, "rslora", settings.rslora, bool(_said(configs, "use_rslora", False)))
    if faults:
        return faults
    alphas = {layer: scales[layer] * (math.sqrt(rank) if settings.rslora else rank) for layer, rank in ranks.items()}
    layer = wrong[0]
    said = (
        f"lora.alpha_pattern = {as_typed(settings.alpha_pattern)}: {settings.init_from} has the scale "
        f"{scales[layer]:g} in {_bare(layer)}, and this job would have {settings.scale_of(_bare(layer)):g}; set "
    )
    return [said + _settings_for("alpha", alphas)]


def _same(here: float, there: float) -> bool:
    """Whether two numbers agree to the precision that messages show (six digits)."""
    return math.isclose(here, there, rel_tol=1e-5)


def _bare(layer: str) -> str:
    """A layer's name within its component, as jobs use it, from the `component.name` that files use."""
    return layer.partition(".")[2].removeprefix(TEXT_MODEL)


def _scale(configs: Mapping[str, Config], layer: str, rank: int) -> float:
    """The factor on a layer's update according to a file's configuration; 1 if it says nothing."""
    config, name = configs.get(layer.partition(".")[0], {}), _bare(layer)
    alpha = alpha_in(config, (name, TEXT_MODEL + name))
    return 1.0 if alpha is None else alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _settings_for(key: str, values: Mapping[str, float]) -> str:
    """The settings that give layers these ranks or alphas: the most common value, and patterns for the others.

    A pattern is the shortest name ending shared only by layers with that value, so no two match the same layer.
    """
    usual = Counter(values.values()).most_common(1)[0][0]
    named = [(_bare(layer), value) for layer, value in values.items()]
    patterns = {}
    for name, value in named:
        parts = name.split(".")
        # The command line would parse a bare number as a number, not as text.
        ends = [".".join(parts[start:]) for start in reversed(range(len(parts))) if not parts[start].isdigit()]
        alike = (
            end for end in ends if all(other == value for each, other in named if matches_layer(re.escape(end), each))
        )
        if value != usual:
            patterns[next(alike, f"^{name}")] = value
    said = ", ".join(f"{end}: {value:g}" for end, value in patterns.items())
    return f"lora.{key}={usual:g}" + (f" and 'lora.{key}_pattern={{{said}}}'" if said else "")


def _said(configs: Mapping[str, Config], key: str, usual: Any) -> Any:
    """What a file's configuration says about its first component, or the default that readers use without it."""
    return next((config[key] for config in configs.values() if config.get(key) is not None), usual)


def _other(settings: LoraSettings, key: str, here: Any, there: Any) -> list[str]:
    """The fault that the file was trained with another value of a setting; none if the values agree."""
    if _same(here, there):
        return []
    shown = str(there).lower() if isinstance(there, bool) else f"{there:g}"
    said = f"lora.{key} = {as_typed(getattr(settings, key))}: {settings.init_from} was trained with {shown}; set "
    return [f"{said}lora.{key}={shown}"]
