"""Several adapters become one whose update is the weighted sum of theirs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from runner.errors import SettingsError
from runner.mix.layers import LowRank
from runner.mix.mix import concatenate
from tests.mix.adapters import delta, random_layers
from tests.mix.conftest import Parts


def test_updates_add_up(sdxl_parts: Parts) -> None:
    unet = {"unet": sdxl_parts["unet"]}
    first = random_layers(unet, rank=3, seed=1, scale=0.5)
    second = random_layers(sdxl_parts, rank=5, seed=2, scale=2.0, targets=("to_q", "conv1"))
    mixed = concatenate([(first, 0.7), (second, -0.2)])
    assert mixed.keys() == first.keys() | second.keys()
    assert {each.rank for each in mixed.values()} == {3, 5, 8}
    for key, each in mixed.items():
        wanted = torch.zeros_like(delta(each))
        for layers, weight in ((first, 0.7), (second, -0.2)):
            if key in layers:
                wanted += weight * delta(layers[key])
        assert torch.allclose(delta(each), wanted, rtol=1e-5, atol=1e-6)


def test_of_one_alone_only_the_scale_changes(sdxl_parts: Parts) -> None:
    layers = random_layers(sdxl_parts, scale=0.5)
    for key, each in concatenate([(layers, 0.3)]).items():
        assert each.down is layers[key].down and each.up is layers[key].up
        assert each.scale == pytest.approx(0.15)


def test_dora_stands_alone(sdxl_parts: Parts) -> None:
    unet = {"unet": sdxl_parts["unet"]}
    dora, plain = random_layers(unet, dora=True), random_layers(unet)
    assert all(each.magnitude is not None for each in concatenate([(dora, 1.0)]).values())
    with pytest.raises(SettingsError, match="other adapters"):
        concatenate([(plain, 1.0), (dora, 1.0)])
    with pytest.raises(SettingsError, match=r"adapter_weight = 0\.5"):
        concatenate([(dora, 0.5)])


def test_updates_are_compared_by_their_factors(sdxl_parts: Parts) -> None:
    first = random_layers(sdxl_parts, rank=3, seed=1, scale=0.5)
    near = {
        key: dataclasses.replace(each, up=each.up * 2 + 1e-5 * torch.randn_like(each.up), scale=each.scale / 2)
        for key, each in first.items()
    }
    for others in (random_layers(sdxl_parts, rank=5, seed=2, scale=2.0), near):
        for key, each in others.items():
            apart, size = each.compared(first[key])
            ours, theirs = delta(each).double(), delta(first[key]).double()
            assert size == pytest.approx(float(theirs.norm()), rel=1e-5)
            assert apart == pytest.approx(float((ours - theirs).norm()), rel=1e-3, abs=1e-6 * size)
    same = next(iter(first.values()))
    apart, size = same.compared(same)
    assert apart < 1e-7 * size
    untrained = dataclasses.replace(same, up=torch.zeros_like(same.up))
    assert untrained.compared(untrained) == (0.0, 0.0)
    assert math.isnan(dataclasses.replace(same, up=same.up * math.nan).compared(same)[0])


def test_what_rounding_leaves_between_equal_updates_is_nothing_and_no_fault() -> None:
    """Its square may come out negative, and then has no root."""
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        down, up = torch.randn(3, 16, generator=draw), torch.randn(12, 3, generator=draw)
        apart, size = LowRank(down, up, 0.5).compared(LowRank(down[[2, 0, 1]], up[:, [2, 0, 1]], 0.5))
        assert apart < 1e-7 * size
