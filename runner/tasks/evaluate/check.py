"""Checks the settings, and finds the content of adapters, networks and real images that counts for the identity."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from runner.data import Dataset, read_dataset
from runner.data.faults import without_settings
from runner.errors import DatasetError, SettingsError
from runner.families.files import resolution_faults
from runner.families.layout import CONFIG, config_of, part_faults
from runner.families.prediction import sampler_faults
from runner.hub import hub_faults
from runner.paths import path_of
from runner.schema import DatasetSettings
from runner.schema.evaluation import METRICS
from runner.schema.reading import IsRight, all_right
from runner.schema.tasks.evaluate import Evaluate
from runner.system.amounts import count
from runner.system.hashes import file_hash, folder_hash
from runner.system.values import as_typed
from runner.tasks.adapters import adapter_faults, contents_of
from runner.tasks.evaluate.prompts import prompts_of

PROCESSOR = "preprocessor_config.json"
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
"""Files that tokenizers read their vocabulary from; a network for texts has one of them."""
DISTANCES = ("fid", "kid")
OF_DATA_SETS = {"dataset.path": "real", ", or set dataset.skip_unreadable=true": "", "dataset.min_side_px=": ""}
"""Wording in data set faults that does not fit real images -> its replacement."""


def check(settings: Evaluate) -> dict[str, Any]:
    """See `runner.tasks`."""
    if found := faults(settings, all_right):
        raise SettingsError("\n".join(found))
    return contents_of(settings) | measured_with(settings)


def faults(settings: Evaluate, is_right: IsRight) -> list[str]:
    """See `runner.tasks`."""
    found = resolution_faults(settings.model, settings.resolution) if is_right("model", "resolution") else []
    found += sampler_faults(settings.model, settings.scheduler.name) if is_right("model", "scheduler.name") else []
    return [*found, *adapter_faults(settings, is_right), *settings_faults(settings, is_right)]


def measured_with(settings: Evaluate) -> dict[str, Any]:
    """What represents real images and networks in a job's identity; they must exist and be readable."""
    real = real_images(settings)
    contents: dict[str, Any] = {} if real is None else {"real": real.fingerprint}
    return contents | {"networks": {key: network_digest(named) for key, named in settings.networks.items()}}


def settings_faults(settings: Evaluate, is_right: IsRight = all_right) -> list[str]:
    """What is wrong with networks and real images, one fault per line."""
    faults: list[str] = []
    for key, named in settings.networks.items():
        if is_right(f"features.{key}"):
            faults += _network_faults(f"features.{key}", named, scripted=key == "inception", texts=key == "clip")
    knows_metrics = is_right("metrics", "features", "real")
    if knows_metrics and set(DISTANCES) & set(settings.measured) and find_spec("torchmetrics") is None:
        faults.append("metrics: fid and kid need torchmetrics; pip install 'lora-runner[eval]', or leave them out")
    if knows_metrics and is_right("prompts", "subject", "seeds"):
        faults += _too_few_drawn(settings)
    if not is_right("real", "resolution"):
        return faults
    try:
        if (real := real_images(settings)) is not None and knows_metrics:
            faults += _too_few(settings, len(real.items))
    except DatasetError as error:
        said = without_settings(str(error))
        for words, instead in OF_DATA_SETS.items():
            said = said.replace(words, instead)
        faults += said.splitlines()
    return faults


def real_images(settings: Evaluate) -> Dataset | None:
    """The images to compare with; None if no metric uses them.

    Raises:
        DatasetError: they cannot be read.
    """
    if settings.real is None or not settings.needs_real:
        return None
    # Captions are not used here, and a folder of photographs has none.
    data = DatasetSettings(path=settings.real, instance_prompt="a photo")
    return read_dataset(data, resolution=settings.resolution).without_masks()


def network_digest(named: str) -> str:
    """What represents a network in a job's identity: its content, or its id on the Hub."""
    path = path_of(named)
    if path.is_file():
        return file_hash(path)
    return folder_hash(path) if path.is_dir() else named


def _network_faults(key: str, named: str, *, scripted: bool, texts: bool) -> list[str]:
    path, said = path_of(named), f"{key} = {named!r}"
    if path.is_file():
        if not scripted:
            return [f"{said}: is a file; give a folder in transformers layout, or a Hub id"]
        why = f"is not a complete file of torch.jit.save ({path.stat().st_size} bytes)"
        return [] if is_zipfile(path) else [f"{said}: {why}; copy or download it again"]
    if path.is_dir():
        missing = [name for name in (CONFIG, PROCESSOR) if not (path / name).is_file()]
        if missing:
            return [f"{said}: has no {missing[0]}; give a folder in transformers layout"]
        lacks = [f"{said}: {reason}" for reason in part_faults(path)]
        return lacks or (_text_faults(said, path) if texts else [])
    return hub_faults(key, named, CONFIG, None, ask=True, layout="transformers", lacks=part_faults)


def _text_faults(said: str, folder: Path) -> list[str]:
    """Why the network in a folder cannot compare pictures with texts."""
    if "text_config" not in config_of(folder):
        return [f"{said}: is a network that does not encode texts; give a CLIP"]
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return [f"{said}: has no tokenizer; put the network's own beside it ({VOCABULARIES[0]}, or its vocabulary)"]
    return []


def _least(settings: Evaluate) -> int:
    """How many images there must be on each side."""
    return max(METRICS[name].least_images for name in settings.measured)


def _too_few_drawn(settings: Evaluate) -> list[str]:
    prompts, seeds = prompts_of(settings), len(settings.seeds)
    drawn, least = len(prompts) * seeds, _least(settings)
    if drawn >= least:
        return []
    given = f"{count(len(prompts), 'prompt')} and {count(seeds, 'seed')} give {count(drawn, 'image')}"
    fix = "give more prompts, or more seeds (of a training validation.seeds), or leave them out"
    return [f"prompts = {as_typed(prompts)}: {given}, and fid and kid need {least}; {fix}"]


def _too_few(settings: Evaluate, images: int) -> list[str]:
    least = _least(settings)
    if images >= least:
        return []
    found = f"holds {count(images, 'image')}, and fid and kid need {least}; give more, or leave them out"
    return [f"real = {settings.real!r}: {found}"]
