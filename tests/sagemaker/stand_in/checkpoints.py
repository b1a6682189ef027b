"""Checkpoints of one host: fetched from S3 at the start; then each change and deletion is pushed while the job runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .s3_files import download, files_of, list_keys, split_uri, upload


class CheckpointFolder:
    """A folder that is mirrored to S3. What others add to S3 later is not seen."""

    def __init__(self, s3: Any, folder: Path, uri: str) -> None:
        self.s3, self.folder = s3, folder
        bucket, prefix = split_uri(uri)
        self._bucket, self._prefix = bucket, prefix.rstrip("/") + "/" if prefix else ""
        self._known: dict[str, tuple[int, int]] = {}
        """Modification time and size of each file when it was last identical to its object."""
        self._looked_s = 0.0

    def fetch(self) -> None:
        """Download the objects into the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [key for key in list_keys(self.s3, self._bucket, self._prefix) if not key.endswith("/")]
        download(self.s3, [(self._bucket, key, key[len(self._prefix) :]) for key in keys], self.folder)
        self._known = self._present()

    def push_every(self, seconds: float) -> None:
        """Push, if the last push is at least that long ago."""
        if time.monotonic() - self._looked_s >= seconds:
            self.push()
            self._looked_s = time.monotonic()

    def push(self) -> None:
        """Make S3 match the folder as it is now, even if files are half written."""
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
