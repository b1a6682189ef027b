"""Checkpoints of one host: what is in S3 at the start, then each change and deletion, pushed while the job runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .s3_files import download, files_of, list_keys, split_uri, upload


class CheckpointFolder:
    """A folder whose content S3 follows. What others add to S3 later is not seen."""

    def __init__(self, s3: Any, folder: Path, uri: str) -> None:
        self.s3, self.folder = s3, folder
        bucket, prefix = split_uri(uri)
        self._bucket, self._prefix = bucket, prefix.rstrip("/") + "/" if prefix else ""
        self._known: dict[str, tuple[int, int]] = {}
        """Modification time and size of each file, when it was last the same as its object."""
        self._looked_s = 0.0

    def fetch(self) -> None:
        """Write what S3 has into the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [key for key in list_keys(self.s3, self._bucket, self._prefix) if not key.endswith("/")]
        download(self.s3, [(self._bucket, key, key[len(self._prefix) :]) for key in keys], self.folder)
        self._known = self._present()

    def push_every(self, seconds: float) -> None:
        """Push, if that is so long ago."""
        if time.monotonic() - self._looked_s >= seconds:
            self.push()
            self._looked_s = time.monotonic()

    def push(self) -> None:
        """Bring S3 to what the folder holds now, whole or half written."""
        present = self._present()
        for name, state in present.items():
            if self._known.get(name) != state:
                try:
                    upload(self.s3, self.folder / name, self._bucket, self._prefix + name)
                except FileNotFoundError:
                    continue  # renamed or deleted meanwhile: the next look sees it
                self._known[name] = state
        for name in set(self._known) - set(present):
            self.s3.delete_object(Bucket=self._bucket, Key=self._prefix + name)
            del self._known[name]

    def _present(self) -> dict[str, tuple[int, int]]:
        present = {}
        for file in files_of(self.folder):
            try:
                state = file.stat()
            except FileNotFoundError:
                continue
            present[str(file.relative_to(self.folder))] = (state.st_mtime_ns, state.st_size)
        return present
