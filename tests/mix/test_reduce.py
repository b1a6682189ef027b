"""A reduced adapter is the nearest one of its rank, and reports how near it is."""

from __future__ import annotations

import pytest
import torch

from runner.mix.mix import concatenate
from runner.mix.reduce import reduce
from tests.mix.adapters import delta, random_layers, same_updates
from tests.mix.conftest import Parts


def test_each_layer_becomes_the_nearest_of_the_rank(sdxl_parts: Parts) -> None:
    layers = concatenate([(random_layers(sdxl_parts, rank=4, seed=seed, scale=0.5), 0.8) for seed in (1, 2)])
    reduced = reduce(layers, rank=3)
    assert reduced.ranks == (3, 3)
    kept, total = 0.0, 0.0
    for key, each in layers.items():
        whole = delta(each).flatten(1)
        u, values, v = torch.linalg.svd(whole, full_matrices=False)
        nearest = u[:, :3] * values[:3] @ v[:3]
        assert torch.allclose(delta(reduced.layers[key]).flatten(1), nearest, atol=1e-5 * float(whole.norm()))
        share = float(nearest.norm() ** 2 / whole.norm() ** 2)
        assert reduced.kept[key] == pytest.approx(share, rel=1e-4)
        kept, total = kept + float(nearest.norm() ** 2), total + float(whole.norm() ** 2)
    assert reduced.kept_in_all == pytest.approx(kept / total, rel=1e-4)
    assert reduced.kept_in_all < 0.95
    least, share = min(reduced.kept.items(), key=lambda each: each[1])
    said = f"rank 3: kept {reduced.kept_in_all:.2%} of the energy, least in {'.'.join(least)} ({share:.2%})"
    assert reduced.described() == said


def test_a_share_of_the_energy_takes_the_least_ranks_that_keep_it(sdxl_parts: Parts) -> None:
    layers = random_layers(sdxl_parts, rank=8)
    reduced = reduce(layers, energy=0.7)
    assert 1 <= reduced.ranks[0] < reduced.ranks[1] <= 8
    assert reduced.described().startswith(f"ranks {reduced.ranks[0]} to {reduced.ranks[1]}: kept")
    assert all(share >= 0.7 for share in reduced.kept.values())
    for key, each in reduced.layers.items():
        if each.rank > 1:
            less = reduce({key: layers[key]}, rank=each.rank - 1)
            assert less.kept_in_all < 0.7


def test_what_is_added_twice_needs_no_more_rank_than_once(sdxl_parts: Parts) -> None:
    once = random_layers(sdxl_parts, rank=3)
    twice = concatenate([(once, 1.0), (once, 0.5)])
    reduced = reduce(twice, rank=3)
    assert reduced.kept_in_all == pytest.approx(1.0, abs=1e-12)
    assert same_updates(reduced.layers, twice) < 1e-5
    assert reduce(twice, energy=1.0).ranks == (3, 3)


def test_layers_within_the_rank_stay_as_they_are_and_empty_ones_are_no_trouble(sdxl_parts: Parts) -> None:
    layers = random_layers(sdxl_parts, rank=3)
    reduced = reduce(layers, rank=3)
    assert all(reduced.layers[key] is layers[key] for key in layers)
    assert reduced.kept_in_all == 1.0
    untrained = concatenate([(layers, 0.0)])
    assert reduce(untrained, rank=2).kept_in_all == 1.0
    assert reduce(untrained, energy=0.9).ranks == (1, 1)


def test_more_rank_than_a_layer_has_outputs(sdxl_parts: Parts) -> None:
    layers = random_layers(sdxl_parts, rank=100, targets=("conv_in",))
    reduced = reduce(layers, rank=90).layers
    assert same_updates(reduced, layers) < 1e-4
    # Readers expect the factors of a convolution as convolutions.
    kernels = [each.up.shape[2:] for each in layers.values()]
    assert (1, 1) in kernels
    assert [each.up.shape[2:] for each in reduced.values()] == kernels
