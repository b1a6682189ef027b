"""What torch itself counts for one image in a denoiser with adapters, on tensors without memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from runner.families.targets import Presets
from runner.schema import LoraSettings
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.adapters.packed import PackedAdapters

RANK = 16


def _product(_: torch.Size, left: torch.Size, right: torch.Size, **__: Any) -> int:
    return 2 * math.prod(left) * right[-1]


IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}
"""Operations that torch counts only when their sum is a new tensor."""


@dataclasses.dataclass
class Counted:
    """Floating-point operations, numbers kept for the backward pass, and the denoiser's own numbers."""

    products: float
    backward: float
    kept: float
    parameters: float


def counted(
    component: str, build: Callable[[], nn.Module], presets: Presets, predict: Callable[[Any], Tensor]
) -> Counted:
    """Count the forward and backward pass of one image.

    Args:
        predict: returns the output of the denoiser made by `build`, on the default device.
    """
    kept: dict[int, int] = {}
    with torch.device("meta"), _attention_of_a_cpu():
        denoiser = build().requires_grad_(False).eval()
        settings = LoraSettings(rank=RANK)
        sites = find_sites(settings, {component: denoiser}, presets)
        adapter = Adapter(settings, sites, seed=0, device=torch.device("meta"))
        pack = PackedAdapters({component: denoiser}, [adapter], dtype=torch.float32)
        weights = {each.untyped_storage()._cdata for each in denoiser.parameters()}
        weights |= {pack.weights.untyped_storage()._cdata}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        forward, backward = (FlopCounterMode(display=False, custom_mapping=IN_PLACE) for _ in range(2))
        with pack.using([(0, 1)], [[0]]):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), forward:
                output = predict(denoiser)
            numbers = sum(kept.values()) / 4
            with backward:
                output.square().mean().backward()
    parameters = sum(each.numel() for each in denoiser.parameters())
    return Counted(forward.get_total_flops(), backward.get_total_flops(), numbers, parameters)


@contextmanager
def _attention_of_a_cpu() -> Iterator[None]:
    """Tensors without memory would use the attention that keeps all its weights; a CPU uses another one."""

    def attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        options.pop("enable_gqa", None)
        found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, **options
        )
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        yield
