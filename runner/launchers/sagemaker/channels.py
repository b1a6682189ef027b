"""The inputs of a training job by name and place, as far as jobs alone determine them; nothing is read or sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from runner import HOME, PACKAGE
from runner.aws.names import Places
from runner.families.files import local_folder
from runner.jobs.job import Job
from runner.launchers.sagemaker.in_place import data_in_place, models_in_place
from runner.launchers.sagemaker.request import Channel
from runner.parcel import CODE, CONFIG
from runner.plan import Pack
from runner.s3 import Location, is_s3
from runner.system.hashes import folder_hash

MOST_CHANNELS = 20
"""The limit per training job, from SageMaker's reference of CreateTrainingJob."""


def too_many_channels(packs: Sequence[Pack], places: Places) -> str | None:
    """The message if a training job would have more inputs (data sets and base models) than SageMaker accepts."""
    place = places.training_job("any", "any")
    # Plus one: what earlier training jobs have encoded.
    most = max((len(planned_channels(pack.jobs, places, place)) + 1 for pack in packs), default=0)
    if most <= MOST_CHANNELS:
        return None
    return (
        f"launcher.concurrency: the jobs of one training job would need {most} input channels (one for each data set, "
        f"class and base model), and SageMaker takes {MOST_CHANNELS}; raise launcher.concurrency, which divides them "
        "among several training jobs, or leave out data sets"
    )


def planned_channels(jobs: Sequence[Job], places: Places, place: Location) -> list[Channel]:
    """All inputs except what earlier training jobs have encoded, which only S3 knows."""
    channels = {CONFIG: config_channel(place), CODE: code_channel(places, code_digest())}
    for job in jobs:
        found = [each.channel for each in models_in_place(job).values()]
        if not job.trains:
            pass  # what it reads is stored beside its configuration
        elif data := data_in_place(job):
            found.append(data.channel)
        elif len(job.classes) > 1:
            found += [dataset_channel(places, str(each["subjects"])) for each in job.classes]
        elif not has_embedded_data(job):
            found.append(dataset_channel(places, job.identity["dataset"]))
        found += [dataset_channel(places, images) for each in job.classes if (images := each["images"])]
        found += [model_channel(places, folder_hash(folder)) for folder in model_folders(job).values()]
        channels |= {channel.name: channel for channel in found}
    return [channels[name] for name in sorted(channels)]


def config_channel(place: Location) -> Channel:
    """The settings of each job, and the plan for working through them."""
    return Channel(CONFIG, (place / f"{CONFIG}/").uri)


def code_channel(places: Places, digest: str) -> Channel:
    """The project's package."""
    return Channel(CODE, places.code(digest).uri)


def dataset_channel(places: Places, fingerprint: str, *, streamed: bool = False) -> Channel:
    """A data set, whatever it was made from."""
    return Channel(f"dataset-{fingerprint[:8]}", places.dataset(fingerprint).uri, "FastFile" if streamed else "File")


def model_channel(places: Places, digest: str) -> Channel:
    """A base model, or a VAE, from a folder."""
    return Channel(f"model-{digest[:8]}", places.model(digest).uri)


def has_embedded_data(job: Job) -> bool:
    """Whether the images come with the package."""
    return job.experiment.dataset.path == "embedded"


def model_folders(job: Job) -> dict[str, Path]:
    """The local folders that `model.path` and `model.vae` name, by these keys; others are read in place."""
    found = {}
    for key in ("path", "vae"):
        value = getattr(job.settings.model, key)
        folder = local_folder(value) if value and value != "embedded" and not is_s3(value) else None
        if folder is not None:
            found[key] = folder
    return found


def cache_indexes(jobs: Sequence[Job], places: Places) -> list[Location]:
    """Where the lists of encodings are, one for each pair of base model and data set among these jobs."""
    trainings = [job for job in jobs if job.trains]
    pairs = {(job.identity["model"], job.identity["dataset"], job.experiment.resolution) for job in trainings}
    keys = sorted(hashlib.sha256(repr(pair).encode()).hexdigest()[:32] for pair in pairs)
    return [places.cache / f"indexes/{key}.json" for key in keys]


def code_files() -> Iterator[tuple[str, Path]]:
    """(name in the archive, file) of everything in the package and its configuration, except hidden files."""
    roots = {"runner": PACKAGE} | ({} if HOME == PACKAGE else {"conf": HOME / "conf"})
    for top, root in roots.items():
        for file in sorted(root.rglob("*")):
            below = file.relative_to(root)
            if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in below.parts):
                yield f"{top}/{below.as_posix()}", file


def code_digest() -> str:
    """SHA-256 over the names and contents of the package's files."""
    digest = hashlib.sha256()
    for name, file in code_files():
        digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
