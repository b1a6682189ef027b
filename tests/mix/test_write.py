"""What is written means the same to our reader, to diffusers, and by kohya's plain arithmetic."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file

from runner.families import find_family
from runner.mix.layers import AdapterLayers
from runner.mix.model import fuse, fused, stored_dtype, write_fused
from runner.mix.read import read_adapter
from runner.mix.write import write_diffusers, write_kohya
from tests.artifacts.saved import apart, output
from tests.mix.adapters import add_kohya, random_layers, same_updates
from tests.mix.conftest import Parts
from tests.train.bench import pipeline_of


def mixed_layers(parts: Parts) -> AdapterLayers:
    """Ranks and scales that differ from layer to layer."""
    layers = random_layers(parts, rank=4, scale=0.5)
    other = random_layers(parts, rank=2, scale=1.5, targets=("to_v", "conv1"))
    return layers | {key: each for key, each in other.items() if key[0] == "unet"}


def of_folder(model: Path) -> tuple[Any, Any, Parts]:
    pipeline = pipeline_of(model)
    family = find_family("sdxl" if hasattr(pipeline, "text_encoder_2") else "sd")
    return pipeline, family, {name: getattr(pipeline, name) for name in family.adapter_components}


@pytest.fixture(params=["sdxl_folder", "sd15_folder"])
def model(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_all_files_mean_the_same_to_diffusers_and_to_plain_arithmetic(model: Path, tmp_path: Path) -> None:
    pipeline, family, parts = of_folder(model)
    layers = mixed_layers(parts)
    bare = output(pipeline)
    files = {
        "folded": write_kohya(tmp_path / "folded.safetensors", family, layers, about={}),
        "alpha": write_kohya(tmp_path / "alpha.safetensors", family, layers, about={}, folded=False),
        "diffusers": write_diffusers(tmp_path, family, layers),
    }
    for file in files.values():
        assert same_updates(read_adapter(file, family, parts), layers) < 1e-6
    alphas = {float(tensor) for key, tensor in load_file(files["alpha"]).items() if key.endswith(".alpha")}
    assert alphas == {2.0, 3.0}
    plain = of_folder(model)
    fuse(plain[2], layers, torch.float32)
    wanted = output(plain[0])
    assert apart(bare, wanted) > 1e-2, "the adapter does nothing"
    for name in ("folded", "alpha"):
        by_hand = pipeline_of(model)
        assert add_kohya(by_hand, files[name]) == len(layers)
        assert apart(output(by_hand), wanted) < 1e-5
    for name in ("folded", "diffusers"):
        pipeline.load_lora_weights(tmp_path, weight_name=files[name].name)
        assert apart(output(pipeline), wanted) < 1e-5, name
        pipeline.unload_lora_weights()


def test_what_is_written_twice_is_the_same_to_the_last_byte(model: Path, tmp_path: Path) -> None:
    """peft keeps the names of layers as a set, and safetensors the metadata as a map: neither has an order."""
    _, family, parts = of_folder(model)
    layers = mixed_layers(parts)
    for index in range(4):
        (tmp_path / str(index)).mkdir()
        kohya = write_kohya(tmp_path / str(index) / "others.safetensors", family, layers, about={"a": "ä\n", "b": '"'})
        with safe_open(write_diffusers(tmp_path / str(index), family, layers), "pt") as opened:
            about = json.loads(opened.metadata()["lora_adapter_metadata"])
        for component in parts:
            names = about[f"{component}.target_modules"]
            assert names == sorted(names) and len(names) > 1
    with safe_open(kohya, "pt") as opened:
        assert opened.metadata()["a"] == "ä\n" and opened.metadata()["b"] == '"'
    for name in ("others.safetensors", "pytorch_lora_weights.safetensors"):
        assert len({(tmp_path / str(index) / name).read_bytes() for index in range(4)}) == 1


def test_diffusers_gives_every_layer_its_own_rank_and_scale(model: Path, tmp_path: Path) -> None:
    pipeline, family, parts = of_folder(model)
    layers = mixed_layers(parts)
    write_diffusers(tmp_path, family, layers)
    pipeline.load_lora_weights(tmp_path)
    found = {
        (component, name): (next(iter(module.r.values())), next(iter(module.scaling.values())))
        for component in parts
        for name, module in getattr(pipeline, component).named_modules()
        if isinstance(module, LoraLayer)
    }
    assert found == {key: (each.rank, pytest.approx(each.scale)) for key, each in layers.items()}


def test_a_layer_whose_name_ends_that_of_others_has_a_rank_and_scale_of_its_own(
    flux_folder: Path, tmp_path: Path
) -> None:
    pipeline = pipeline_of(flux_folder)
    layers = random_layers({"transformer": pipeline.transformer}, rank=4, scale=0.5, targets=("proj_out",))
    own = random_layers({"transformer": pipeline.transformer}, rank=2, scale=1.5, targets=("proj_out",))
    layers["transformer", "proj_out"] = own["transformer", "proj_out"]
    assert len(layers) > 1
    write_diffusers(tmp_path, find_family("flux"), layers)
    pipeline.load_lora_weights(tmp_path)
    found = {
        ("transformer", name): (next(iter(module.r.values())), next(iter(module.scaling.values())))
        for name, module in pipeline.transformer.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert found == {key: (each.rank, pytest.approx(each.scale)) for key, each in layers.items()}


def test_dora_is_written_and_fused_as_diffusers_applies_it(model: Path, tmp_path: Path) -> None:
    pipeline, family, parts = of_folder(model)
    layers = random_layers(parts, rank=4, scale=1.5, dora=True)
    file = write_diffusers(tmp_path, family, layers)
    read = read_adapter(file, family, parts)
    for key, each in layers.items():
        wanted, found = each.magnitude, read[key].magnitude
        assert wanted is not None and found is not None and torch.equal(found, wanted)
    merged = of_folder(model)
    fuse(merged[2], read, torch.float32)
    pipeline.load_lora_weights(tmp_path)
    assert apart(output(merged[0]), output(pipeline)) < 1e-5


def test_the_sum_is_rounded_once(sdxl_parts: Parts, sdxl_folder: Path) -> None:
    _, _, parts = of_folder(sdxl_folder)
    layers = {key: dataclasses.replace(each, scale=1e-3) for key, each in random_layers(parts).items()}
    wanted = {
        (component, name): fused(sdxl_parts[component].get_submodule(name).weight, each).bfloat16()  # type: ignore[arg-type]
        for (component, name), each in layers.items()
    }
    fuse(parts, layers, torch.bfloat16)
    for (component, name), weight in wanted.items():
        assert torch.equal(parts[component].get_parameter(f"{name}.weight"), weight)
    assert {tensor.dtype for part in parts.values() for tensor in part.parameters()} == {torch.bfloat16}


def test_what_comes_along_of_a_variant_is_found_beside_the_parts_that_are_written(tmp_path: Path) -> None:
    """Adapters do not apply to a safety checker, so it is copied."""
    checker = tmp_path / "base" / "safety_checker"
    checker.mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": ["stable_diffusion", "StableDiffusionSafety"]}
    (tmp_path / "base" / "model_index.json").write_text(json.dumps(index))
    for name in ("config.json", "model.fp16.safetensors", "other.fp16.bin", "other.bin"):
        (checker / name).write_text(name)
    write_fused(tmp_path / "base", tmp_path / "merged", {}, dtype=None, variant="fp16", vae=None, stop=lambda: False)
    written = {file.name: file.read_text() for file in (tmp_path / "merged" / "safety_checker").iterdir()}
    assert written["model.safetensors"] == "model.fp16.safetensors"
    assert written["other.bin"] == "other.bin"


def test_a_base_that_is_for_reading_only_gives_a_folder_that_is_the_users(tmp_path: Path) -> None:
    """As when the users of a cluster share it: the prediction type could not be written into the copied parts."""
    sampler = tmp_path / "base" / "scheduler"
    sampler.mkdir(parents=True)
    (tmp_path / "base" / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "DDIMScheduler"]}))
    (sampler / "scheduler_config.json").write_text("{}")
    (sampler / "scheduler_config.json").chmod(0o444)
    sampler.chmod(0o555)
    merged = tmp_path / "merged"
    for _ in range(2):  # the second run continues an interrupted one
        write_fused(tmp_path / "base", merged, {}, dtype=None, variant=None, vae=None, stop=lambda: False)
    assert all(each.stat().st_mode & 0o200 for each in merged.rglob("*"))


def test_a_part_keeps_the_precision_of_the_variant_that_was_asked_for(sd15_folder: Path, tmp_path: Path) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    shutil.copytree(sd15_folder, base)
    pipeline_of(sd15_folder).to(torch.float16).save_pretrained(base, variant="fp16")
    assert stored_dtype(base / "unet") == torch.float32, "the most exact of both"
    (base / "whole.safetensors").write_bytes(b"the same once more, as a single file")
    (base / ".gitattributes").touch()
    write_fused(base, merged, {}, dtype=None, variant="fp16", vae=None, stop=lambda: False)
    for part in ("unet", "text_encoder", "vae"):
        (file,) = (merged / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    assert not {"whole.safetensors", ".gitattributes"} & {each.name for each in merged.iterdir()}
