"""Settings of the jobs that were sent: channels become paths, archives become folders, hyperparameters override."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runner.check import Checker
from runner.errors import RunnerError, SettingsError
from runner.families.files import check_layout
from runner.jobs.job import Job, id_of, read_manifest
from runner.parcel import Parcel, unpacked
from runner.paths import JobPaths
from runner.schema import Experiment, ModelSettings
from runner.schema.experiment import SECTIONS
from runner.schema.job import JobSettings
from runner.schema.messages import unknown_key
from runner.schema.reading import read
from runner.schema.tasks import TASKS
from runner.system.archive import BadArchive, is_archive, lay_out


def sent_jobs(
    parcel: Parcel, config: Path, data: Path, jobs: Path, overrides: Mapping[str, str], *, models: Path
) -> list[Job]:
    """The jobs of a parcel, each with its folder below `jobs`, where nothing is written yet.

    Args:
        config: the channel that holds the parcel.
        data: the folder of all channels.
        overrides: dotted key -> value as YAML, for the only job; this makes it another job, with its own id.
        models: where archives of base models are unpacked.

    Raises:
        RunnerError: a file is missing or damaged.
        SettingsError: settings are wrong; every fault is named.
    """
    if overrides and len(parcel.jobs) > 1:
        raise RunnerError(f"hyperparameters ({', '.join(overrides)}) are for a single job, and {len(parcel.jobs)} came")
    found = []
    for job_id in parcel.jobs:
        raw, manifest = _read(config / job_id, data)
        raw = with_open_models(raw, models)
        if manifest.get("id") != job_id:
            raise RunnerError(f"{config / job_id} holds the job {manifest.get('id')!r}")
        texts = tuple(manifest.get("overrides", ()))
        sent = Job(job_id, _checked(raw), manifest["identity"], jobs / job_id, texts)
        found.append(_overridden(sent, raw, overrides) if overrides else sent)
    return found


def _read(folder: Path, data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    file = JobPaths(folder).config
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunnerError(f"{file} cannot be read: {error}") from error
    manifest = read_manifest(folder)
    if not isinstance(raw, dict) or not isinstance(manifest.get("identity"), dict):
        raise RunnerError(f"{folder} holds no job: config.yaml and manifest.json are needed")
    return unpacked(raw, data), manifest


def _checked(raw: Mapping[str, Any]) -> JobSettings:
    task = raw["task"].get("name") if isinstance(raw.get("task"), Mapping) else None
    settings, faults = read(TASKS.get(str(task), Experiment), raw)
    if settings is None:
        raise SettingsError("; ".join(faults))
    return settings


def _overridden(sent: Job, raw: Mapping[str, Any], overrides: Mapping[str, str]) -> Job:
    """The job with other settings. It gets the id that it would have where the command was typed.

    Some of what was sent, such as paths, has been rewritten for the container. So the identity that was sent is kept,
    except for what the overrides change.
    """
    checker, folder = Checker(sent.folder.parent), sent.folder.parent
    before = checker.job(raw).identity
    texts = (*sent.overrides, *(f"{key}={text}" for key, text in overrides.items()))
    job = checker.job(laid_over(raw, overrides), texts)
    added = {key: value for key, value in job.identity.items() if key not in before or before[key] != value}
    gone = before.keys() - job.identity.keys()
    identity = {key: value for key, value in sent.identity.items() if key not in gone} | added
    return Job(id_of(identity), job.settings, identity, folder / id_of(identity), job.overrides)


def laid_over(raw: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """A configuration with some settings changed.

    Args:
        overrides: dotted key -> value as YAML.

    Raises:
        SettingsError: a value is not valid YAML, or a key does not exist.
    """
    changed = copy.deepcopy(dict(raw))
    for key, text in overrides.items():
        _lay(changed, key, text)
    return changed


def _lay(raw: dict[str, Any], key: str, text: str) -> None:
    """Change one setting, in place."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{key} = {text!r}: is not valid YAML ({error})") from error
    if key in SECTIONS and not isinstance(value, dict):
        raise SettingsError(f"{key} = {text!r}: is a group of settings; name one of them, such as {key}.name")
    *path, last = key.split(".")
    node: Any = raw
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise SettingsError(f"{key} = {text!r}: {unknown_key(key)}")
    node[last] = value


def with_open_models(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration whose `model.path` and `model.vae` are folders even where they were archives.

    Args:
        raw: a configuration with paths on this machine.
        folder: where each archive is unpacked, once; it is removed when the container ends.

    Raises:
        SettingsError: an archive is damaged, or holds no model of this family.
    """
    model = dict(raw.get("model") or {})
    for key in ("path", "vae"):
        archive = model.get(key)
        if isinstance(archive, str) and is_archive(archive):
            place = folder / hashlib.sha256(archive.encode()).hexdigest()[:20]
            try:
                model[key] = str(lay_out(Path(archive), place))
            except BadArchive as error:
                raise SettingsError(f"model.{key}: {error}") from error
            if key == "path":
                check_layout(ModelSettings.model_validate(model | {"vae": None}))
    return {**raw, "model": model}
