"""The store of tensors that processes share, while others write to it and somebody removes it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from runner.cache import TensorCache


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
