"""Reads what wandb wrote for an offline run: its transaction log, in the LevelDB log format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK_BYTES = 32768
HEADER_BYTES = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class LoggedRun:
    """The contents of one log."""

    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def read_logs(job_folder: Path) -> list[LoggedRun]:
    """All runs that wandb wrote into a job's folder, oldest first. Ends wandb, so that it writes its last block."""
    wandb.teardown()
    return [_read(path) for path in sorted(job_folder.glob("wandb/*run-*/*.wandb"))]


def _raw_records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    position, part = HEADER_BYTES, b""
    while position + HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < HEADER_BYTES:
            position += left
            continue
        _checksum, size, kind = struct.unpack("<IHB", data[position : position + HEADER_BYTES])
        if kind == 0:
            position += left
            continue
        body = data[position + HEADER_BYTES : position + HEADER_BYTES + size]
        position += HEADER_BYTES + size
        part = part + body if kind in (MIDDLE, LAST) else body
        if kind in (FULL, LAST):
            yield part


def _items(items: Any) -> dict[str, Any]:
    return {".".join(i.nested_key) if i.nested_key else i.key: json.loads(i.value_json) for i in items}


def _read(path: Path) -> LoggedRun:
    out = LoggedRun()
    for raw in _raw_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(raw)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            out.run = {
                "id": run.run_id, "name": run.display_name, "group": run.run_group, "tags": list(run.tags),
                "job_type": run.job_type, "project": run.project,
            }  # fmt: skip
            out.config.update(_items(run.config.update))
        elif kind == "config":
            out.config.update(_items(record.config.update))
        elif kind == "history":
            out.history.append(_items(record.history.item))
        elif kind == "summary":
            out.summary.update(_items(record.summary.update))
        elif kind == "artifact":
            artifact = record.artifact
            out.artifacts.append({
                "name": artifact.name, "type": artifact.type, "aliases": list(artifact.aliases),
                "files": {entry.path: entry.size for entry in artifact.manifest.contents},
                "metadata": json.loads(artifact.metadata or "{}"),
            })  # fmt: skip
        elif kind == "exit":
            out.exit_code = record.exit.exit_code
    return out
