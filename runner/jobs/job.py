"""A job: settings, an identity, a folder. Knows nothing about where it runs or how it is trained.

The id is a hash of everything that can change the result, with defaults left out, so that the same settings always
map to the same folder and a new option does not rename old ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from runner.errors import FULL, RunnerError, SettingsError, system_error
from runner.paths import CONFIG_NAME, MANIFEST_NAME, JobPaths, write_over, write_text
from runner.schema import Experiment
from runner.schema.experiment import NOT_IDENTITY
from runner.schema.job import JobSettings
from runner.schema.method import NewTokens, TextualInversion
from runner.schema.tasks import TASKS
from runner.system.tensor_file import is_complete

SCHEMA_NUMBER = 1
"""Incremented when the meaning of existing settings changes, so that old results are not mistaken for new ones."""

USUAL_METHOD = "text_to_image"
OfClass = Mapping[str, str | None]
"""`prompt`, `images`, and with several classes `subjects` (`runner.data.classes`)."""

# Ten times as fast if PyYAML was built with libyaml; a table of jobs elsewhere reads hundreds every few seconds.
SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

log = logging.getLogger(__name__)

_remembered: dict[Path, dict[str, Any]] = {}
"""The manifests of jobs that this process has claimed or written, in their latest version."""


class State(StrEnum):
    """Where a job is in its life."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PRUNED = "pruned"


GOOD = (State.COMPLETED, State.PRUNED)
FINAL = (*GOOD, State.FAILED, State.CANCELLED)
"""States that waiting does not change: the job has its answer."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One of a command's jobs."""

    id: str
    settings: JobSettings
    identity: dict[str, Any]
    folder: Path
    overrides: tuple[str, ...] = ()

    @property
    def paths(self) -> JobPaths:
        """The paths inside its folder."""
        return JobPaths(self.folder)

    @property
    def task(self) -> str:
        """What it does."""
        return self.settings.task.name

    @property
    def trains(self) -> bool:
        """Whether it is a training; all other tasks work on adapters that are already trained."""
        return isinstance(self.settings, Experiment)

    @property
    def experiment(self) -> Experiment:
        """The settings of a training."""
        assert isinstance(self.settings, Experiment), self.task
        return self.settings

    @property
    def classes(self) -> Sequence[OfClass]:
        """The subject classes whose prior a training preserves, as its identity has them."""
        prior = self.identity.get("prior") or ()
        return (prior,) if isinstance(prior, Mapping) else prior

    @property
    def has_result(self) -> bool:
        """Whether the files with the result of the training are whole, or those of the task exist."""
        if not self.trains:
            patterns = self.settings.result_files
            return not patterns or any(any(self.folder.glob(pattern)) for pattern in patterns)
        method = self.experiment.method
        files = [self.paths.word(token) for token in method.tokens] if isinstance(method, NewTokens) else []
        files += [] if isinstance(method, TextualInversion) else [self.paths.weights]
        return all(map(is_complete, files))


def common_overrides(jobs: Iterable[Job]) -> frozenset[str]:
    """The overrides that all jobs of a command share; none if there is only one job, whose overrides all count."""
    texts = [frozenset(job.overrides) for job in jobs]
    return frozenset.intersection(*texts) if len(texts) > 1 else frozenset()


def own_overrides(job: Job, common: Collection[str]) -> str:
    """The overrides that distinguish a job from the others of its command."""
    return " ".join(text for text in job.overrides if text not in common)


def make_job(
    experiment: Experiment,
    *,
    model: str,
    dataset: str,
    outputs: Path,
    overrides: tuple[str, ...] = (),
    prior: OfClass | Sequence[OfClass] | None = None,
    init: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Job:
    """Give an experiment its identity and folder.

    Args:
        model: fingerprint of the base model.
        dataset: fingerprint of the images and captions.
        prior: the class prompt and the fingerprint of given class images, if a prior is preserved; with several
            classes, those of each class and the fingerprint of its subjects.
        init: hash of the adapter that the job starts from.
        evaluation: fingerprints of the images and networks used to measure its result, if there are any.
    """
    contents: dict[str, Any] = {"model": model, "dataset": dataset} | ({"prior": prior} if prior else {})
    contents |= ({"init": init} if init else {}) | ({"evaluation": evaluation} if evaluation else {})
    return make_task_job(experiment, contents, outputs=outputs, overrides=overrides)


def make_task_job(
    settings: JobSettings, contents: Mapping[str, Any], *, outputs: Path, overrides: tuple[str, ...] = ()
) -> Job:
    """Give the settings of any task their identity and folder.

    Args:
        contents: fingerprints and hashes of the files that the settings name, in place of their paths.
    """
    identity = {"schema": SCHEMA_NUMBER, **contents}
    identity |= {f"settings.{key}": value for key, value in _result_settings(settings)}
    job_id = id_of(identity)
    return Job(job_id, settings, identity, outputs / settings.name / job_id, overrides)


def id_of(identity: Mapping[str, Any]) -> str:
    """The id of a job with this identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def _result_settings(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the settings that can change a result and differ from their default."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if not prefix and name in NOT_IDENTITY:
            continue
        if isinstance(value, BaseModel):
            yield from _result_settings(value, f"{prefix}{name}.")
            continue
        extra = field.json_schema_extra
        counts = extra.get("identity", True) if isinstance(extra, dict) else True
        # The kind of a group is part of the identity even when it equals that kind's own default.
        chosen = name == "name" and (prefix == "optimizer." or (prefix == "method." and value != USUAL_METHOD))
        if counts and (value != field.default or chosen):
            yield f"{prefix}{name}", settings.model_dump(mode="json")[name]


def write_config(job: Job) -> None:
    """Write the resolved settings into the job's folder."""
    write_text(job.paths.config, yaml.safe_dump(job.settings.model_dump(mode="json"), sort_keys=False))


def read_job(folder: Path) -> Job:
    """The job in a folder, read from its config.yaml and manifest.json.

    Raises:
        RunnerError: the folder holds no job.
    """
    paths = JobPaths(folder)
    try:
        raw = yaml.load(paths.config.read_text(encoding="utf-8"), Loader=SafeLoader)
        settings = TASKS[raw["task"]["name"]].model_validate(raw)
        manifest = _remembered[paths.folder] = read_manifest(folder)
        return Job(manifest["id"], settings, manifest["identity"], paths.folder, tuple(manifest["overrides"]))
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        both, why = f"its {MANIFEST_NAME} or {CONFIG_NAME}", str(error)
        if isinstance(error, FileNotFoundError):
            why = f"it has no {Path(error.filename).name}; the command that made it writes it again"
        elif isinstance(error, KeyError | TypeError):
            why = f"{both} lacks {error}" if isinstance(error, KeyError) else f"{both} is empty or damaged"
        raise RunnerError(f"{folder} holds no job that can be read: {why}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a job's folder; empty if there is none yet.

    Raises:
        SettingsError: it is damaged.
    """
    file = JobPaths(folder).manifest
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        State(manifest.get("state", State.PENDING))
    except FileNotFoundError:
        return {}
    except (IsADirectoryError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"{file} is damaged ({error}); remove it, and the job goes on from its newest checkpoint"
        ) from error
    assert isinstance(manifest, dict), folder
    return manifest


def state_of(folder: Path) -> State:
    """The state in a folder's manifest; pending if there is none."""
    return State(read_manifest(folder).get("state", State.PENDING))


def known_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a job that this process works on; if damaged or removed in the meantime, its last known version.

    Raises:
        SettingsError: it is damaged, and this process has no earlier version.
    """
    paths = JobPaths(folder)
    known = _remembered.get(paths.folder, {})
    try:
        manifest = read_manifest(folder)
    except SettingsError:
        if not known:
            raise
        manifest = {}
    if known and not manifest:
        log.warning("%s is damaged or gone: continuing with what it said before", paths.manifest)
    return manifest or known


def update_manifest(folder: Path, **fields: Any) -> None:
    """Change fields of a manifest in one atomic write, if the disk is not full; no other module writes manifests.

    Raises:
        SettingsError: it is damaged, and this process has no earlier version.
    """
    paths = JobPaths(folder)
    manifest = known_manifest(folder) | fields
    text = json.dumps(manifest, indent=2) + "\n"
    try:
        write_text(paths.manifest, text)
    except OSError as error:
        # A full disk often has room for the few bytes more that say so: otherwise the job would seem to run.
        if system_error(error) not in FULL or not write_over(paths.manifest, text):
            raise
    _remembered[paths.folder] = manifest


def register(job: Job, state: State = State.PENDING) -> None:
    """Create or reuse the job's folder, and set the job to `state`."""
    write_config(job)
    fresh = {
        "id": job.id,
        "name": job.settings.name,
        "task": job.task,
        "overrides": list(job.overrides),
        "identity": job.identity,
    }
    known = read_manifest(job.folder)
    if not known:  # whoever removed it wants a new one
        _remembered.pop(job.paths.folder, None)
    update_manifest(
        job.folder,
        **fresh,
        state=state,
        error=None,
        crashed=False,
        created=known.get("created", now()),
        attempts=known.get("attempts", 0),
    )


def now() -> str:
    """This moment, in UTC, as ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
