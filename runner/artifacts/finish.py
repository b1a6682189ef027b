"""Saves, checks and describes a trained adapter, in that order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from runner.artifacts.card import write_card
from runner.artifacts.exported import header_of_kohya
from runner.artifacts.files import write_diffusers, write_kohya
from runner.artifacts.verify import ScaleOf, check_behaviour, check_kohya, check_tensors
from runner.artifacts.words import check_words, write_words
from runner.hub import is_hub_id
from runner.mix.write import Layers
from runner.schema.method import NewTokens
from runner.train.adapters.adapter import WORDS
from runner.train.inputs.samples import collate

if TYPE_CHECKING:
    from runner.train.job_run import JobRun

log = logging.getLogger(__name__)

COMPARED_SAMPLES = 2


def save_artifacts(
    run: JobRun, use_rows: Callable[[int], AbstractContextManager[None]], losses: Mapping[str, float]
) -> None:
    """Write everything under `lora/` in a job's folder.

    DoRA gets no kohya file: ComfyUI divides by the norm of the base weight, where training uses that of the sum, and
    diffusers drops the magnitudes (`dora_scale`). No arithmetic would be right for all readers.

    Raises:
        ArtifactError: a file, read back, does not match what was trained.
    """
    base, settings, folder = run.base, run.settings, run.paths.lora
    folder.mkdir(parents=True, exist_ok=True)
    layers = run.adapter.state(run.published)
    words = layers.pop(WORDS, {})
    checked: dict[str, float] = {}
    kohya_file = None
    if layers:
        kohya_file, checked = _save_layers(run, layers, use_rows)
    if isinstance(settings.method, NewTokens):
        vectors = {name: words[f"{name}.{WORDS}"] for name in run.adapter.words}
        files = write_words(run.paths, base.family, settings.method, vectors, step=run.step)
        checked |= check_words(run, files, use_rows)
    differences = ", ".join(f"{name} {difference:.1e}" for name, difference in checked.items())
    log.info("%s: saved and read back; differences from what was trained: %s", run.job.id, differences)
    write_card(run, kohya_file, losses, checked)


def _save_layers(
    run: JobRun, layers: Layers, use_rows: Callable[[int], AbstractContextManager[None]]
) -> tuple[Path | None, dict[str, float]]:
    """The file for other programs, if there is one, and how far the output of each file is from what was trained."""
    base, settings = run.base, run.settings
    diffusers_file = write_diffusers(run.paths.lora, base.family, layers, settings.lora)
    check_tensors(diffusers_file, layers)
    kohya_file = None if settings.lora.dora else _kohya_file(run, layers)
    measured = run.materials.held_out_samples.samples
    samples = [sample for sample in measured if sample.latent.shape == measured[0].latent.shape][:COMPARED_SAMPLES]
    batch = collate(range(len(samples)), samples).to(base.place.device)
    files: dict[str, tuple[Path, ScaleOf]] = {"diffusers file": (diffusers_file, settings.lora.scale_of)}
    if kohya_file is not None:
        files[f"file for {base.family.export.readers}"] = (kohya_file, lambda _: 1.0)
    return kohya_file, check_behaviour(files, layers, base, run.materials.conditioner, batch, use_rows)


def _kohya_file(run: JobRun, layers: Layers) -> Path:
    base, settings = run.base, run.settings
    title = f"{settings.name}-{run.job.id}"
    file = write_kohya(
        run.paths.lora / f"{title}.safetensors",
        base.family,
        layers,
        settings.lora,
        about=header_of_kohya(base.family, base.denoiser, title=title, base_model=_named(settings.model.path)),
    )
    check_kohya(file, base.family, layers, settings.lora.scale_of)
    return file


def _named(path: str) -> str:
    """A Hub id unchanged, or only the name of a folder or file, because this file is given away."""
    return path if is_hub_id(path) else path.rstrip("/").rpartition("/")[2]
