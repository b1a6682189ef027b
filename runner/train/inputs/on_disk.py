"""Encodings that stay in the cache on disk, for data sets whose encodings are more than the memory holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from runner.cache.store import TensorCache

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


class OnDisk(Mapping[str, dict[str, Tensor]]):
    """Entries of a cache by their names, each read when it is asked for."""

    def __init__(self, cache: TensorCache, keys: Sequence[str], encode: Callable[[Sequence[str]], None]) -> None:
        """`encode` makes entries again that have gone since, or are damaged."""
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
    """Such entries under other names and in another form; nothing is kept."""

    def __init__(
        self,
        names: Mapping[Name, str],
        entries: Mapping[str, dict[str, Tensor]],
        form: Callable[[dict[str, Tensor]], Value],
    ) -> None:
        """`names`: which entry each name stands for."""
        self.names, self.entries, self.form = names, entries, form

    def __getitem__(self, name: Name) -> Value:
        return self.form(self.entries[self.names[name]])

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[Name]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
