"""An adapter as a part of the weights that it was trained for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runner.mix.layers import AdapterLayers, LowRank


@torch.no_grad()
def fused(weight: Tensor, update: LowRank) -> Tensor:
    """The weight with the update in it, fp32, of the weight's shape.

    Of DoRA it is `m (W + s B A) / ||W + s B A||`, output by output (arXiv 2402.09353).
    """
    change = update.up.flatten(1).to(weight.device) @ update.down.flatten(1).to(weight.device) * update.scale
    total: Tensor = weight.float() + change.view(weight.shape)
    if update.magnitude is None:
        return total
    factor = update.magnitude.to(total.device) / total.flatten(1).norm(dim=1)
    scaled: Tensor = total * factor.view(-1, *[1] * (total.dim() - 1))
    return scaled


@torch.no_grad()
def fuse(components: Mapping[str, nn.Module], layers: AdapterLayers, dtype: torch.dtype) -> None:
    """Put an adapter into the weights of some components, in place, and bring all their weights to `dtype`.

    The sum is made in fp32 and rounded once.
    """
    for (component, name), update in layers.items():
        if component in components:
            module = components[component].get_submodule(name)
            assert isinstance(module, (nn.Linear, nn.Conv2d)), name
            module.weight = nn.Parameter(fused(module.weight, update).to(dtype), requires_grad=False)
    for root in components.values():
        root.to(dtype)
