"""Evaluations with unusable files or settings are refused before anything is drawn."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from runner.errors import SettingsError
from runner.measures.networks import Clip
from runner.tasks.evaluate.check import check
from tests.tasks.evaluations import Networks, networks, settings

__all__ = ["networks"]


def test_faults_of_files_are_told_together_before_anything_is_drawn(networks: Networks, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(one / "image.png")
    features = {"clip": str(one), "dino": "nowhere", "inception": networks.inception}
    asked = settings(networks, features=features, real=str(one))
    with pytest.raises(SettingsError) as caught:
        check(asked)
    said = str(caught.value)
    assert "features.clip" in said and "has no config.json" in said
    assert "features.dino = 'nowhere': there is no such folder; give a folder or a Hub id (owner/name)" in said
    assert "holds 1 image, and fid and kid need 2" in said


def test_what_is_said_of_real_images_names_no_setting_that_an_evaluation_has_not(
    networks: Networks, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 8)).save(tmp_path / "flat.png")
    (tmp_path / "torn.png").write_bytes(b"torn")
    with pytest.raises(SettingsError, match=r"real='.*': 2 faults") as caught:
        check(settings(networks, real=str(tmp_path)))
    assert "flat.png: the image is 64x8 px, its shorter side below 32. Repair or remove it." in str(caught.value)
    assert "dataset." not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("t.parquet", {"img": [b"x"]}, "no column 'image' (did you mean 'img'?); columns: 'img'. Rename the one with"),
        ("t.parquet", {"image": [1]}, "column 'image' holds int64, not images. Give a table where it is one of bytes"),
        ("test.parquet", {"image": [b"x"]}, "split 'train': no file of this split; splits found: 'test'. Give its"),
    ],
)
def test_what_is_said_of_tables_of_real_images_can_be_done(
    networks: Networks, tmp_path: Path, name: str, columns: dict[str, Any], said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / name)
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        check(settings(networks, real=str(tmp_path)))
    assert "dataset." not in str(caught.value)


def test_a_network_that_cannot_read_texts_is_refused_before_anything_is_drawn(
    networks: Networks, tmp_path: Path
) -> None:
    mute = tmp_path / "mute"
    shutil.copytree(networks.clip, mute, ignore=shutil.ignore_patterns("tokenizer*"))
    for named, fault in ((networks.dino, "is a network that does not encode texts"), (str(mute), "has no tokenizer")):
        with pytest.raises(SettingsError, match=rf"features\.clip = '{named}': {fault}"):
            check(settings(networks, features={"clip": named}, metrics=["clip_text"]))
    with pytest.raises(SettingsError, match="has no tokenizer that knows any words"):
        Clip("features.clip", str(mute), torch.device("cpu"))


def test_a_distance_of_too_few_drawn_images_is_refused_before_anything_is_drawn(networks: Networks) -> None:
    one = settings(networks, metrics=["kid"], prompts="a star", subject=None, subject_class=None, seeds=[0])
    with pytest.raises(SettingsError, match=r"prompts = \[a star\]: 1 prompt and 1 seed give 1 image, and fid and kid"):
        check(one)
    check(one.model_copy(update={"seeds": (0, 1)}))
    check(one.model_copy(update={"metrics": ("dino",)}))


def test_a_network_that_is_not_whole_is_refused_before_anything_is_drawn(networks: Networks, tmp_path: Path) -> None:
    """In a training, it would be found only after the training is over."""
    dino, inception = shutil.copytree(networks.dino, tmp_path / "dino"), tmp_path / "inception.pt"
    (weights,) = dino.glob("*.safetensors")
    inception.write_bytes(Path(networks.inception).read_bytes()[:-1000])
    features = {"clip": networks.clip, "dino": str(dino), "inception": str(inception)}
    for damage, fault in (
        (
            lambda: weights.write_bytes(weights.read_bytes()[:-9]),
            f"it has {weights.name}, which cannot be read (cut short",
        ),
        (weights.unlink, "it has no weights (*.safetensors or *.bin)"),
        (lambda: (dino / "config.json").write_text("["), "its config.json is not JSON"),
    ):
        damage()
        with pytest.raises(SettingsError) as caught:
            check(settings(networks, features=features))
        assert f"features.dino = {str(dino)!r}: {fault}" in str(caught.value)
        assert f"features.inception = {str(inception)!r}: is not a complete file of torch.jit.save" in str(caught.value)
