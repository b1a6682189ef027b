"""Content-addressed store of tensors on disk, shared by every job, sweep and process of a machine.

An entry's name is a hash of everything its content depends on, so an entry is never wrong, only absent. Entries
are written atomically and never changed; deleting any of them, or all, is always safe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.paths import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

ENCODING = 1
"""Increased when the way images or captions are encoded changes."""
ATTEMPTS = 5
"""Attempts to write an entry into a folder that is being removed."""


def entry_key(kind: str, **content: Any) -> str:
    """The name of an entry: a hash of its kind and of everything its content depends on."""
    text = json.dumps({"kind": kind, "encoding": ENCODING, **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class TensorCache:
    """Named tensors stored under content keys."""

    def __init__(self, folder: Path, *, names: Collection[str] = ()) -> None:
        """`names`: tensors that every entry must have; an entry without them is damaged."""
        self.folder = folder
        self.names = set(names)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the entry exists."""
        return self._file(key).is_file()

    def size_bytes(self, keys: Iterable[str]) -> int:
        """Total size of those of the entries that exist."""
        size = 0
        for key in keys:
            with suppress(FileNotFoundError):
                size += self._file(key).stat().st_size
        return size

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry's tensors on the CPU, or None if it is absent or cannot be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            # Read, not mapped: a system allows about 65,000 mappings, and a mapped file that shrinks kills the process.
            tensors: dict[str, Tensor] = load(self._file(key).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            tensors = {}
        # A damaged entry stays until it is replaced: another process may have rewritten it since it was read.
        return tensors if tensors and self.names <= tensors.keys() else None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store an entry; readers see all of it or nothing."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        file, written = self._file(key), {name: tensor.contiguous() for name, tensor in tensors.items()}
        for left in reversed(range(ATTEMPTS)):
            try:
                with atomic_file(file) as temporary:
                    save_file(written, temporary)
                return
            except (FileNotFoundError, SafetensorError):
                # Someone has removed the whole cache in the meantime.
                if not left:
                    raise
