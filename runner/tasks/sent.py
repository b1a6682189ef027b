"""Local files that a task's settings name, for jobs run elsewhere: which are sent, and how settings name them there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.jobs.adapter_file import AdapterFile
from runner.jobs.job import Job
from runner.paths import files_below, path_of
from runner.schema.tasks.adapters import WithAdapters
from runner.tasks.adapters import find_adapters


def sent_files(job: Job) -> Iterator[tuple[str, str, Mapping[str, Path]]]:
    """(dotted key of a setting, its value there, name there -> file here) for all that a job needs besides its model.

    Values are names below the folder that will hold the files. The key of a list item ends in its index.
    """
    settings = job.settings
    if isinstance(settings, WithAdapters):
        for index, adapter in enumerate(find_adapters(settings)):
            yield f"adapter.{index}", *_adapter(f"adapter-{index}", adapter)
    for key in settings.local_files:
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        path = path_of(value) if isinstance(value, str) else None
        if path is None or not path.exists():
            continue
        name = f"{key}/{os.path.basename(os.path.abspath(path))}"  # also for `.` and `..`
        if path.is_file():
            yield key, name, {name: path}
        else:
            # Hidden files are neither images nor weights: somebody's .env and .git are not sent.
            below = files_below(path, hidden=False)
            yield key, name, {f"{name}/{file.relative_to(path).as_posix()}": file for file in below}


def _adapter(name: str, adapter: AdapterFile) -> tuple[str, Mapping[str, Path]]:
    if adapter.job is None:
        return f"{name}/{adapter.file.name}", {f"{name}/{file.name}": file for file in adapter.files}
    # The part of its job's folder that is read: what it was trained for, and which words it was taught.
    paths, folder = adapter.job.paths, f"{name}/{adapter.job.id}"
    names = {
        file: f"{folder}/{file.relative_to(paths.folder).as_posix()}"
        for file in (paths.config, paths.manifest, adapter.file, *adapter.words)
    }
    # Without words, the settings named a file with its layers; given the folder, the task would look for words in it.
    return folder if adapter.words else names[adapter.file], {name: file for file, name in names.items()}


def laid(raw: dict[str, Any], key: str, value: str) -> None:
    """Change one setting of a configuration, in place."""
    *path, last = key.split(".")
    node: Any = raw
    for part in path:
        node = node[part]
    node[int(last) if isinstance(node, list) else last] = value
