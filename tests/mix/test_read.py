"""Adapters are read from any layout they were written in, with the scales that their writers intended."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from runner.errors import SettingsError
from runner.families import find_family
from runner.families.original import original_names
from runner.jobs.adapter_file import find_adapter
from runner.mix.read import read_adapter
from runner.system.tensor_file import METADATA, PEFT_NAMES
from tests.families.original_layout import _unet
from tests.mix.adapters import (
    SD_PREFIXES,
    SDXL_PREFIXES,
    delta,
    random_layers,
    same_updates,
    write_kohya_of_flux,
    write_kohya_plainly,
    write_peft_plainly,
)
from tests.mix.conftest import Parts
from tests.train.bench import pipeline_of


def test_kohya_files_of_others_have_an_alpha_of_their_own(sdxl_parts: Parts, sd15_parts: Parts, tmp_path: Path) -> None:
    numbered = {**SD_PREFIXES, "text_encoder": "lora_te1"}  # as diffusers' convert_state_dict_to_kohya names it
    for name, parts, prefixes in (
        ("sdxl", sdxl_parts, SDXL_PREFIXES),
        ("sd", sd15_parts, SD_PREFIXES),
        ("sd", sd15_parts, numbered),
    ):
        layers = random_layers(parts, rank=4, scale=0.25)
        file = write_kohya_plainly(tmp_path / f"{name}.safetensors", layers, prefixes)
        read = read_adapter(file, find_family(name), parts)
        assert {each.scale for each in read.values()} == {0.25}
        assert all(torch.equal(read[key].down, layers[key].down) for key in layers)
        assert same_updates(read, layers) == 0


def test_kohya_takes_the_names_of_the_original_code_for_sdxl(sdxl_parts: Parts, tmp_path: Path) -> None:
    unet = sdxl_parts["unet"]
    modules = [name.removesuffix(".weight") for name, value in unet.named_parameters() if name.endswith(".weight")]
    names = original_names(modules, 1)
    # The opposite direction, which exists only for the tests of single files.
    assert {f"model.diffusion_model.{name}.weight" for name in names.values()} == {
        key for key in _unet(unet) if key.endswith(".weight")
    }
    layers = random_layers(sdxl_parts, scale=0.5)
    file = write_kohya_plainly(tmp_path / "a.safetensors", layers, SDXL_PREFIXES, names)
    assert any("input_blocks_" in key for key in load_file(file))
    assert same_updates(read_adapter(file, find_family("sdxl"), sdxl_parts), layers) == 0


def test_a_file_as_those_of_lcm_lora(sdxl_parts: Parts, tmp_path: Path) -> None:
    """Half precision, alpha 8 at rank 64, also on embeddings of time and the first convolution."""
    targets = ("to_q", "to_out.0", "ff.net.0.proj", "conv2", "time_emb_proj", "upsamplers.0.conv", "conv_in")
    layers = random_layers({"unet": sdxl_parts["unet"]}, rank=64, scale=0.125, targets=targets)
    file = write_kohya_plainly(tmp_path / "pytorch_lora_weights.safetensors", layers, SDXL_PREFIXES)
    save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file)
    read = read_adapter(file, find_family("sdxl"), sdxl_parts)
    assert {each.scale for each in read.values()} == {0.125}
    assert {each.down.dtype for each in read.values()} == {torch.float32}
    assert same_updates(read, layers) < 1e-3


def test_the_metadata_say_the_scales(sdxl_parts: Parts, tmp_path: Path) -> None:
    layers = random_layers({"unet": sdxl_parts["unet"]}, rank=4)
    config = {"r": 4, "lora_alpha": 6.0, "use_rslora": True, "alpha_pattern": {r"mid_block\..*to_q": 2.0, "conv1": 1.0}}
    file = write_peft_plainly(tmp_path / "a.safetensors", layers, config)
    for (_, name), each in read_adapter(file, find_family("sdxl"), sdxl_parts).items():
        alpha = 2.0 if name.startswith("mid_block") and name.endswith("to_q") else 1.0 if "conv1" in name else 6.0
        assert each.scale == pytest.approx(alpha / 2)
    plain = write_peft_plainly(tmp_path / "b.safetensors", layers, {})
    assert {each.scale for each in read_adapter(plain, find_family("sdxl"), sdxl_parts).values()} == {1.0}


def test_magnitudes_of_dora_are_kept(sdxl_parts: Parts, tmp_path: Path) -> None:
    layers = random_layers({"unet": sdxl_parts["unet"]}, dora=True)
    file = write_peft_plainly(tmp_path / "a.safetensors", layers, {"r": 3, "lora_alpha": 3, "use_dora": True})
    for key, each in read_adapter(file, find_family("sdxl"), sdxl_parts).items():
        wanted = layers[key].magnitude
        assert each.magnitude is not None and wanted is not None
        assert torch.equal(each.magnitude, wanted)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_and_diffusers_save_is_read_as_they_apply_it(
    sdxl_folder: Path, sdxl_parts: Parts, tmp_path: Path, rslora: bool
) -> None:
    model = pipeline_of(sdxl_folder)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        init_lora_weights=False,
        target_modules=["to_q", "conv1"],
        rank_pattern={"conv1": 2},
        alpha_pattern={"conv1": 5},
    )
    model.unet.add_adapter(config, "made")
    wanted = {
        name: module.get_delta_weight("made").detach()
        for name, module in model.unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    from peft.utils import get_peft_model_state_dict

    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(model.unet, adapter_name="made"),
        unet_lora_adapter_metadata=config.to_dict(),
    )
    read = read_adapter(tmp_path / "pytorch_lora_weights.safetensors", find_family("sdxl"), sdxl_parts)
    assert {name for _, name in read} == wanted.keys()
    assert {each.scale for each in read.values()} == ({3.0, 5 / math.sqrt(2)} if rslora else {1.5, 2.5})
    for (_, name), each in read.items():
        assert torch.allclose(delta(each), wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_alone_has_its_scales_beside_it(sdxl_folder: Path, tmp_path: Path, rslora: bool) -> None:
    unet = pipeline_of(sdxl_folder).unet
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, init_lora_weights=False, target_modules=["to_q", "conv1"],
        rank_pattern={"conv1": 2}, alpha_pattern={"conv1": 5},
    )  # fmt: skip
    adapted = get_peft_model(unet, config)
    adapted.save_pretrained(tmp_path)
    layers = {name.removeprefix(PEFT_NAMES): each for name, each in adapted.named_modules()}

    read = read_adapter(tmp_path / "adapter_model.safetensors", find_family("sdxl"), {"unet": adapted.unload()})

    assert read
    for (_, name), each in read.items():
        wanted: Any = layers[name]
        assert torch.allclose(delta(each), wanted.get_delta_weight("default"), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("start", ["pissa_niter_4", "olora", True])
def test_an_adapter_that_takes_the_place_of_a_part_of_its_base_is_refused(
    sdxl_folder: Path, tmp_path: Path, start: Any
) -> None:
    """peft subtracts the adapter's initial update from the weights of the base, also when loading it again."""
    unet, plain = pipeline_of(sdxl_folder).unet, {"unet": pipeline_of(sdxl_folder).unet}
    adapted = get_peft_model(unet, LoraConfig(r=4, init_lora_weights=start, target_modules=["to_q"]))
    adapted.save_pretrained(tmp_path)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    merged = adapted.merge_and_unload().get_submodule(name).weight
    assert torch.allclose(merged, plain["unet"].get_submodule(name).weight, atol=1e-5), "nothing is trained yet"

    file = tmp_path / "adapter_model.safetensors"
    if start is True:
        assert not delta(read_adapter(file, find_family("sdxl"), plain)["unet", name]).any()
        return
    for tell in (
        lambda: read_adapter(file, find_family("sdxl"), plain),
        lambda: find_adapter(str(file), key="adapter"),
    ):
        with pytest.raises(SettingsError, match=rf"init_lora_weights = '{start}'.* save it as a LoRA"):
            tell()


def test_old_names_of_diffusers(sd15_parts: Parts, tmp_path: Path) -> None:
    unet = {"unet": sd15_parts["unet"]}
    layers = random_layers(unet, targets=("attn1.to_q", "attn2.to_out.0"))
    tensors = {}
    for (_, name), each in layers.items():
        old = name.replace(".to_", ".processor.to_").replace("to_out.0", "to_out")
        tensors |= {f"unet.{old}_lora.down.weight": each.down, f"unet.{old}_lora.up.weight": each.up}
    save_file(tensors, tmp_path / "a.safetensors")
    assert same_updates(read_adapter(tmp_path / "a.safetensors", find_family("sd"), sd15_parts), layers) == 0


def test_what_is_no_adapter_of_this_model_is_refused(sdxl_parts: Parts, sd15_parts: Parts, tmp_path: Path) -> None:
    family, file = find_family("sdxl"), tmp_path / "a.safetensors"

    def said() -> str:
        with pytest.raises(SettingsError, match=r"a\.safetensors") as caught:
            read_adapter(file, family, sdxl_parts)
        return str(caught.value)

    assert "cannot be read as a .safetensors file" in said()
    file.write_text("nothing")
    assert "cannot be read as a .safetensors file" in said()
    save_file({}, file)
    assert "is empty" in said()
    write_kohya_plainly(file, random_layers(sd15_parts), SD_PREFIXES)
    assert "belong to no layer of this model's unet, text_encoder, text_encoder_2" in said()
    layers = random_layers(sdxl_parts)
    write_kohya_plainly(file, layers, SDXL_PREFIXES)
    whole = load_file(file)
    gone = next(key for key in whole if key.endswith("lora_up.weight"))
    save_file({key: tensor for key, tensor in whole.items() if key != gone}, file)
    assert "only a part" in said()
    save_file(whole | {gone: torch.zeros(5, 3)}, file)
    assert "is of shape" in said() and "another kind of model" in said()
    save_file(whole | {gone: whole[gone] * math.nan}, file)
    assert "not finite" in said()
    save_file(whole | {gone.replace("lora_up.weight", "dora_scale"): torch.ones(3)}, file)
    assert "is a DoRA in kohya's layout" in said()
    component, name = next(iter(layers))
    save_file(whole | {f"{component}.{name}.lora_A.weight": torch.ones(3)}, file)
    assert f"has two adapters for {component}.{name}" in said()
    save_file({"lora_unet_x.hada_w1_a": torch.ones(3)}, file)
    assert "is a LoHa" in said()
    save_file(whole | {gone.replace("lora_up.weight", "alpha"): torch.tensor(math.inf)}, file)
    assert " is inf" in said() and gone.removesuffix("lora_up.weight") in said()
    shapes = {key: tensor.shape for key, tensor in whole.items() if key.startswith(gone.removesuffix("lora_up.weight"))}
    save_file(whole | {key: torch.zeros(0, *shape[1:]) for key, shape in shapes.items() if "down" in key}, file)
    assert "has rank 0" in said()
    save_file(whole | {gone.replace("lora_up.weight", "alpha"): torch.ones(2)}, file)
    assert " is [1.0, 1.0]" in said()
    save_file(whole, file, metadata={METADATA: "[1, 2]"})
    assert "lora_adapter_metadata is damaged (no settings, but '[1, 2]')" in said()
    for wrong in ({"lora_alpha": "four"}, *({"alpha_pattern": each} for each in ([1], {"conv1": "four"}, {"(": 4}))):
        save_file(whole, file, metadata={METADATA: json.dumps({f"unet.{key}": each for key, each in wrong.items()})})
        assert "lora_adapter_metadata is damaged (" in said()


def test_magnitudes_that_are_none_of_the_layer_are_refused(sdxl_parts: Parts, tmp_path: Path) -> None:
    """A single magnitude would be broadcast to all outputs, and the layer merged with norms that nobody trained."""
    unet = {"unet": sdxl_parts["unet"]}
    file = write_peft_plainly(tmp_path / "a.safetensors", random_layers(unet, dora=True), {})
    whole = load_file(file)
    key = next(key for key in whole if "magnitude" in key)
    for wrong, said in ((whole[key][:1], "needs \\["), (whole[key] * math.nan, "not finite")):
        save_file(whole | {key: wrong.contiguous()}, file)
        with pytest.raises(SettingsError, match=rf"a\.safetensors: .*{said}"):
            read_adapter(file, find_family("sdxl"), sdxl_parts)


def test_an_adapter_that_is_a_dora_on_some_layers_only_is_refused(sdxl_parts: Parts, tmp_path: Path) -> None:
    unet = {"unet": sdxl_parts["unet"]}
    file = tmp_path / "a.safetensors"
    write_peft_plainly(file, random_layers(unet, dora=True), {})
    whole = load_file(file)
    gone = next(key for key in whole if "magnitude" in key)
    save_file({key: tensor for key, tensor in whole.items() if key != gone}, file)

    with pytest.raises(SettingsError, match=r"a\.safetensors: some layers of its unet are DoRA, and others are not"):
        read_adapter(file, find_family("sdxl"), sdxl_parts)


@pytest.mark.parametrize(("scale", "stored"), [(0.5, torch.float32), (0.3, torch.bfloat16)])
def test_kohya_files_of_flux_go_through_the_conversion_of_diffusers(
    scale: float, stored: torch.dtype, flux_folder: Path, tmp_path: Path
) -> None:
    """The conversion multiplies the scale in, which must not be rounded to the file's precision."""
    transformer = pipeline_of(flux_folder).transformer
    file, layers = write_kohya_of_flux(tmp_path / "a.safetensors", transformer, scale, stored)
    read = read_adapter(file, find_family("flux"), {"transformer": transformer})
    assert same_updates(read, layers) < 1e-6
    some = dict(list(load_file(file).items())[:-2])
    save_file(some | {"lora_unet_double_blocks_0_strange.lora_down.weight": torch.ones(3, 3)}, file)
    with pytest.raises(SettingsError, match=r"a\.safetensors: diffusers cannot convert its names"):
        read_adapter(file, find_family("flux"), {"transformer": transformer})


def test_kohya_files_of_flux_have_layers_of_the_text_encoder(flux_folder: Path, tmp_path: Path) -> None:
    pipeline = pipeline_of(flux_folder)
    parts = {"transformer": pipeline.transformer, "text_encoder": pipeline.text_encoder}
    file, layers = write_kohya_of_flux(tmp_path / "a.safetensors", pipeline.transformer, 0.5, torch.float32)
    of_text = random_layers({"text_encoder": pipeline.text_encoder}, scale=0.25)
    beside = write_kohya_plainly(tmp_path / "text.safetensors", of_text, {"text_encoder": "lora_te1"})
    save_file(load_file(file) | load_file(beside), file)
    assert same_updates(read_adapter(file, find_family("flux"), parts), layers | of_text) < 1e-6
