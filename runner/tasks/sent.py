"""The files that the settings of a task name, for where they are not: what is sent, and how settings name it there."""

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
    """(dotted key of a setting, its value there, name there -> file here) of all that a job needs besides its model.

    Values are names below a folder in which the files will lie. A list's item has its index as the last part of the
    key.
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
        name = f"{key}/{os.path.basename(os.path.abspath(path))}"  # of `.` and `..`, too
        if path.is_file():
            yield key, name, {name: path}
        else:
            # Hidden files are no images and no weights: somebody's .env and .git do not travel.
            below = files_below(path, hidden=False)
            yield key, name, {f"{name}/{file.relative_to(path).as_posix()}": file for file in below}


def _adapter(name: str, adapter: AdapterFile) -> tuple[str, Mapping[str, Path]]:
    if adapter.job is None:
        return f"{name}/{adapter.file.name}", {f"{name}/{file.name}": file for file in adapter.files}
    # The folder of its job, as far as it is looked at: what it was trained for, and which words it was taught.
    paths, folder = adapter.job.paths, f"{name}/{adapter.job.id}"
    names = {
        file: f"{folder}/{file.relative_to(paths.folder).as_posix()}"
        for file in (paths.config, paths.manifest, adapter.file, *adapter.words)
    }
    # Without the words a file of its layers was named, and not the folder, in which they would be looked for.
    return folder if adapter.words else names[adapter.file], {name: file for file, name in names.items()}


def laid(raw: dict[str, Any], key: str, value: str) -> None:
    """Change one setting of a configuration, in place."""
    *path, last = key.split(".")
    node: Any = raw
    for part in path:
        node = node[part]
    node[int(last) if isinstance(node, list) else last] = value
