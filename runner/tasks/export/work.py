"""Writes the files, reads each back, describes them in a card, and pushes the folder if asked to."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.artifacts.exported import Exported, header_of_kohya, write_export_card
from runner.artifacts.merged import check_read_back
from runner.errors import Interrupted, ModelError
from runner.families import find_family
from runner.families.files import planning_folder, snapshot
from runner.families.layout import INDEX
from runner.families.single_file import is_single_file
from runner.jobs.adapter_file import AdapterFile
from runner.mix.mix import concatenate
from runner.mix.model import parts_of, skeleton
from runner.mix.read import read_adapter
from runner.mix.reduce import reduce
from runner.mix.write import write_diffusers, write_kohya
from runner.paths import WEIGHTS_NAME, JobPaths, write_text
from runner.s3 import is_s3
from runner.schema import ModelSettings
from runner.schema.tasks.export import Export
from runner.tasks.adapters import find_adapters
from runner.tasks.export.check import base_model
from runner.tasks.export.hub import push
from runner.train.place import Place

log = logging.getLogger(__name__)

PUSHED = "pushed.json"


def work(settings: Export, paths: JobPaths, place: Place, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """See `runner.tasks`; what has been pushed to the Hub is not pushed again.

    Raises:
        ArtifactError: a file, read back, does not hold the adapter.
        Interrupted: a signal asked to stop.
    """
    (found,) = find_adapters(settings)
    paths.export.mkdir(parents=True, exist_ok=True)
    title = _title(settings, found)
    words = [Path(shutil.copy(file, paths.export)) for file in found.words]
    files: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    if found.file not in found.words:
        files, facts = _write(settings, found, paths.export, title)
    exported = Exported(paths.export, files, words, _shown(facts))
    write_export_card(exported, found.job, title=title, base_model=base_model(settings), family=settings.model.family)
    log.info("%s", paths.export)
    figures: dict[str, Any] = {"export": facts | {"files": [file.name for file in (*files.values(), *words)]}}
    if settings.hub.push:
        if stop():
            raise Interrupted("stopped before the push")
        figures["hub"] = _push(settings, paths, title)
    return figures


def _title(settings: Export, found: AdapterFile) -> str:
    """Named like the files of its training, or after its own file."""
    if found.job is not None:
        return f"{found.job.settings.name}-{found.job.id}"
    own = found.file.stem
    return settings.name if own == Path(WEIGHTS_NAME).stem else own


def _write(settings: Export, found: AdapterFile, folder: Path, title: str) -> tuple[dict[str, Path], dict[str, Any]]:
    """The files by format, and facts about the adapter as written."""
    family = find_family(settings.model.family)
    parts = skeleton(_configurations(settings.model), family.adapter_components)
    ((_, weight),) = settings.weighted
    layers = concatenate([(read_adapter(found.file, family, parts), weight)])
    facts: dict[str, Any] = {"layers": len(layers)} | ({} if weight == 1 else {"weight": weight})
    if settings.rank is not None or settings.keep_energy is not None:
        reduced = reduce(layers, rank=settings.rank, energy=settings.keep_energy)
        log.info("%s", reduced.described())
        layers = reduced.layers
        facts["kept_energy"] = round(reduced.kept_in_all, 6)
    facts["rank"] = max(each.rank for each in layers.values())
    about = header_of_kohya(family, parts[family.adapter_components[0]], title=title, base_model=base_model(settings))
    written: dict[str, Path] = {}
    for kind in settings.formats:
        if kind == "diffusers":
            written[kind] = write_diffusers(folder, family, layers)
        else:
            folded = kind == "kohya"
            file = folder / f"{title}{'' if folded else '-alpha'}.safetensors"
            written[kind] = write_kohya(file, family, layers, about=about, folded=folded)
        check_read_back(written[kind], family, parts, layers)
    return written, facts


def _configurations(model: ModelSettings) -> Path:
    """A folder with the configurations of the base's parts, perhaps without weights.

    Raises:
        ModelError: the base is neither on this machine nor reachable.
    """
    folder = planning_folder(model)
    if folder is not None and (folder / INDEX).is_file() and parts_of(folder):
        return folder
    if is_s3(model.path) or is_single_file(model.path):
        return snapshot(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=["*.json"]))
    except Exception as error:  # from any library and layer
        raise ModelError(
            f"model.path = {model.path!r}: neither a folder on this machine nor reachable on the Hub "
            f"({type(error).__name__}); give a folder in diffusers layout"
        ) from error


def _push(settings: Export, paths: JobPaths, title: str) -> dict[str, Any]:
    file = paths.folder / PUSHED
    if not file.is_file():
        pushed = push(paths.export, settings.hub, message=f"{title}, exported")
        write_text(file, json.dumps(dataclasses.asdict(pushed)) + "\n")
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    log.info("%s", known["url"])
    return known


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as they are shown on the card."""
    shown = {"Layers": facts.get("layers"), "Largest rank": facts.get("rank")}
    if "weight" in facts:
        shown["Strength"] = f"{facts['weight']:g} of what was trained"
    if "kept_energy" in facts:
        shown["Kept of the update"] = f"{facts['kept_energy']:.2%} of its squared norm, after reducing the rank"
    return {key: value for key, value in shown.items() if value is not None}
