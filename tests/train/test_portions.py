"""How many images are encoded at once, how many encodings the memory holds, and what those mean that it does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from runner.cache import TensorCache
from runner.train.inputs import encode as encoding
from runner.train.inputs.text import EncodedText, StoredText
from tests.train.bench import write_images
from tests.train.test_encode import views_of


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


@pytest.mark.parametrize("zeros", [True, False])
def test_captions_that_are_read_from_the_disk_are_those_in_memory(zeros: bool) -> None:
    encoded = {caption: {"embeds": torch.full((3, 2), number)} for number, caption in enumerate(["a star", ""], 1)}
    kinds = (EncodedText, StoredText)
    one, other = (kind(encoded, zeros_for_empty=zeros, device=torch.device("cpu")) for kind in kinds)
    asked = ["a star", None, "", "a star"]
    assert one.text(asked)["embeds"][:, 0, 0].tolist() == [1, 0 if zeros else 2, 2, 1]
    assert torch.equal(one.text(asked)["embeds"], other.text(asked)["embeds"])
