"""An incomplete model is refused before anything starts, with what it lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from PIL import Image

from runner.embedded import MODEL_DIR
from runner.errors import SettingsError
from runner.families.files import check_model, dropout_faults
from runner.families.layout import layout_faults, names_in
from runner.schema import Experiment, ModelSettings
from runner.schema.tasks.generate import Generate
from runner.tasks.generate.check import check

Change = Callable[[Path], object]
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
NO_WEIGHTS = "has no weights (*.safetensors or *.bin); copy or download the whole model"


def written(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def gone(name: str) -> Change:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def renamed(name: str, other: str) -> Change:
    return lambda folder: (folder / name).rename((folder / name).with_name(other))


def halved(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def without(part: str) -> Change:
    def change(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        del index[part]
        (folder / "model_index.json").write_text(json.dumps(index))

    return change


def in_shards(folder: Path) -> None:
    first, second = (f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2))
    (folder / UNET).rename(folder / "unet" / first)
    table = {"weight_map": {"a": first, "b": second}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(table))


DAMAGED: dict[str, tuple[Change, list[str]]] = {
    "no JSON": (written("model_index.json", "{"), ["its model_index.json is not JSON ("]),
    "a list": (written("model_index.json", "[]"), ["its model_index.json holds no JSON object"]),
    "a part that is not named": (without("vae"), ["its model_index.json names no vae"]),
    "a damaged configuration": (written("unet/config.json", "[]"), ["its unet/config.json holds no JSON object"]),
    "a damaged sampler": (
        written("scheduler/scheduler_config.json", ""),
        ["its scheduler/scheduler_config.json is not JSON ("],
    ),
    "no sampler": (gone("scheduler"), ["its scheduler/scheduler_config.json is missing"]),
    "no tokenizer": (gone("tokenizer_2"), ["its tokenizer_2 has neither tokenizer.json nor vocab.json and merges.txt"]),
    "no text encoder": (
        gone("text_encoder_2"),
        ["its text_encoder_2/config.json is missing", f"its text_encoder_2 {NO_WEIGHTS}"],
    ),
    "no weights of two parts": (
        lambda folder: (gone(UNET)(folder), gone(VAE)(folder)),
        [f"its unet {NO_WEIGHTS}", f"its vae {NO_WEIGHTS}"],
    ),
    "another variant": (
        renamed(UNET, "diffusion_pytorch_model.fp16.safetensors"),
        ["its unet has weights of the variant fp16 only; set model.variant=fp16"],
    ),
    "a part of the weights": (
        in_shards,
        ["its unet lacks 1 of 2 files with weights, such as diffusion_pytorch_model-00002-of-00002.safetensors"],
    ),
    "weights that were cut short": (
        halved(VAE),
        ["its vae has diffusion_pytorch_model.safetensors, which cannot be read (cut short"],
    ),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(MODEL_DIR, tmp_path / "model")


@pytest.mark.parametrize(("change", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_model_that_is_not_whole_is_refused(model: Path, change: Change, said: list[str]) -> None:
    change(model)

    faults = check_model(ModelSettings(path=str(model)))

    assert len(faults) == len(said), faults
    for fault, words in zip(faults, said, strict=True):
        assert fault.startswith(f"model.path = {str(model)!r}: ") and words in fault


def test_what_a_training_does_not_load_may_be_missing(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    index |= {"safety_checker": ["transformers", "X"], "text_encoder_3": [None, None], "requires_safety_checker": True}
    (model / "model_index.json").write_text(json.dumps(index))
    gone("vae")(model)
    own = model.with_name("vae")
    shutil.copytree(MODEL_DIR / "vae", own)

    assert check_model(ModelSettings(path=str(model), vae=str(own))) == []
    gone("config.json")(own)
    (fault,) = check_model(ModelSettings(path=str(model), vae=str(own)))
    assert fault.startswith(f"model.vae = {str(own)!r}: its config.json is missing")
    shutil.copyfile(MODEL_DIR / "vae" / "config.json", own / "config.json")
    renamed(VAE.partition("/")[2], "diffusion_pytorch_model.fp16.safetensors")(own)
    (fault,) = check_model(ModelSettings(path=str(model), vae=str(own)))
    assert fault.endswith("it has weights of the variant fp16 only; copy or download the whole model")


def test_all_parts_need_the_variant(model: Path) -> None:
    renamed(UNET, "diffusion_pytorch_model.fp16.safetensors")(model)

    faults = check_model(ModelSettings(path=str(model), variant="fp16"))

    assert [fault.partition("its ")[2].partition(" ")[0] for fault in faults] == [
        "text_encoder",
        "text_encoder_2",
        "vae",
    ]
    assert all("has no weights of the variant fp16; set model.variant=null" in fault for fault in faults)


def test_of_a_model_elsewhere_the_names_are_enough(model: Path) -> None:
    names = names_in(model)
    for name in names:
        if name.endswith(".safetensors"):
            (model / name).unlink()

    def lacks(names: set[str]) -> list[str]:
        return list(layout_faults(model, names, "unet", variant=None, own_vae=True, weights="listed"))

    assert lacks(names) == []
    assert lacks(names - {UNET}) == [f"its unet {NO_WEIGHTS}"]


def test_a_controlnet_without_weights_is_refused(tmp_path: Path) -> None:
    image, network = tmp_path / "edges.png", tmp_path / "network"
    Image.new("RGB", (64, 64)).save(image)
    network.mkdir()
    (network / "config.json").write_text("{}")
    raw = {"prompts": "x", "control": {"path": str(network), "image": str(image)}}

    with pytest.raises(SettingsError, match=r"^control\.path = '.*/network': it has no weights \("):
        check(Generate.model_validate(raw))


@pytest.fixture
def in_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's snapshot in the Hub's cache, which cannot be completed: the tests run offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--ann--sdxl"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return shutil.copytree(MODEL_DIR, repository / "snapshots" / "abc")


def test_half_a_download_is_refused_where_the_rest_cannot_be_fetched(in_cache: Path) -> None:
    model = ModelSettings(path="ann/sdxl")
    assert check_model(model) == []
    gone(UNET)(in_cache)
    (fault,) = check_model(model)
    assert fault.startswith(
        "model.path = 'ann/sdxl': the copy in the local cache of the Hub is incomplete (its unet has no"
    )
    assert fault.endswith(
        "and the Hub cannot be reached (HF_HUB_OFFLINE is set); fetch it once where there is a network"
    )
    assert check_model(model, used_here=False) == [], "another machine fetches its own"


def test_half_a_vae_is_refused_where_the_rest_cannot_be_fetched(in_cache: Path) -> None:
    shutil.copyfile(in_cache / "vae" / "config.json", in_cache / "config.json")
    model = ModelSettings(vae="ann/sdxl")
    (fault,) = check_model(model)
    assert fault.startswith(
        "model.vae = 'ann/sdxl': the copy in the local cache of the Hub is incomplete (it has no weights"
    )
    assert fault.endswith("or set model.vae=null for the model's own")
    shutil.copyfile(in_cache / VAE, in_cache / "diffusion_pytorch_model.safetensors")
    assert check_model(model) == []


def test_text_encoders_without_captions_are_trained_by_the_encoded_empty_one_only(
    tmp_path: Path, sd15_folder: Path
) -> None:
    def faults(model: Path, family: str = "sdxl", **changes: Any) -> list[str]:
        raw = {"dataset": {"path": "embedded", "caption_dropout": 1}, "lora": {"text_encoder": True}, **changes}
        model_settings = {"path": str(model), "family": family}
        return dropout_faults(Experiment.model_validate({"model": model_settings, "resolution": 64, **raw}))

    (said,) = faults(MODEL_DIR)
    assert said.startswith("dataset.caption_dropout = 1.0: leaves out every caption")
    assert faults(MODEL_DIR, lora={"text_encoder": False}) == []
    assert faults(MODEL_DIR, method={"name": "dreambooth", "prior": "base", "class_prompt": "a house"}) == []
    assert faults(MODEL_DIR, method={"name": "dreambooth", "class_prompt": "a house"}) == [said]
    assert faults(sd15_folder, "sd") == []
    index = json.loads((MODEL_DIR / "model_index.json").read_text()) | {"force_zeros_for_empty_prompt": False}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert faults(tmp_path) == []
