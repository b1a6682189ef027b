"""Linear layers whose frozen weight is stored in 8 or 4 bits and dequantized whenever it is needed.

int8: rounded to 127 steps of the largest value in an output channel. nf4: the 4-bit NormalFloat of QLoRA (arXiv
2305.14314), in blocks of 64 values that share their largest one. A whole weight exists only while a layer computes, one
layer at a time: none is kept for the backward pass, which dequantizes it again.

Needs only torch, so it behaves the same on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of NormalFloat4 (QLoRA, appendix E): quantiles of a normal distribution, with an exact zero."""

BLOCK = 64
"""Values that share a scale in nf4."""


def quantize(root: nn.Module, kind: str, device: torch.device) -> None:
    """Replace the linear layers of a frozen model by quantized ones on a device, one after another."""
    make = {"int8": Int8Linear, "nf4": Nf4Linear}[kind]
    for name, module in list(root.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, last = name.rpartition(".")
            setattr(root.get_submodule(parent), last, make(module, device))


class QuantizedLinear(nn.Linear):
    """A linear layer whose `weight` is dequantized on each access; to other code it is an ordinary linear layer."""

    def __init__(self, layer: nn.Linear, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.dtype = layer.weight.dtype
        self._keep(layer.weight.detach().to(device).float())

    def _keep(self, weight_OI: Tensor) -> None:
        raise NotImplementedError

    def _whole(self) -> Tensor:
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight, `[O, I]`, in the precision of the original layer."""
        with torch.no_grad():
            return self._whole()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The stored values, and a weight that is only a shape.

        Before diffusers (0.42.1) loads an adapter of FLUX.1, it looks up the weight of each adapted layer here.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        shape = self.out_features, self.in_features
        destination[f"{prefix}weight"] = torch.empty(shape, dtype=self.dtype, device="meta")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is torch's
        """x W' + b, with a gradient for x."""
        output: Tensor = _FrozenLinear.apply(input, self)
        return output


class Int8Linear(QuantizedLinear):
    """One byte per value, and one scale per output channel."""

    def _keep(self, weight_OI: Tensor) -> None:
        scale_O1 = weight_OI.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale_O1", scale_O1)
        self.register_buffer("steps_OI", (weight_OI / scale_O1.clamp_min(1e-30)).round().to(torch.int8))

    def _whole(self) -> Tensor:
        # Multiplied in fp32 and rounded once: the scales are not rounded to the layer's precision first.
        return self.get_buffer("steps_OI").to(self.dtype).mul_(self.get_buffer("scale_O1"))


class Nf4Linear(QuantizedLinear):
    """Half a byte per value, and one scale per 64 of them."""

    def _keep(self, weight_OI: Tensor) -> None:
        values = F.pad(weight_OI.flatten(), (0, -weight_OI.numel() % BLOCK)).view(-1, BLOCK)
        scale_N1 = values.abs().amax(1, keepdim=True)
        levels = torch.tensor(NF4_LEVELS, device=weight_OI.device)
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(values / scale_N1.clamp_min(1e-30), between).to(torch.uint8).view(-1, 2)
        self.register_buffer("scale_N1", scale_N1)
        self.register_buffer("pairs", codes[:, 0] * 16 + codes[:, 1])
        # Decodes two values at a time: the pair that each of the 256 bytes stands for.
        self.register_buffer("table", torch.cartesian_prod(levels, levels).to(self.dtype))

    def _whole(self) -> Tensor:
        values = F.embedding(self.get_buffer("pairs").int(), self.get_buffer("table")).view(-1, BLOCK)
        values.mul_(self.get_buffer("scale_N1"))
        return values.view(-1)[: self.out_features * self.in_features].view(self.out_features, self.in_features)


class _FrozenLinear(torch.autograd.Function):
    """A linear layer that keeps neither its input nor its weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.matmul(gradients[0], ctx.layer.weight), None
