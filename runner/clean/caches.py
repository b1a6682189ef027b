"""What this machine's caches hold that no given job uses: encodings, class images, unpacked models, S3 copies.

Deleting any of it is safe, and costs only the time to make it again. Jobs in other folders are unknown here.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from runner.cache.encodings import KeyFinder, Keys, Need, caption_cache, class_images_folder, posterior_cache
from runner.clean.thing import Thing, measure
from runner.data import Dataset, read_dataset
from runner.data.classes import prior_of
from runner.data.dataset import would_fetch
from runner.data.sources.s3 import source_of as data_source_of
from runner.data.sources.streamed import streamed_folder
from runner.errors import RunnerError
from runner.families.files import model_folder
from runner.families.stored import local_copy, place_of
from runner.families.stored import source_of as model_source_of
from runner.jobs.job import FINAL, Job, state_of
from runner.paths import cache_dir, path_of
from runner.s3 import Location, is_s3
from runner.s3.mirror import Mirror
from runner.schema import DatasetSettings
from runner.system.archive import BadArchive, is_archive

log = logging.getLogger(__name__)


def cache_things(jobs: Sequence[Job]) -> Iterator[Thing]:
    """What none of the jobs uses, one line per store."""
    trainings = [job for job in jobs if job.trains]
    yield from _encodings(trainings)
    used = {place for job in jobs for place in _places(job)}
    if not any(job.experiment.dataset.masks for job in trainings):
        yield from _store("masks", _children(cache_dir() / "masks"), set())
    yield from _store("class images", _children(cache_dir() / "class-images"), used)
    yield from _store("unpacked archives", _children(cache_dir() / "archives"), used)
    yield from _store("laid-out single files", _children(cache_dir() / "single-files"), used)
    if not any(job.experiment.dataset.streams for job in trainings):
        yield from _store("folders of streamed data sets", _children(streamed_folder()), set())
    yield from _mirrors(jobs)


def _encodings(trainings: Sequence[Job]) -> Iterator[Thing]:
    stores = {"posteriors": posterior_cache().folder, "captions": caption_cache().folder}
    entries = {name: sorted(folder.glob("*/*.safetensors")) for name, folder in stores.items()}
    if not any(entries.values()):
        return
    found: list[Keys] = []
    known: dict[DatasetSettings, Dataset] = {}
    finder = KeyFinder()
    # Generated class images are encoded too, under names derived from those images alone.
    drawn = any(job.classes for job in trainings)
    for job in trainings:
        try:
            keys = finder.keys_of(_need(job, known))
        except (RunnerError, OSError, ValueError) as error:
            keys = None
            log.info("%s: its data cannot be read (%s)", job.folder, str(error).splitlines()[0])
        if keys is None and state_of(job.folder) not in FINAL:
            log.warning("skipped: encodings, since it is unknown which of them %s uses", job.folder)
            return
        if keys is not None:
            found.append(keys)
    # Jobs that use the same data share one set object, which is large.
    each = {id(keys): keys for keys in found}.values()
    used = set[str]().union(*(keys.posteriors for keys in each), *(keys.captions for keys in each))
    for name, files in entries.items():
        if name == "posteriors" and drawn:
            continue
        yield from _store(f"encoded {name}", files, {file for file in files if file.stem in used})


def _need(job: Job, known: dict[DatasetSettings, Dataset]) -> Need:
    def read(settings: DatasetSettings) -> Dataset:
        if settings not in known:
            for path in settings.paths:
                if is_s3(path) and not Mirror(data_source_of(path)).is_complete:
                    raise RunnerError(f"{path} is not on this machine")
            if would_fetch(settings):
                raise RunnerError(f"{', '.join(settings.paths)} would be fetched")
            known[settings] = read_dataset(settings, refresh=False)
        return known[settings]

    dataset = read(job.experiment.dataset)
    return Need(job, dataset.items, prior_of(job.experiment, dataset, read=read))


def _places(job: Job) -> Iterator[Path]:
    """Cache folders that a job uses, or that contain what it uses."""
    model = job.settings.model
    # The folder of a local archive is not looked up, because that would unpack it.
    unpacks = is_archive(model.path) and not is_s3(model.path)
    if not unpacks and (folder := _quietly(lambda: model_folder(model))) is not None:
        yield from (folder, folder.parent)
    for named in (model.path, model.vae or ""):
        if is_s3(named):
            if (copy := _quietly(partial(local_copy, named))) is not None:
                yield from (copy, copy.parent)
        elif is_archive(named) and path_of(named).is_file():
            yield place_of(path_of(named))
    for each in job.classes:
        yield class_images_folder(job.experiment, str(each["prompt"]), model=str(job.identity["model"]))


def _quietly(find: Callable[[], Path | None]) -> Path | None:
    """A place, or None if what names it no longer exists."""
    try:
        return find()
    except (RunnerError, BadArchive, OSError, ValueError):
        return None


def _store(what: str, entries: Sequence[Path], used: set[Path]) -> Iterator[Thing]:
    free = [entry for entry in entries if entry not in used]
    if not free:
        return

    def remove() -> None:
        for entry in free:
            if entry.is_dir() and not entry.is_symlink():
                # Move it out of the way at once, so that nobody mistakes half of it for the whole.
                aside = entry.with_name(f".{entry.name}.removed")
                entry.rename(aside)
                shutil.rmtree(aside)
            else:
                entry.unlink(missing_ok=True)

    count = f"{len(free)} of {len(entries)}" if len(free) < len(entries) else str(len(free))
    yield Thing("cache", f"{what}: {count}", *measure(free), remove=remove)


def _mirrors(jobs: Sequence[Job]) -> Iterator[Thing]:
    """Copies from S3 that neither contain nor lie in one that a job uses."""
    used = {Mirror(source).path for job in jobs for source in _sources(job)}
    for record in sorted((cache_dir() / "s3" / ".records").glob("*.json")):
        try:
            mirror = Mirror(Location.parse(json.loads(record.read_text(encoding="utf-8"))["uri"]))
        except (OSError, ValueError, LookupError, TypeError):
            continue
        apart = not any(mirror.path.is_relative_to(each) or each.is_relative_to(mirror.path) for each in used)
        if apart and mirror.path.exists():
            yield Thing("cache", f"copy of {mirror.source.uri}", *measure([mirror.path]), remove=mirror.forget)


def _sources(job: Job) -> Iterator[Location]:
    """The S3 locations that a job's settings name."""
    yield from (
        model_source_of(named) for named in (job.settings.model.path, job.settings.model.vae or "") if is_s3(named)
    )
    if job.trains:
        folders = [source.class_data_dir for source in job.experiment.dataset.sources]
        folders.append(getattr(job.experiment.method, "class_data_dir", None))
        named_data = (*job.experiment.dataset.paths, *(folder or "" for folder in folders))
        yield from (data_source_of(named) for named in named_data if is_s3(named))
    real = getattr(job.experiment.evaluation if job.trains else job.settings, "real", None)
    if isinstance(real, str) and is_s3(real):
        yield data_source_of(real)


def _children(folder: Path) -> list[Path]:
    # Processes wait on lock files; without one, two of them would make the same thing at once.
    return sorted(child for child in folder.iterdir() if child.suffix != ".lock") if folder.is_dir() else []
