"""Several adapters as one: their weighted updates, summed layer by layer without loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from runner.errors import SettingsError
from runner.mix.layers import AdapterLayers, LowRank


def concatenate(parts: Sequence[tuple[AdapterLayers, float]]) -> AdapterLayers:
    """The exact weighted sum of adapters: factors are stacked along the rank, so ranks add up.

    Args:
        parts: (adapter, weight). With a single adapter, or in a layer that only one adapts, just the scale changes.

    Raises:
        SettingsError: a DoRA is weighted or combined with others: its norms apply to a whole weight and cannot be
            summed.
    """
    assert parts
    if any(each.magnitude is not None for layers, _ in parts for each in layers.values()):
        if len(parts) > 1:
            raise SettingsError(
                "adapter: a DoRA cannot be put together with other adapters; merge it into a base alone"
            )
        if parts[0][1] != 1:
            raise SettingsError(f"adapter_weight = {parts[0][1]:g}: a DoRA can only have the weight 1")
    gathered: dict[tuple[str, str], list[tuple[LowRank, float]]] = {}
    for layers, weight in parts:
        for name, each in layers.items():
            gathered.setdefault(name, []).append((each, weight))
    return {name: _sum(each) for name, each in gathered.items()}


def _sum(updates: Sequence[tuple[LowRank, float]]) -> LowRank:
    if len(updates) == 1:
        each, weight = updates[0]
        return dataclasses.replace(each, scale=each.scale * weight)
    downs = torch.cat([each.down for each, _ in updates])
    ups = torch.cat([each.up * (each.scale * weight) for each, weight in updates], dim=1)
    return LowRank(downs, ups, 1.0)
