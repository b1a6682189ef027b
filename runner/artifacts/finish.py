"""Saves, checks and describes a trained adapter, in that order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from runner.artifacts.card import write_card
from runner.artifacts.files import write_diffusers, write_kohya
from runner.artifacts.verify import check_behaviour, check_kohya, check_tensors
from runner.train.samples import collate

if TYPE_CHECKING:
    from runner.train.job_run import JobRun

log = logging.getLogger(__name__)

COMPARED_SAMPLES = 2


def save_artifacts(
    run: JobRun, use_rows: Callable[[int], AbstractContextManager[None]], losses: Mapping[str, float]
) -> None:
    """Write everything under `lora/` of a job's folder.

    Raises:
        ArtifactError: a file, read back, is not what was trained.
    """
    base, settings, folder = run.base, run.settings, run.paths.lora
    folder.mkdir(parents=True, exist_ok=True)
    layers = run.adapter.state()
    diffusers_file = write_diffusers(folder, base.family, layers, settings.lora)
    check_tensors(diffusers_file, layers)
    title = f"{settings.name}-{run.job.id}"
    kohya_file = write_kohya(
        folder / f"{title}.safetensors",
        base.family,
        layers,
        settings.lora,
        about={
            "ss_base_model_version": base.family.kohya_version(base.denoiser),
            "ss_output_name": title,
            "ss_sd_model_name": settings.model.path,
            "modelspec.title": title,
        },
    )
    check_kohya(kohya_file, base.family, layers, settings.lora.scale)
    measured = run.materials.held_out_samples.samples
    samples = [sample for sample in measured if sample.latent.shape == measured[0].latent.shape][:COMPARED_SAMPLES]
    batch = collate(range(len(samples)), samples).to(base.place.device)
    files = {"diffusers file": (diffusers_file, settings.lora.scale), "kohya file": (kohya_file, 1.0)}
    checked = check_behaviour(files, layers, base, run.materials.conditioner, batch, use_rows)
    log.info("%s: saved and read back, %s", run.job.id, ", ".join(f"{name} {d:.1e}" for name, d in checked.items()))
    write_card(run, kohya_file, losses, checked)
