"""A base model is known by the content of its files, wherever they lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from runner.errors import ModelError
from runner.families.files import folder_hash
from runner.families.loading import load_component


def test_a_part_that_is_a_link_counts_by_what_it_leads_to(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text(name)
    (model := tmp_path / "model").mkdir()
    (model / "model_index.json").write_text("{}")
    seen = {folder_hash(model)}
    for name in ("one", "other"):
        (model / "unet").unlink(missing_ok=True)
        (model / "unet").symlink_to(tmp_path / name)
        seen.add(folder_hash(model))
    assert len(seen) == 3
    (model / "unet").unlink()
    (tmp_path / "other").rename(model / "unet")
    assert folder_hash(model) in seen, "as if it lay there"
    (model / "unet" / "above").symlink_to(model)
    assert folder_hash(model) in seen


def test_a_pickle_of_more_than_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(
        tmp_path
    )
    torch.save({"weights": _Harm(tmp_path / "harm")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has a pickled file that holds more than weights, and none of it is run"):
        load_component(CLIPTextModel, tmp_path, "", variant=None, dtype=torch.float32)
    assert not (tmp_path / "harm").exists()


class _Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)
