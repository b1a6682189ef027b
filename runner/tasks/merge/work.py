"""Merges, compares the result with what diffusers makes of the parts, and only then gives it its final name."""

from __future__ import annotations

import logging
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from runner.artifacts.merged import Compared, check_merged, check_put_together, check_read_back
from runner.errors import ArtifactError, ModelError
from runner.families import find_family
from runner.families.files import snapshot, vae_folder, vae_source
from runner.families.original_file import single_file_reason, write_single_file
from runner.families.single_file import lay_out_single_file
from runner.jobs.adapter_file import header_of
from runner.mix.layers import AdapterLayers
from runner.mix.mix import concatenate
from runner.mix.model import configuration_of, parts_of, set_prediction, skeleton, stored_dtype, write_fused
from runner.mix.read import is_named_for_diffusers, read_adapter
from runner.mix.reduce import Reduced, reduce
from runner.mix.write import write_diffusers
from runner.paths import JobPaths, atomic_file
from runner.schema import ModelSettings
from runner.schema.tasks.merge import Merge
from runner.system.tensor_file import METADATA, TEXT_MODEL
from runner.tasks.adapters import find_adapters
from runner.train.base import DTYPES
from runner.train.place import Place

log = logging.getLogger(__name__)

UNFINISHED = ".merging"
"""The folder of the merged base until it has been compared."""


def work(settings: Merge, paths: JobPaths, place: Place, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """See `runner.tasks`; parts that have been written are not made again.

    Raises:
        ArtifactError: the result does not match the base with the adapters.
        Interrupted: a signal asked to stop.
    """
    base = snapshot(settings.model)
    family = find_family(settings.model.family)
    files = [found.file for found in find_adapters(settings)]
    weights = [weight for _, weight in settings.weighted]
    parts = skeleton(base, family.adapter_components)
    read = [read_adapter(file, family, parts) for file in files]
    layers = concatenate(list(zip(read, weights, strict=True)))
    with _as_diffusers_reads(files, read, settings.model) as loadable:
        adapters = list(zip(loadable, weights, strict=True))
        if settings.output == "adapter":
            return _put_together(settings, paths, place, base, adapters, layers)
        if settings.output == "single_file":
            model = settings.model
            if reason := single_file_reason(base, model.family, prediction=model.prediction_type):
                raise ModelError(f"output = 'single_file': {reason}; take output=folder")
        return _merge(settings, paths, place, base, adapters, layers, stop)


@contextmanager
def _as_diffusers_reads(
    files: Sequence[Path], read: Sequence[AdapterLayers], model: ModelSettings
) -> Iterator[list[Path]]:
    """Files for the comparison: the adapters' own, or copies where diffusers would misread the originals.

    For files without its metadata, diffusers (0.42.1) assumes one alpha for all layers.
    """
    family = find_family(model.family)
    with tempfile.TemporaryDirectory(prefix="adapters-") as temporary:
        loadable = []
        for index, (file, layers) in enumerate(zip(files, read, strict=True)):
            header = header_of(file, f"adapter = {str(file)!r}")
            said = METADATA in header.metadata
            alike = len({(each.rank, each.scale) for each in layers.values()}) == 1
            if (said or alike) and is_named_for_diffusers(header.tensors, family):
                loadable.append(file)
                continue
            (folder := Path(temporary) / str(index)).mkdir()
            loadable.append(write_diffusers(folder, family, layers))
        yield loadable


def _merge(
    settings: Merge,
    paths: JobPaths,
    place: Place,
    base: Path,
    adapters: Sequence[tuple[Path, float]],
    layers: AdapterLayers,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Merge the adapters into the weights of their base."""
    model, unfinished = settings.model, paths.folder / UNFINISHED
    if not paths.model.is_dir():
        vae = None if (source := vae_source(model)) is None else vae_folder(base, source)
        dtype = None if settings.dtype is None else DTYPES[settings.dtype]
        write_fused(base, unfinished, layers, dtype=dtype, variant=model.variant, vae=vae, stop=stop)
        set_prediction(unfinished, model.prediction_type, model.zero_terminal_snr)
    folder = paths.model if paths.model.is_dir() else unfinished
    stored = {component: stored_dtype(folder / component) for component, _ in layers}
    computed = DTYPES[settings.precision]
    compared = check_merged(model, (base, folder), adapters, layers, place, computed=computed, stored=stored)
    log.info("%s", _said(compared))
    if settings.output == "single_file":
        _single_file(settings, paths, unfinished)
        shutil.rmtree(unfinished)
    elif folder == unfinished:
        unfinished.rename(paths.model)
    if settings.archive and not paths.model_archive.is_file():
        _archive(paths)
    log.info("%s", paths.model if paths.model.is_dir() else paths.model_file)
    dtypes = {name: str(each).removeprefix("torch.") for name, each in stored.items()}
    return {"merge": _figures(compared) | {"layers": len(layers), "adapters": len(adapters), "dtype": dtypes}}


def _single_file(settings: Merge, paths: JobPaths, folder: Path) -> None:
    """Write the single file, read it back, and compare it with the folder bit for bit.

    Raises:
        ArtifactError: a tensor differs.
    """
    with tempfile.TemporaryDirectory(dir=paths.folder, prefix=".reading-") as temporary:
        file = Path(temporary) / paths.model_file.name
        about = {"format": "pt", "modelspec.title": settings.name, "modelspec.architecture": settings.model.family}
        write_single_file(folder, file, settings.model.family, about=about)
        configuration_of(folder, paths.model_config)
        reader = ModelSettings(path=str(file), config=str(paths.model_config), family=settings.model.family)
        read = lay_out_single_file(reader, Path(temporary) / "read")
        for part in parts_of(folder):
            if part == "safety_checker":
                continue
            wanted, found = _tensors(folder / part), _tensors(read / part)
            for key in sorted(wanted.keys() | found.keys()):
                ours, theirs = wanted.get(key), found.get(key)
                if ours is None or theirs is None or not torch.equal(ours.float(), theirs.float()):
                    raise ArtifactError(f"{paths.model_file}: read back, {part}.{key} is not what was written")
        file.replace(paths.model_file)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(TEXT_MODEL): tensor
        for file in sorted(folder.glob("*.safetensors"))
        for key, tensor in load_file(file).items()
    }


def _archive(paths: JobPaths) -> None:
    log.info("packing %s", paths.model_archive)
    with (
        atomic_file(paths.model_archive) as temporary,
        # Weights hardly compress, whatever the level.
        tarfile.open(temporary, "w:gz", compresslevel=1) as archive,
    ):
        archive.add(paths.model, arcname=".", filter=_nobodys)


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the file's owner: archives are given away, and user names are nobody else's business."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _put_together(
    settings: Merge,
    paths: JobPaths,
    place: Place,
    base: Path,
    adapters: Sequence[tuple[Path, float]],
    layers: AdapterLayers,
) -> dict[str, Any]:
    """Combine the adapters into one."""
    reduced, family = None, find_family(settings.model.family)
    if settings.rank is not None or settings.keep_energy is not None:
        reduced = reduce(layers, rank=settings.rank, energy=settings.keep_energy)
        log.info("%s", reduced.described())
    paths.lora.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.folder, prefix=".writing-") as temporary:
        wanted = layers if reduced is None else reduced.layers
        file = write_diffusers(Path(temporary), family, wanted)
        check_read_back(file, family, skeleton(base, family.adapter_components), wanted)
        compared = check_put_together(
            settings.model,
            base,
            adapters,
            file,
            place,
            computed=DTYPES[settings.precision],
            exact=reduced is None,
        )
        file.replace(paths.weights)
    log.info("%s", _said(compared))
    log.info("%s", paths.weights)
    ranks = [each.rank for each in wanted.values()]
    figures = _figures(compared) | {"layers": len(wanted), "adapters": len(adapters), "rank": max(ranks)}
    figures.pop("weights_off")
    return {"merge": figures | _kept(reduced)}


def _kept(reduced: Reduced | None) -> dict[str, float]:
    return {} if reduced is None else {"kept_energy": round(reduced.kept_in_all, 6)}


def _figures(compared: Compared) -> dict[str, Any]:
    return {"output_off": compared.output, "weights_off": compared.weights, "effect": compared.effect}


def _said(compared: Compared) -> str:
    return (
        f"compared with the base and the adapters beside it: the output differs by {compared.output:.1e} of its norm; "
        f"the adapters change {compared.effect:.1e} of it"
    )
