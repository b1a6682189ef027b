"""What an endpoint serves: the adapters by name, and the base model as described to its containers."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from runner.aws.endpoints import BASE_PATH
from runner.families.files import local_folder
from runner.jobs.adapter_file import AdapterFile
from runner.paths import path_of
from runner.s3 import is_s3
from runner.schema.serving import ADAPTERS_FOLDER, Serving
from runner.schema.tasks.deploy import Deploy


def served_names(settings: Deploy, adapters: list[AdapterFile]) -> list[str]:
    """The adapters' names in requests: that of the training experiment, with the job's id where several share it."""
    plain = [_name(given, adapter) for given, adapter in zip(settings.adapter, adapters, strict=True)]
    return [
        f"{name}-{adapter.job.id}" if plain.count(name) > 1 and adapter.job is not None else name
        for name, adapter in zip(plain, adapters, strict=True)
    ]


def _name(given: str, adapter: AdapterFile) -> str:
    if adapter.job is not None:
        return adapter.job.settings.name
    place = path_of(given)
    return place.stem if place.is_file() else Path(os.path.abspath(place)).name


def base_folder(settings: Deploy) -> Path | None:
    """The folder on this machine with the base model, if the container cannot fetch it by itself."""
    path = settings.model.path
    return None if path == "embedded" or is_s3(path) else local_folder(path)


def serving_of(settings: Deploy, names: list[str]) -> Serving:
    """The settings sent to the containers.

    An endpoint with one adapter uses it unless a request says otherwise; with several, each request chooses.
    """
    usual = dict(zip(names, (weight for _, weight in settings.weighted), strict=True)) if len(names) == 1 else {}
    model = settings.model
    if base_folder(settings) is not None:
        model = model.model_copy(update={"path": BASE_PATH})
    return Serving(
        model=model,
        precision=settings.precision,
        resolution=settings.resolution,
        sampler=settings.scheduler.name,
        eta=settings.scheduler.eta,
        inference_steps=settings.inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_rescale=settings.guidance_rescale,
        negative_prompt=settings.negative_prompt,
        adapters=usual,
    )


def served_files(names: list[str], adapters: list[AdapterFile]) -> dict[str, Path]:
    """Name in the container's folder -> file on this machine, for the adapters and the words they were taught."""
    files = {}
    for name, adapter in zip(names, adapters, strict=True):
        for file in adapter.files:
            files[f"{ADAPTERS_FOLDER}/{name}/{file.name}"] = file
    return files


def key_of(settings: Deploy, image: str, serving: Serving, digests: list[str]) -> str:
    """A hash of everything that distinguishes one version of an endpoint from another."""
    fields = {"endpoint": settings.endpoint.model_dump(mode="json", exclude={"name", "poll_s", "wait", "tags"})}
    parts: dict[str, Any] = fields | {"image": image, "serving": serving.model_dump(mode="json"), "adapters": digests}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
