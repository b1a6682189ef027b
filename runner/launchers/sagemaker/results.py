"""Brings what a training job wrote to S3 into the job folders here: a little while it runs, everything at its end."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from runner.aws.names import Location, Places
from runner.aws.storage import ObjectStore, Stored, differs
from runner.cache.measured import MEASUREMENTS, take_in
from runner.jobs.job import Job, State, update_manifest
from runner.jobs.lock import LockedError, lock
from runner.launchers.sagemaker.channels import cache_indexes
from runner.launchers.sagemaker.request import CHECKPOINTS
from runner.parcel import CACHE, JOBS
from runner.paths import CONFIG_NAME, LOCK_NAME, LOG_NAME, MANIFEST_NAME, METRICS_NAME
from runner.s3.location import is_file_name

log = logging.getLogger(__name__)

WATCHED = (METRICS_NAME, LOG_NAME)
"""The files that are brought while a job runs."""
OURS = ("submission", "overrides")
"""Manifest fields that are written here and not in the container."""
NOT_BROUGHT = (CONFIG_NAME, MANIFEST_NAME, LOCK_NAME)
WAITING = (State.PENDING, State.SUBMITTED)
"""States that a job has there before a worker takes it; they say nothing new."""
ENDED = (State.COMPLETED, State.FAILED, State.PRUNED, State.INTERRUPTED)


class Collector:
    """Brings results; remembers what it has seen, so that only changes are transferred."""

    def __init__(self, storage: ObjectStore, places: Places) -> None:
        self.storage, self.places = storage, places
        self._seen: dict[tuple[str, str], str] = {}

    def look(self, jobs: Sequence[Job], place: Location, *, everything: bool = False) -> bool:
        """Bring what is new from a training job's jobs; returns whether it has started any of them.

        Args:
            everything: whether to bring all files even of jobs that have not ended, because nothing more will come.
        """
        folder = place / f"{CHECKPOINTS}{JOBS}/"
        found: dict[str, dict[str, Stored]] = {}
        for name, stored in self.storage.listing(folder).items():
            job_id, _, rest = name.partition("/")
            found.setdefault(job_id, {})[rest] = stored
        for job in jobs:
            if files := found.get(job.id):
                self._bring(job, folder / f"{job.id}/", files, everything=everything)
        return bool(found)

    def look_at(self, job: Job, kept: Location, *, everything: bool) -> bool:
        """Bring what is new from one job; returns whether there is anything from it.

        Args:
            kept: the place of its container's folder of checkpoints.
            everything: as in `look`.
        """
        folder = kept / f"{JOBS}/{job.id}/"
        files = self.storage.listing(folder)
        if files:
            self._bring(job, folder, files, everything=everything)
        return bool(files)

    def _bring(self, job: Job, folder: Location, files: Mapping[str, Stored], *, everything: bool) -> None:
        manifest = self._manifest(folder, files.get(MANIFEST_NAME))
        whole = everything or (manifest is not None and manifest.get("state") in ENDED)
        wanted = [
            name
            for name, stored in files.items()
            if (whole or name in WATCHED) and _is_brought(name) and self._is_new(job, folder, name, stored)
        ]
        try:
            # Whoever holds the lock trains the job here, and knows better.
            with lock(job.folder):
                self.storage.download(folder, wanted, job.folder)
                for name in wanted:
                    self._seen[folder.uri, name] = files[name].etag
                if whole:
                    self._remove_old_checkpoints(job, files)
                # Files arrive there in any order. If a completed job lacks its result, the next look brings the rest.
                is_completed = manifest is not None and manifest.get("state") == State.COMPLETED
                if is_completed and not job.has_result and not everything:
                    return
                # The manifest comes last: it must not claim anything before everything else is here.
                if manifest is not None and manifest.get("state") not in WAITING:
                    update_manifest(job.folder, **{key: each for key, each in manifest.items() if key not in OURS})
                # Only now: an object that vanishes between listing and copy ends a look, and the next must try again.
                if manifest is not None:
                    self._seen[folder.uri, MANIFEST_NAME] = files[MANIFEST_NAME].etag
        except LockedError:
            log.debug("%s is worked on here", job.id)

    def _manifest(self, folder: Location, stored: Stored | None) -> dict[str, Any] | None:
        """The job's manifest, if it changed since the last look."""
        if stored is None or self._seen.get((folder.uri, MANIFEST_NAME)) == stored.etag:
            return None
        place = folder / MANIFEST_NAME
        try:
            manifest = json.loads(self.storage.read(place))
        except ValueError:
            return None  # it will be complete at the next look
        return dict(manifest)

    def _is_new(self, job: Job, folder: Location, name: str, stored: Stored) -> bool:
        if self._seen.get((folder.uri, name)) == stored.etag:
            return False
        return differs(job.folder / name, stored)

    @staticmethod
    def _remove_old_checkpoints(job: Job, files: Mapping[str, Stored]) -> None:
        kept = {name.split("/")[1] for name in files if name.startswith("checkpoints/")}
        if job.paths.checkpoints.is_dir():
            for step in job.paths.checkpoints.iterdir():
                if step.name not in kept:
                    shutil.rmtree(step, ignore_errors=True)

    def keep_cache(self, jobs: Sequence[Job], kept: Location) -> None:
        """Keep what a training job has encoded for later ones, and what it has measured for plans made here.

        Args:
            kept: the place of its container's folder of checkpoints.
        """
        folder = kept / f"{CACHE}/"
        names = self.storage.listing(folder)
        if names.pop(MEASUREMENTS, None):
            take_in(self.storage.read(folder / MEASUREMENTS).decode(errors="replace"))
        if not names:
            return
        known = self.storage.listing(self.places.cache)
        for name in names:
            if name not in known:
                self.storage.copy(folder / name, self.places.cache / name)
        for index in cache_indexes(jobs, self.places):
            listed: set[str] = set()
            if self.storage.has(index):
                listed = set(json.loads(self.storage.read(index)))
            self.storage.write(index, json.dumps(sorted(listed | set(names))).encode())


def _is_brought(name: str) -> bool:
    # A file that a container is still writing has a hidden name, and may have been stored under it. A name that ends
    # with a slash stands for a folder: S3's console creates some.
    hidden = any(part.startswith(".") for part in name.split("/"))
    return name not in NOT_BROUGHT and not hidden and is_file_name(name)
