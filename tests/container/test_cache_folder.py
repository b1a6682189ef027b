"""The workers' cache: it contains what was sent, unchanged, and keeps what is new or made again."""

from __future__ import annotations

from pathlib import Path

import torch

from runner.cache.measured import MEASUREMENTS
from runner.cache.store import TensorCache
from runner.container.cache_folder import CacheFolder


def entry(folder: Path) -> TensorCache:
    return TensorCache(folder / "captions", names=("embeds",))


def kept(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def test_only_what_is_new_is_kept(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    entry(sent).put("aa01", {"embeds": torch.ones(2)})
    (sent / MEASUREMENTS).write_text("{}\n")
    folder = CacheFolder(tmp_path / "cache", sources=[sent, tmp_path / "absent"], kept=tmp_path / "kept")
    cache = entry(folder.folder)
    assert torch.equal(cache.get("aa01")["embeds"], torch.ones(2))  # type: ignore[index]

    with folder.keeping():
        cache.put("bb02", {"embeds": torch.zeros(2)})
    assert kept(tmp_path / "kept") == ["bb02.safetensors"]
    (copied,) = (tmp_path / "kept").rglob("*.safetensors")
    copied.write_text("as it was copied")
    folder.keep()
    assert copied.read_text() == "as it was copied", "not copied again and again"
    CacheFolder(folder.folder, sources=[], kept=tmp_path / "kept").keep()
    assert torch.equal(entry(tmp_path / "kept").get("bb02")["embeds"], torch.zeros(2))  # type: ignore[index]


def test_a_damaged_entry_is_made_anew_and_the_one_that_was_sent_is_not_touched(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    entry(sent).put("aa01", {"embeds": torch.ones(2)})
    (file,) = sent.rglob("*.safetensors")
    file.write_text("torn")
    folder = CacheFolder(tmp_path / "cache", sources=[sent], kept=tmp_path / "kept")
    cache = entry(folder.folder)

    assert cache.get("aa01") is None
    cache.put("aa01", {"embeds": torch.ones(2)})
    folder.keep()
    assert file.read_text() == "torn"
    assert kept(tmp_path / "kept") == ["aa01.safetensors"]


def test_what_an_earlier_container_has_kept_is_used_and_not_copied_again(tmp_path: Path) -> None:
    before = tmp_path / "kept"
    entry(before).put("cc03", {"embeds": torch.ones(2)})
    (file,) = before.rglob("*.safetensors")
    changed_ns = file.stat().st_mtime_ns
    folder = CacheFolder(tmp_path / "cache", sources=[before], kept=before)
    folder.keep()

    assert entry(folder.folder).has("cc03")
    assert file.stat().st_mtime_ns == changed_ns
