"""How much is encoded at once, how much of it is kept in memory, what is reported, and what is read later."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from runner.cache.store import TensorCache
from runner.families.family import TextStack
from runner.train.inputs import encode as encoding
from runner.train.inputs import shared_out
from runner.train.inputs.text import EncodedText, StoredText
from tests.train.bench import CPU, write_images
from tests.train.test_encode import Counted, encode, views_of


def test_a_gpu_encodes_images_of_one_shape_at_once_and_leaves_none_over(tmp_path: Path) -> None:
    views = views_of(write_images(tmp_path))
    wide = [dataclasses.replace(view, crop=dataclasses.replace(view.crop, height_px=32)) for view in views[:3]]
    wanted = {str(index): view for index, view in enumerate([*wide, *views])}
    portions = list(encoding._alike(list(wanted), wanted, 2 * 64 * 64))
    assert [len(each) for each in portions] == [2, 2, 2, 3, 1], "two squares, or four of half the height"
    assert sorted(key for each in portions for key in each) == sorted(wanted)
    for key, pixels in (found for each in portions for found in each.items()):
        assert torch.equal(pixels, encoding._pixels(wanted[key]))


def test_encodings_must_fit_into_the_memory_once_for_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path, names=("x",))
    cache.put("ab12", {"x": torch.zeros(1000)})
    held_gb = cache.size_bytes(["ab12"]) / 1e9
    monkeypatch.setattr(encoding, "host_memory_gb", lambda: 2.5 * held_gb / encoding.MEMORY_SHARE)
    fits = [encoding._fit(cache, ["ab12"], processes, what="images", says=True) for processes in (1, 2, 3)]
    assert fits == [True, True, False]
    monkeypatch.setattr(encoding, "host_memory_gb", lambda: None)
    assert encoding._fit(cache, ["ab12"], 3, what="images", says=True), "nobody knows that they do not"


def test_a_cpu_encodes_each_caption_alone() -> None:
    """So its last bits do not depend on what else was missing."""
    at_once: list[int] = []

    def encode(_: TextStack, ids: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        at_once.append(len(ids[0]))
        return {"embeds": ids[0]}

    tokenizers: Any = SimpleNamespace(ids=lambda captions: [torch.ones(len(captions), 2)])
    text, family = TextStack(tokenizers, [], zeros_for_empty=False), cast("Any", SimpleNamespace(encode_text=encode))
    captions = ["a star", "a moon", "a sun"]
    assert [caption for caption, _ in encoding.encode_at_once(captions, family, lambda: text, CPU)] == captions
    assert at_once == [1, 1, 1]


def test_how_far_an_encoding_is_is_said_now_and_then_and_not_after_every_turn(
    sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = itertools.count(step=0.4 * shared_out.SAY_EVERY_S)
    monkeypatch.setattr(shared_out, "time", SimpleNamespace(monotonic=lambda: now[0]))
    now = [next(clock)]
    load = Counted(sdxl_folder)
    load.vae.encoder.register_forward_hook(lambda *_: now.__setitem__(0, next(clock)))
    monkeypatch.setattr(encoding, "ENTRIES_PER_TURN", 1)
    with caplog.at_level("INFO"):
        encode(views_of(write_images(tmp_path / "images")), sdxl_folder, load)
    said = [record.getMessage() for record in caplog.records if "are encoded" in record.getMessage()]
    assert said == ["3 of 7 images are encoded", "6 of 7 images are encoded"]


@pytest.mark.parametrize("zeros", [True, False])
def test_captions_that_are_read_from_the_disk_are_those_in_memory(zeros: bool) -> None:
    encoded = {caption: {"embeds": torch.full((3, 2), number)} for number, caption in enumerate(["a star", ""], 1)}
    kinds = (EncodedText, StoredText)
    one, other = (kind(encoded, zeros_for_empty=zeros, device=torch.device("cpu")) for kind in kinds)
    asked = ["a star", None, "", "a star"]
    assert one.text(asked)["embeds"][:, 0, 0].tolist() == [1, 0 if zeros else 2, 2, 1]
    assert torch.equal(one.text(asked)["embeds"], other.text(asked)["embeds"])
