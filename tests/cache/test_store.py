"""A cache entry exists as a whole or not at all, even while others write to it or somebody removes it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from runner.cache.store import TensorCache, entry_key


def test_an_entrys_name_depends_on_all_its_content() -> None:
    keys = [entry_key("a", x=1), entry_key("b", x=1), entry_key("a", x=2), entry_key("a", y=1)]
    assert len(set(keys)) == 4
    assert entry_key("a", x=1, y=2) == entry_key("a", y=2, x=1)


def test_a_reader_never_sees_half_an_entry(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.put("ab12", {"x": torch.arange(3)})
    assert cache.has("ab12")
    assert [file.name for file in (tmp_path / "ab").iterdir()] == ["ab12.safetensors"]
    assert cache.get("cd34") is None
    assert torch.equal(cache.get("ab12")["x"], torch.arange(3))  # type: ignore[index]


def test_a_tensor_that_lies_otherwise_in_memory_is_the_same(tmp_path: Path) -> None:
    cache, tensor = TensorCache(tmp_path), torch.arange(6).view(2, 3).T
    cache.put("ab12", {"x": tensor})
    assert torch.equal(cache.get("ab12")["x"], tensor)  # type: ignore[index]


def test_an_entry_that_lacks_a_tensor_is_none_until_it_is_made_anew(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, names=("x", "y"))
    cache.put("ab12", {"x": torch.zeros(1)})
    assert cache.get("ab12") is None
    cache.put("ab12", {"x": torch.zeros(1), "y": torch.ones(1)})
    assert torch.equal(cache.get("ab12")["y"], torch.ones(1))  # type: ignore[index]


def test_an_entry_that_cannot_be_read_is_none_until_it_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path)
    # The first raises an OSError, like a disk with a bad block; in the second, another process removes the entry.
    for read in (Path.readlink, lambda file: file.unlink() or b""):
        cache.put("ab12", {"x": torch.zeros(1)})
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", read)
            assert cache.get("ab12") is None
        cache.put("ab12", {"x": torch.ones(1)})
        assert torch.equal(cache.get("ab12")["x"], torch.ones(1))  # type: ignore[index]


def test_the_size_of_entries_is_that_of_those_that_are_there(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    for key in ("ab12", "cd34"):
        cache.put(key, {"x": torch.zeros(10)})
    assert cache.size_bytes(["ab12", "cd34", "ef56"]) == 2 * cache.size_bytes(["ab12"]) > 0


def test_an_entry_that_another_process_makes_anew_is_not_removed_by_who_has_found_it_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, whole, read = TensorCache(tmp_path), {"x": torch.arange(3)}, Path.read_bytes
    cache.put("ab12", whole)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"torn")

    def read_just_before(self: Path) -> bytes:
        content = read(self)
        TensorCache(tmp_path).put("ab12", whole)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_just_before)
    assert cache.get("ab12") is None
    monkeypatch.undo()
    assert torch.equal(cache.get("ab12")["x"], torch.arange(3))  # type: ignore[index]


def test_an_entry_is_kept_also_where_the_cache_is_removed_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, times, fsync = TensorCache(tmp_path / "posteriors"), iter(range(2)), os.fsync

    def remove_before(handle: int) -> None:
        fsync(handle)
        if next(times, None) is not None:
            shutil.rmtree(cache.folder)

    monkeypatch.setattr(os, "fsync", remove_before)
    cache.put("ab12", {"x": torch.arange(3)})
    assert torch.equal(cache.get("ab12")["x"], torch.arange(3))  # type: ignore[index]
