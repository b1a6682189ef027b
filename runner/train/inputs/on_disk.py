"""Encodings that stay in the cache on disk, for data sets whose encodings do not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from runner.cache.store import TensorCache

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


class OnDisk(Mapping[str, dict[str, Tensor]]):
    """Entries of a cache by key, each read when it is accessed."""

    def __init__(self, cache: TensorCache, keys: Sequence[str], encode: Callable[[Sequence[str]], None]) -> None:
        """`encode` recreates entries that have since disappeared or are damaged."""
        self.cache, self.encode = cache, encode
        self.keys_in_order = dict.fromkeys(keys)

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        if key not in self.keys_in_order:
            raise KeyError(key)
        entry = self.cache.get(key)
        if entry is None:
            self.encode([key])
            entry = self.cache.get(key)
        assert entry is not None, f"{key} is gone as soon as it is written"
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_in_order)

    def __len__(self) -> int:
        return len(self.keys_in_order)


class Stored(Mapping[Name, Value]):
    """The same entries under other names and in another form; keeps nothing in memory."""

    def __init__(
        self,
        names: Mapping[Name, str],
        entries: Mapping[str, dict[str, Tensor]],
        form: Callable[[dict[str, Tensor]], Value],
    ) -> None:
        """`names`: the entry's key for each name."""
        self.names, self.entries, self.form = names, entries, form

    def __getitem__(self, name: Name) -> Value:
        return self.form(self.entries[self.names[name]])

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[Name]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
