"""Brings what a training job needs to S3: settings, code, data, base model, and what is already encoded.

Everything but the settings is stored under a name derived from its content, and sent only if it is not there yet; data
and models that are already in S3 are read in place.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from runner.aws.names import Places
from runner.aws.sent import is_sent, send, send_folder
from runner.aws.storage import ObjectStore
from runner.data import Item, read_dataset
from runner.data.classes import prior_of
from runner.data.dataset import Dataset, fingerprint_of, in_reading_order
from runner.data.export import CAPTION_COLUMN, IMAGE_COLUMN, export
from runner.data.prompts import prompts_of
from runner.jobs.earlier import find_earlier
from runner.jobs.job import Job, read_manifest
from runner.launchers.cluster import Order
from runner.launchers.sagemaker.channels import (
    cache_indexes,
    code_channel,
    code_digest,
    code_files,
    config_channel,
    dataset_channel,
    has_embedded_data,
    model_channel,
    model_folders,
)
from runner.launchers.sagemaker.in_place import data_in_place, models_in_place
from runner.launchers.sagemaker.request import CHECKPOINTS, Channel
from runner.parcel import CACHE, CODE, CODE_FILE, CONFIG, JOBS, PLAN_FILE, Parcel, in_channel
from runner.paths import CONFIG_NAME, MANIFEST_NAME
from runner.s3 import Location
from runner.schema import DatasetSettings, SageMakerLauncher
from runner.system.amounts import count
from runner.system.hashes import folder_hash
from runner.tasks.sent import laid, sent_files

log = logging.getLogger(__name__)

PASSED_VARIABLES = ("WANDB_BASE_URL", "WANDB_ENTITY", "HF_ENDPOINT")
"""Environment variables that are passed on to containers if set; none of them is secret."""
PASSED_SECRETS = ("WANDB_API_KEY", "HF_TOKEN")
MOST_CACHED = 50_000
"""The most encodings in the list that a training job gets; S3 reads no longer lists."""
BY_CONTENT = ("path", "sources", "revision", "split", "image_column", "caption_column", "captions_per_line",
              "mask_column", "instance_prompt", "skip_unreadable", "max_images", "min_side_px")  # fmt: skip
"""Settings of a data set that say how to find its images here, and nothing about the images found."""


class Inputs:
    """Brings what jobs need to S3, each thing once for all jobs of a command."""

    def __init__(self, settings: SageMakerLauncher, storage: ObjectStore, places: Places, region: str) -> None:
        self.settings, self.storage, self.places, self.region = settings, storage, places, region
        self._datasets: dict[tuple[DatasetSettings, int], Dataset] = {}
        self._sent: dict[str, Channel] = {}
        self._models: dict[str, Channel] = {}

    def bring(self, jobs: Sequence[Job], order: Order, place: Location) -> list[Channel]:
        """Everything that a training job of these jobs reads.

        Args:
            place: the training job's own folder.
        """
        channels = {CONFIG: config_channel(place), CODE: self._code}
        for job in jobs:
            settings = job.settings.model_dump(mode="json")
            self._send_files(job, settings, place)
            if job.trains:
                channels |= {channel.name: channel for channel in self._images(job, settings)}
            for key, model in models_in_place(job).items():
                settings["model"][key] = model.path
                channels[model.channel.name] = model.channel
            for key, folder in model_folders(job).items():
                channel = self._model(folder)
                settings["model"][key] = in_channel(channel.name)
                channels[channel.name] = channel
            if job.trains and (earlier := find_earlier(job.experiment.lora)):
                name = f"adapters/{earlier.digest[:16]}.safetensors"
                self.storage.upload({name: earlier.file}, place / f"{CONFIG}/")
                settings["lora"]["init_from"] = in_channel(CONFIG, name)
            self._write_job(job, settings, place)
        self._write_plan(jobs, order, place)
        if cached := self._cached(jobs, place):
            channels[CACHE] = cached
        return [channels[name] for name in sorted(channels)]

    # --- settings ---

    def _images(self, job: Job, settings: dict[str, Any]) -> list[Channel]:
        """The images of a training and of its subject classes; puts their place in the container into its settings."""
        dataset = self._read(job)
        prior = prior_of(job.experiment, dataset)
        kept = prior.classes if prior else ()
        class_channels = [self._channel(each.items) if each.items else None for each in kept]
        classes = [
            {"class_prompt": each.prompt, "class_data_dir": channel and in_channel(channel.name)}
            for each, channel in zip(kept, class_channels, strict=True)
        ]
        if prior:
            settings["method"] |= classes[0] if len(classes) == 1 else {"class_prompt": None, "class_data_dir": None}
        if data := data_in_place(job):
            settings["dataset"]["path"] = data.path
            own = [data.channel]
        elif has_embedded_data(job):
            own = []
        elif len(classes) > 1:
            # One source for each class, whatever the sources were here.
            own = [self._channel(each.subjects) for each in kept]
            sources = [{"path": in_channel(channel.name), **said} for channel, said in zip(own, classes, strict=True)]
            self._name_images(job, settings, dataset, {"path": None, "sources": sources})
        else:
            own = [self._channel(dataset.items)]
            self._name_images(job, settings, dataset, {"path": in_channel(own[0].name)})
        return [*own, *(channel for channel in class_channels if channel)]

    def _name_images(self, job: Job, settings: dict[str, Any], dataset: Dataset, place: Mapping[str, Any]) -> None:
        kept = {key: value for key, value in settings["dataset"].items() if key not in BY_CONTENT}
        defaults = {key: DatasetSettings.model_fields[key].default for key in BY_CONTENT}
        columns = {"image_column": IMAGE_COLUMN, "caption_column": CAPTION_COLUMN}
        settings["dataset"] = {**kept, **defaults, "min_side_px": 1, **columns, **place}
        # Images have other names in the container, and would lead to other captions being chosen.
        settings["validation"]["prompts"] = list(prompts_of(job.experiment, dataset.items))

    def _send_files(self, job: Job, settings: dict[str, Any], place: Location) -> None:
        """Send adapters and whatever else a task's settings name; they are stored beside the job's configuration."""
        for key, name, files in sent_files(job):
            self.storage.upload({f"{job.id}/files/{each}": file for each, file in files.items()}, place / f"{CONFIG}/")
            laid(settings, key, in_channel(CONFIG, f"{job.id}/files/{name}"))

    def _write_job(self, job: Job, settings: Mapping[str, Any], place: Location) -> None:
        folder = place / f"{CONFIG}/{job.id}/"
        self.storage.write(folder / CONFIG_NAME, yaml.safe_dump(settings, sort_keys=False).encode())
        self.storage.write(folder / MANIFEST_NAME, json.dumps(read_manifest(job.folder), indent=2).encode())
        # What was trained earlier, here or in another training job, goes where SageMaker restores checkpoints from.
        paths = job.paths
        if paths.checkpoints.is_dir() or paths.metrics.is_file():
            unwanted = (paths.lock, paths.config)
            files = {
                file.relative_to(job.folder).as_posix(): file
                for file in sorted(job.folder.rglob("*"))
                if file.is_file() and file not in unwanted and not file.name.startswith(".")
            }
            self.storage.upload(files, place / f"{CHECKPOINTS}{JOBS}/{job.id}/")

    def _write_plan(self, jobs: Sequence[Job], order: Order, place: Location) -> None:
        named = {"WANDB_API_KEY": self.settings.wandb_secret, "HF_TOKEN": self.settings.hub_secret}
        parcel = Parcel(
            jobs=tuple(job.id for job in jobs),
            at_once=order.at_once,
            processes=order.processes,
            device=self.settings.device,
            secrets={name: secret for name, secret in named.items() if secret},
            region=self.region,
        )
        self.storage.write(place / f"{CONFIG}/{PLAN_FILE}", parcel.model_dump_json(indent=2).encode())

    # --- what is named by its content ---

    @cached_property
    def _code(self) -> Channel:
        """The project's package as it is here, so that what was planned is what runs."""
        digest = code_digest()
        place = self.places.code(digest)
        if not self.storage.has(place / CODE_FILE):
            archive = code_archive()
            log.info("to S3: the project's code, %.1f MB", len(archive) / 1e6)
            self.storage.write(place / CODE_FILE, archive)
        return code_channel(self.places, digest)

    def _read(self, job: Job) -> Dataset:
        key = job.experiment.dataset, job.experiment.resolution
        if key not in self._datasets:
            self._datasets[key] = read_dataset(job.experiment.dataset, resolution=job.experiment.resolution)
        return self._datasets[key]

    def _channel(self, items: Sequence[Item]) -> Channel:
        """Images as their own data set, whether of subjects or of a class."""
        fingerprint = fingerprint_of(items)
        if fingerprint not in self._sent:
            self._sent[fingerprint] = self._send_images(items, fingerprint)
        return self._sent[fingerprint]

    def _send_images(self, items: Sequence[Item], fingerprint: str) -> Channel:
        place = self.places.dataset(fingerprint)
        if not is_sent(place, self.storage):
            with tempfile.TemporaryDirectory(prefix="runner-dataset-") as folder:
                log.info("to S3: a data set of %s", count(len(items), "image"))
                files = export(in_reading_order(items), Path(folder))
                send({file.name: file for file in files}, place, self.storage)
        size_gb = sum(each.size for each in self.storage.listing(place).values()) / 1e9
        return dataset_channel(self.places, fingerprint, streamed=size_gb > self.settings.fast_file_over_gb)

    def _model(self, folder: Path) -> Channel:
        digest = folder_hash(folder)
        if digest not in self._models:
            place = self.places.model(digest)
            send_folder(folder, place, self.storage, what=f"the base model {folder}")
            self._models[digest] = model_channel(self.places, digest)
        return self._models[digest]

    @cached_property
    def _in_cache(self) -> frozenset[str]:
        """What the cache holds, listed once for all jobs of a command."""
        return frozenset(self.storage.listing(self.places.cache))

    def _cached(self, jobs: Sequence[Job], place: Location) -> Channel | None:
        """What earlier training jobs have encoded from the same data with the same model."""
        names: set[str] = set()
        for index in cache_indexes(jobs, self.places):
            if self.storage.has(index):
                names |= set(json.loads(self.storage.read(index)))
        if names:
            # A list outlives its objects if those expire by age; what is gone is encoded again.
            names &= self._in_cache
        if not names:
            return None
        manifest = [{"prefix": self.places.cache.uri}, *sorted(names)[:MOST_CACHED]]
        target = place / "cache.manifest"
        self.storage.write(target, json.dumps(manifest).encode())
        return Channel(CACHE, target.uri, kind="ManifestFile")


def environment(settings: SageMakerLauncher) -> dict[str, str]:
    """Environment variables of the container."""
    names = (*PASSED_VARIABLES, *(PASSED_SECRETS if settings.pass_secrets else ()))
    return {name: value for name in names if (value := os.environ.get(name))}


def code_archive() -> bytes:
    """The package and its configuration as a zip; the same content gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, file in code_files():
            # Without the file's date, which says nothing about its content.
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes(), compresslevel=1)
    return buffer.getvalue()
