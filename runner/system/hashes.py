"""SHA-256 of file contents; the hashes of unchanged files are remembered across processes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from runner.paths import cache_dir, files_below, write_text
from runner.system.exclusive import alone

HASHED_SUFFIXES = (".safetensors", ".bin", ".json", ".txt")
"""Suffixes of the files that determine a model."""


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of all JSON, text and weight files below `folder`."""
    digest = hashlib.sha256()
    memo = _Memo()
    for file in files_below(folder):
        if file.suffix in HASHED_SUFFIXES:
            digest.update(f"{file.relative_to(folder).as_posix()}\0{memo.sha256(file)}\n".encode())
    memo.save()
    return digest.hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file's content, in hex; remembered while the file does not change."""
    memo = _Memo()
    digest = memo.sha256(file)
    memo.save()
    return digest


class _Memo:
    """Remembers hashes of files by path, size and times, across processes."""

    def __init__(self) -> None:
        self.file = cache_dir() / "file-hashes.json"
        self.known = self._read()
        self.changed = False

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        return known if isinstance(known, dict) else {}

    def sha256(self, file: Path) -> str:
        stat = file.stat()
        # A container image or an archive may give all files one modification time, but nobody sets the change time.
        key = f"{os.path.realpath(file)}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
        if key not in self.known:
            with file.open("rb") as stream:
                self.known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            self.changed = True
        return self.known[key]

    def save(self) -> None:
        if self.changed:
            # Hashing a model takes minutes; meanwhile, another command may have hashed another model.
            with alone(self.file.with_suffix(".lock"), doing="writing down hashes of files"):
                write_text(self.file, json.dumps(self._read() | self.known, indent=0))
