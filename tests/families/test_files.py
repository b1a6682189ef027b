"""A base model is identified by the content of its files, wherever they are."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from runner.embedded import MODEL_DIR
from runner.errors import ModelError
from runner.families.loading import load_component
from runner.system.hashes import file_hash, folder_hash


def test_commands_that_hash_at_the_same_time_remember_what_each_has_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, digest, hashed = tmp_path / "one", tmp_path / "other", hashlib.file_digest, list[str]()
    one.write_text("1")
    other.write_text("2")

    def hash_meanwhile(stream: Any, kind: str) -> Any:
        hashed.append(Path(stream.name).name)
        if hashed == ["one"]:
            file_hash(other)
        return digest(stream, kind)

    monkeypatch.setattr(hashlib, "file_digest", hash_meanwhile)
    for file in (one, other):
        file_hash(file)
    assert hashed == ["one", "other"]


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


def test_weights_of_the_same_size_and_time_in_the_place_of_others_are_another_model(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "weights.safetensors"
    weights.parent.mkdir()
    seen = []
    for content in ("one", "two", "one"):
        (tmp_path / "new").write_text(content)
        os.utime(tmp_path / "new", (1, 1))
        (tmp_path / "new").replace(weights)
        seen.append(folder_hash(weights.parent))
    assert seen[0] == seen[2] != seen[1]


def test_a_pickle_of_more_than_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(
        tmp_path
    )
    torch.save({"weights": _Harm(tmp_path / "harm")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has a pickled file that holds more than weights, and none of it is run"):
        load_component(CLIPTextModel, tmp_path, "", variant=None, dtype=torch.float32)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("kind", "part", "file"),
    [
        (CLIPTextModelWithProjection, "text_encoder_2", "model.safetensors"),
        (UNet2DConditionModel, "unet", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_part_that_lacks_a_weight_or_is_damaged_is_refused(kind: Any, part: str, file: str, tmp_path: Path) -> None:
    shutil.copytree(MODEL_DIR / part, tmp_path / part)
    weights = tmp_path / part / file
    whole = load(weights.read_bytes())
    lacking = sorted(whole)[-1]
    save_file({name: tensor for name, tensor in whole.items() if name != lacking}, weights, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"{part} lacks 1 of the weights of a {kind.__name__}, such as {lacking}; give"
    ):
        load_component(kind, tmp_path, part, variant=None, dtype=torch.float32)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=rf"{part} cannot be read as {kind.__name__} \("):
        load_component(kind, tmp_path, part, variant=None, dtype=torch.float32)


def test_a_vae_under_the_older_names_of_its_layers_is_whole(tmp_path: Path) -> None:
    """Stable Diffusion 1.5's VAE is stored like that."""
    shutil.copytree(MODEL_DIR / "vae", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = load(file.read_bytes())
    for now, before in older.items():
        renamed = {name.replace(f".{now}.", f".{before}."): tensor for name, tensor in renamed.items()}
    save_file(renamed, file, metadata={"format": "pt"})
    found = load_component(AutoencoderKL, tmp_path, "", variant=None, dtype=torch.float32).state_dict()
    wanted = load_component(AutoencoderKL, MODEL_DIR, "vae", variant=None, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys() and all(found[name].equal(tensor) for name, tensor in wanted.items())


class _Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)
