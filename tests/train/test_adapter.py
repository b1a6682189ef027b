"""Where adapters are put, what they start from, and what is reported if that is impossible."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft.utils.other import get_pattern_key
from torch import nn

from runner.errors import CheckpointError, SettingsError
from runner.families import targets
from runner.schema import LoraSettings
from runner.train.adapters.adapter import Adapter, Site, find_sites, peft_config
from tests.train.bench import pairs


@pytest.fixture(scope="module")
def unet(sdxl_folder: Path) -> nn.Module:
    module: nn.Module = UNet2DConditionModel.from_pretrained(sdxl_folder, subfolder="unet")
    return module


def sites_of(unet: nn.Module, targets: str) -> list[Site]:
    return find_sites(LoraSettings(targets=targets), {"unet": unet})


@pytest.mark.parametrize("targets", ["nothing_like_it", "to_q", "attn1"])
def test_an_expression_that_matches_no_whole_name_is_refused(unet: nn.Module, targets: str) -> None:
    with pytest.raises(
        SettingsError, match=r"lora\.targets = .*matches no layer of the unet; its layers are named like"
    ):
        sites_of(unet, targets)


@pytest.mark.parametrize("targets", [r".*norm1", r".*attn1", r".*conv_norm_out"])
def test_an_expression_that_matches_what_cannot_carry_an_adapter_is_refused(unet: nn.Module, targets: str) -> None:
    with pytest.raises(SettingsError, match=r"lora\.targets = .*cannot carry a LoRA"):
        sites_of(unet, targets)


def find(unet: nn.Module, **settings: object) -> list[Site]:
    return find_sites(LoraSettings.model_validate(settings), {"unet": unet})


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_about_no_adapted_layer_is_refused(unet: nn.Module, key: str) -> None:
    with pytest.raises(SettingsError, match=rf"lora\.{key}\.atn2\.to_k = 4.*, did you mean attn2\.to_k\?"):
        find(unet, **{key: {"to_q": 2, "atn2.to_k": 4}})
    with pytest.raises(SettingsError, match=rf"lora\.{key}\.conv1 = 4.*none of the adapted layers"):
        find(unet, **{key: {"conv1": 4}})  # the model has such layers, but does not target them


def test_two_patterns_about_one_layer_are_refused(unet: nn.Module) -> None:
    # The order of the patterns would decide, but files do not preserve it.
    with pytest.raises(
        SettingsError, match=r"lora\.rank_pattern: to_k and attn2\S+ both match \S+attn2\.to_k; let each"
    ):
        find(unet, rank_pattern={"to_k": 2, r"attn2\..*": 3})


def test_patterns_match_the_end_of_a_name_as_in_peft(unet: nn.Module) -> None:
    patterns = {"to_k": 3, r"attn1\.to_[qv]": 5, "tn2.to_q": 7, "attentions": 9, r".*attn2\.to_out.0": 11}
    settings = LoraSettings(rank=2, rank_pattern=patterns)
    names = [site.name for site in sites_of(unet, "linear")]
    found = {settings.rank_of(name) for name in names}
    assert found == {2, 3, 5, 11}, "an expression begins where a part of the name begins, and ends where it ends"
    for name in names:
        assert settings.rank_of(name) == patterns.get(get_pattern_key(patterns, name), 2)


def test_ranks_and_scales_are_those_of_each_layer(unet: nn.Module) -> None:
    settings = LoraSettings(rank=4, rank_pattern={"to_k": 16}, alpha_pattern={"to_v": 8.0})
    stable = settings.model_copy(update={"rslora": True, "alpha": 8.0})
    adapter = Adapter(settings, find_sites(settings, {"unet": unet}), seed=0, device=torch.device("cpu"))
    scales = {site.name.rpartition(".")[2]: scale for site, scale in adapter.scales.items()}
    assert (scales["to_q"], scales["to_k"], scales["to_v"]) == (1.0, 1.0, 2.0), "alpha is a layer's own rank by default"
    assert stable.scale_of("attn.to_k") == 8 / math.sqrt(16)
    assert stable.scale_of("attn.to_v") == 8 / math.sqrt(4)
    for site, down, up in pairs(adapter, adapter.weights):
        rank = 16 if site.name.endswith("to_k") else 4
        assert down.shape[0] == up.shape[1] == rank
        assert float(down.std()) == pytest.approx(1 / rank, rel=0.3)


def test_the_file_names_layers_so_that_no_other_one_is_meant() -> None:
    settings = LoraSettings(rank=2, rank_pattern={"^proj_out": 4})
    config = peft_config(settings, "unet", targets.UNET, ["proj_out", "block.proj_out"])
    assert get_pattern_key(config.rank_pattern, "block.proj_out") not in config.rank_pattern
    assert config.rank_pattern[get_pattern_key(config.rank_pattern, "proj_out")] == 4


def test_blocks_narrow_down_what_is_targeted(unet: nn.Module) -> None:
    blocks = ["up_blocks.0.attentions.0", "up_blocks.0.attentions.1"]
    for chosen in ("attention", r".*attn1\.to_q"):
        everywhere = {site.name for site in find(unet, targets=chosen)}
        inside = {site.name for site in find(unet, targets=chosen, blocks=blocks)}
        assert inside == {name for name in everywhere if ".".join(name.split(".")[:4]) in blocks}
        assert 0 < len(inside) < len(everywhere)


def test_a_block_that_holds_no_target_is_refused(unet: nn.Module) -> None:
    with pytest.raises(
        SettingsError, match=r"lora\.blocks = 'up_blocks\.0\.atentions\.1'.*mean up_blocks\.0\.att.*\.1\?"
    ):
        find(unet, blocks=["up_blocks.0.attentions.0", "up_blocks.0.atentions.1"])
    with pytest.raises(
        SettingsError, match=r"lora\.blocks = 'up_blocks\.0\.resnets\.0': holds no layer of lora\.targets"
    ):
        find(unet, blocks=["up_blocks.0.resnets.0"])


def test_presets_hold_what_their_names_say(unet: nn.Module) -> None:
    attention, feed_forward, linear = (
        {site.name for site in sites_of(unet, preset)} for preset in ("attention", "attention_ff", "linear")
    )
    assert attention < feed_forward < linear
    inside = {
        name for name, module in unet.named_modules() if isinstance(module, nn.Linear) and ".attentions." in f".{name}"
    }
    assert linear == inside, "every linear layer of the transformer blocks and their projections, and no other"
    assert all(".attn" in name for name in attention)
    assert {name for name in feed_forward - attention if ".ff.net." not in name} == set()


def test_first_weights_depend_on_seed_and_layer_alone(unet: nn.Module) -> None:
    few, many = (sites_of(unet, targets) for targets in ("attention", "linear"))
    settings = LoraSettings(rank=4)
    states = [Adapter(settings, sites, seed=1, device=torch.device("cpu")).state()["unet"] for sites in (few, many)]
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())
    other = Adapter(settings, few, seed=2, device=torch.device("cpu")).state()["unet"]
    assert not any(torch.equal(other[key], states[0][key]) for key in other if "lora_A" in key)


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_first_weights_are_spread_as_peft_spreads_them(unet: nn.Module, init: str) -> None:
    sites = sites_of(unet, "linear_conv")
    adapter = Adapter(LoraSettings(rank=16, init=init), sites, seed=0, device=torch.device("cpu"))
    for site, down, up in pairs(adapter, adapter.weights):
        inputs = unet.get_submodule(site.name).get_parameter("weight")[0].numel()  # of one output, kernel included
        wanted = 1 / 16 if init == "gaussian" else 1 / math.sqrt(3 * inputs)
        assert float(down.std()) == pytest.approx(wanted, rel=0.15)
        assert not up.any()


def test_a_saved_adapter_that_does_not_fit_is_refused(unet: nn.Module) -> None:
    sites = sites_of(unet, "attention")
    adapter = Adapter(LoraSettings(rank=2), sites, seed=0, device=torch.device("cpu"))
    state = adapter.state()
    key = next(iter(state["unet"]))
    with pytest.raises(CheckpointError, match="unknown layer"):
        adapter.load_state({"unet": {**state["unet"], "else.lora_A.weight": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match="missing"):
        adapter.load_state({"unet": {name: tensor for name, tensor in state["unet"].items() if name != key}})
    with pytest.raises(CheckpointError, match="of shape"):
        adapter.load_state({"unet": {**state["unet"], key: torch.zeros(3, 3)}})
