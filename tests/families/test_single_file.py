"""Models in one file: read once with the configurations beside them, or refused with what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from runner.errors import ModelError
from runner.families.files import check_model, fingerprint, model_folder, planning_folder, snapshot
from runner.schema import ModelSettings
from tests.families.original_layout import write_original
from tests.train.bench import Bench, difference, family_of, pipeline_of, weights


def configurations(model: Path, folder: Path, *, with_weights_of: tuple[str, ...] = ()) -> Path:
    """A model's folder without weights, except for some parts."""
    shutil.copytree(model, folder)
    for file in folder.rglob("*.safetensors"):
        if file.parent.name not in with_weights_of:
            file.unlink()
    return folder


@pytest.fixture
def sd15_file(sd15_folder: Path, tmp_path: Path) -> Path:
    return write_original(pipeline_of(sd15_folder), tmp_path / "model.safetensors")


def settings_of(file: Path, config: Path, **others: Any) -> ModelSettings:
    return ModelSettings(**{"path": str(file), "config": str(config), "family": family_of(config), **others})


def parameters(folder: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "sd35"])
def test_a_file_is_laid_out_as_the_model_it_was_made_from(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(f"{name}_folder")
    pipeline = pipeline_of(model)
    if name.startswith("sd3"):  # such files lack the first encoder's projection, which the real models do not have
        pipeline.text_encoder.text_projection.weight.data.copy_(torch.eye(16))
        pipeline.save_pretrained(model := tmp_path / name)
    config = configurations(model, tmp_path / f"{name}-config")
    settings = settings_of(write_original(pipeline, tmp_path / "model.safetensors"), config)
    assert check_model(settings) == []
    assert model_folder(settings) is None
    assert planning_folder(settings) == config
    folder = snapshot(settings)
    parts = {file.parent.name for file in model.rglob("*.safetensors")}
    assert len(parts) == {"sd15": 3, "sdxl": 4, "sd3": 5, "sd35": 4}[name]
    for part in parts:
        found, wanted = parameters(folder, part), parameters(model, part)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), part
    before = folder.stat().st_mtime_ns
    assert snapshot(settings) == model_folder(settings) == folder
    assert folder.stat().st_mtime_ns == before, "it is laid out once"


def test_a_file_is_known_by_its_content(sd15_file: Path, sd15_folder: Path, tmp_path: Path) -> None:
    config = configurations(sd15_folder, tmp_path / "sd15-config")
    known = fingerprint(settings_of(sd15_file, config))
    moved = Path(shutil.copy(sd15_file, tmp_path / "renamed.safetensors"))
    assert fingerprint(settings_of(moved, config)) == known
    tensors = load_file(moved)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, moved)
    assert fingerprint(settings_of(moved, config)) != known


def test_a_job_on_a_file_trains_what_a_job_on_the_folder_trains(
    bench: Bench, sd15_file: Path, sd15_folder: Path, tmp_path: Path
) -> None:
    config = configurations(sd15_folder, tmp_path / "sd15-config")
    single = bench.job(sd15_folder, steps=2, model={"path": str(sd15_file), "config": str(config)})
    whole = bench.job(sd15_folder, steps=2)
    assert bench.train(single)
    assert bench.train(whole)
    assert single.identity != whole.identity
    assert difference(weights(single), weights(whole)) == 0.0


def test_what_a_file_does_not_hold_is_taken_from_the_folder(flux_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    shutil.copy(next((flux_folder / "transformer").glob("*.safetensors")), file)
    bare = settings_of(file, configurations(flux_folder, tmp_path / "flux-bare"))
    faults = check_model(bare)
    assert [fault.partition("holds no weights of the ")[2].split(",")[0] for fault in faults] == [
        "vae",
        "text_encoder",
        "text_encoder_2",
    ]
    rest = ("vae", "text_encoder", "text_encoder_2")
    settings = settings_of(file, configurations(flux_folder, tmp_path / "flux-rest", with_weights_of=rest))
    assert check_model(settings) == []
    folder = snapshot(settings)
    for part in ("transformer", *rest):
        found, wanted = parameters(folder, part), parameters(flux_folder, part)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_half_precision_stays_half(sd15_file: Path, sd15_folder: Path, tmp_path: Path) -> None:
    save_file({key: tensor.bfloat16() for key, tensor in load_file(sd15_file).items()}, sd15_file)
    folder = snapshot(settings_of(sd15_file, configurations(sd15_folder, tmp_path / "sd15-config")))
    assert {tensor.dtype for tensor in parameters(folder, "unet").values()} == {torch.bfloat16}


def test_what_is_no_weight_has_no_say_in_the_precision(sd15_file: Path, sd15_folder: Path, tmp_path: Path) -> None:
    halves = {key: tensor.half() for key, tensor in load_file(sd15_file).items()}
    beside = {"alphas_cumprod": torch.ones(1000, dtype=torch.float64), "betas": torch.ones(1000)}
    save_file(halves | beside, sd15_file)
    settings = settings_of(sd15_file, configurations(sd15_folder, tmp_path / "sd15-config"))
    assert check_model(settings) == []
    assert {tensor.dtype for tensor in parameters(snapshot(settings), "unet").values()} == {torch.float16}


def test_files_that_cannot_be_read_are_refused_before_anything_starts(
    sd15_file: Path, sd15_folder: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    config = configurations(sd15_folder, tmp_path / "sd15-config")

    def said(file: Path, folder: Path = config, **others: Any) -> str:
        (fault,) = check_model(settings_of(file, folder, **others), used_here=others.pop("used_here", True))
        return fault

    assert "cannot be read as a .safetensors file" in said(tmp_path / "nothing.safetensors")
    torn = tmp_path / "torn.safetensors"
    for size in (100, sd15_file.stat().st_size - 1000):
        torn.write_bytes(sd15_file.read_bytes()[:size])
        assert "cannot be read as a .safetensors file" in said(torn)
    assert "has no model_index.json" in said(sd15_file, tmp_path)
    assert "model.family = 'sdxl'" in said(sd15_file, family="sdxl")
    adapter = tmp_path / "adapter.safetensors"
    save_file(
        {"lora_unet_x.lora_up.weight": torch.zeros(1), "transformer_blocks.0.lora_A.weight": torch.zeros(1)}, adapter
    )
    assert "holds no UNet or transformer" in said(adapter)
    quantised = tmp_path / "quantised.safetensors"
    save_file({"model.diffusion_model.x": torch.zeros(4).to(torch.float8_e4m3fn)}, quantised)
    assert "quantised (F8_E4M3)" in said(quantised)
    (fault,) = check_model(settings_of(sd15_file, config), used_here=False)
    assert "jobs that run elsewhere are sent folders" in fault
    (config / "vae" / "config.json").unlink()
    assert said(sd15_file).startswith(f"model.config = {str(config)!r}: its vae/config.json is missing")
    (config / "model_index.json").write_text("[")
    assert f"{config}/model_index.json: is not JSON" in said(sd15_file)


def test_a_file_that_is_marked_as_of_velocity_is_not_trained_as_one_of_noise(
    sd15_file: Path, sd15_folder: Path, tmp_path: Path
) -> None:
    config = configurations(sd15_folder, tmp_path / "sd15-config")
    save_file(load_file(sd15_file) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, sd15_file)
    velocity, noise_alone = check_model(settings_of(sd15_file, config))
    assert "predicts velocity" in velocity
    assert velocity.endswith("set model.prediction_type=v_prediction")
    assert noise_alone.endswith("set model.zero_terminal_snr=true")
    assert check_model(settings_of(sd15_file, config, prediction_type="v_prediction", zero_terminal_snr=True)) == []
    said = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler = config / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | said))
    assert check_model(settings_of(sd15_file, config)) == []


def test_a_file_of_another_model_is_refused(sd15_file: Path, sd15_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(sd15_file)
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, sd15_file)
    settings = settings_of(sd15_file, configurations(sd15_folder, tmp_path / "sd15-config"))
    with pytest.raises(ModelError, match=r"model\.config = .*are they of the same model\?"):
        snapshot(settings)
    assert model_folder(settings) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": "model.safetensors"}, "config = null: model.safetensors is a single file"),
        ({"path": "owner/name", "config": "folder"}, "config = 'folder': has no effect"),
        ({"path": "model.safetensors", "config": "x", "variant": "fp16"}, "variant = 'fp16': has no effect"),
        ({"path": "s3://bucket/model.safetensors", "config": "x"}, "single files are read from disks only"),
    ],
)
def test_settings_of_single_files_that_do_not_fit_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelSettings.model_validate(settings)
