"""Dropout inside an adapter while it trains: of inputs, ranks and whole layers.

Every mask is a pure function of (seed, layer, sample), so packing, gradient accumulation and the number of processes
change nothing. Rank and module dropout have the meaning LyCORIS and sd-scripts gave them: the ranks that remain are
scaled up by 1 / (1 - p), a dropped layer is not compensated for. Those projects draw once per batch; this draws once
per sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runner.train.adapters.adapter import Adapter, Site
from runner.train.randomness import torch_seed


def input_mask(adapter: Adapter, site: Site, sample: int, x: Tensor) -> Tensor:
    """Factors for `x`, the input of one sample: 0, or 1 / (1 - p)."""
    if not adapter.dropout:
        return torch.ones_like(x)
    draw = _draw(adapter, "dropout", site, sample, x.shape, x.device)
    return (draw >= adapter.dropout).to(x.dtype) / (1 - adapter.dropout)


def rank_masks(adapter: Adapter, site: Site, samples: Sequence[int], x: Tensor) -> Tensor | None:
    """Factors for the down-projection's output for each sample, `[samples, rank]`, with the type and device of `x`.

    None if no rank and no layer is ever dropped.
    """
    if not (adapter.rank_dropout or adapter.module_dropout) or site not in adapter.ranks:
        return None
    return torch.stack([_rank_mask(adapter, site, sample, x.device) for sample in samples]).to(x.dtype)


def _rank_mask(adapter: Adapter, site: Site, sample: int, device: torch.device) -> Tensor:
    mask = torch.ones(adapter.ranks[site], device=device)
    if p := adapter.rank_dropout:
        mask = (_draw(adapter, "rank-dropout", site, sample, mask.shape, device) >= p) / (1 - p)
    if p := adapter.module_dropout:
        mask = mask * (_draw(adapter, "module-dropout", site, sample, (1,), device) >= p)
    return mask


def _draw(
    adapter: Adapter, purpose: str, site: Site, sample: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """Uniform numbers in [0, 1), drawn on the device."""
    seed = torch_seed(adapter.seed, purpose, site.component, site.name, sample)
    return torch.rand(tuple(shape), generator=torch.Generator(device).manual_seed(seed), device=device)
