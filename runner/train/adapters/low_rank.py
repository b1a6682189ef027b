"""A frozen layer and the low-rank updates of K adapters as one differentiable operation.

With separate operations, autograd would add the update to the output, and the two gradients of the input to each other,
in extra passes over the activations; fused, each addition is part of a matrix product.

# Shape suffixes: K adapters, B rows of each, N = K B, M rows times tokens, I O inputs and outputs, R padded rank,
# H W height and width, P output pixels, Y X kernel height and width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Stride, padding and dilation of a convolution, (height, width) each."""


class LowRankLinear(torch.autograd.Function):
    """x W' + b + s_k (x A_k') B_k' for slice k of x; gradients for x, A and B, not for the frozen W and b.

    Takes the frozen layer itself, because the weight of a quantized layer is rebuilt in each pass rather than kept. A
    scale of None means 1. With `into`, `[K, R, I]` and `[K, O, R]`, each backward pass adds the gradients of A and B
    there and returns none to autograd, which would add them in separate operations; on a GPU, the time of a step is
    the time its host needs to launch that many small operations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_KMI: Tensor,
        frozen: nn.Linear,
        down_KRI: Tensor,
        up_KOR: Tensor,
        scale_K11: Tensor | None,
        into: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The layer's output, `[K, M, O]`."""
        output_KMO = F.linear(x_KMI, frozen.weight, frozen.bias)
        hidden_KMR = _scaled_(_product(x_KMI, down_KRI.mT), scale_K11)
        _add_product_(output_KMO, hidden_KMR, up_KOR.mT)
        ctx.frozen, ctx.into = frozen, into
        ctx.save_for_backward(x_KMI, down_KRI, up_KOR, scale_K11, hidden_KMR)
        return output_KMO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs of `forward`, given that of its output, `[K, M, O]`."""
        (gradient_KMO,) = gradients
        x_KMI, down_KRI, up_KOR, scale_K11, hidden_KMR = ctx.saved_tensors
        hidden_gradient_KMR = _scaled_(_product(gradient_KMO, up_KOR), scale_K11)
        x_gradient_KMI = None
        if ctx.needs_input_grad[0]:
            x_gradient_KMI = torch.matmul(gradient_KMO, ctx.frozen.weight)
            _add_product_(x_gradient_KMI, hidden_gradient_KMR, down_KRI)
        if ctx.into is not None:
            _add_product_(ctx.into[0], hidden_gradient_KMR.mT, x_KMI)
            _add_product_(ctx.into[1], gradient_KMO.mT, hidden_KMR)
            return x_gradient_KMI, None, None, None, None, None
        down_gradient_KRI = _product(hidden_gradient_KMR.mT, x_KMI)
        up_gradient_KOR = _product(gradient_KMO.mT, hidden_KMR)
        return x_gradient_KMI, None, down_gradient_KRI, up_gradient_KOR, None, None


class LowRankConv2d(torch.autograd.Function):
    """conv(x, W) + b + s_k B_k conv(x, A_k) for slice k of x; gradients for x, A and B, not for the frozen W and b.

    The K small convolutions run as one with K groups: one by one they cost more than the frozen one (measured on a
    CPU). A scale of None means 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NIHW: Tensor,
        weight_OIYX: Tensor,
        bias_O: Tensor | None,
        down_KRIYX: Tensor,
        up_KOR: Tensor,
        scale_K11: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        """The layer's output, `[N, O, H, W]`."""
        rows = len(x_NIHW) // len(down_KRIYX)
        output = F.conv2d(x_NIHW, weight_OIYX, bias_O, *geometry).contiguous()
        hidden_BJHW = F.conv2d(_grouped(x_NIHW, rows), down_KRIYX.flatten(0, 1), None, *geometry, len(down_KRIYX))
        hidden_NRP = _apart(hidden_BJHW, len(down_KRIYX)).flatten(2)
        scaled_KOR = up_KOR if scale_K11 is None else (up_KOR * scale_K11).to(up_KOR.dtype)
        up_NOR = scaled_KOR.repeat_interleave(rows, dim=0)
        output.flatten(2).baddbmm_(up_NOR, hidden_NRP)
        ctx.save_for_backward(x_NIHW, weight_OIYX, down_KRIYX, up_NOR, scale_K11, hidden_NRP)
        ctx.geometry = geometry
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs of `forward`, given that of its output, `[N, O, H, W]`."""
        (gradient_NOHW,) = gradients
        x_NIHW, weight_OIYX, down_KRIYX, up_NOR, scale_K11, hidden_NRP = ctx.saved_tensors
        count, rank = down_KRIYX.shape[:2]
        rows = len(x_NIHW) // count
        gradient_NOP = gradient_NOHW.flatten(2)
        up_gradient_KBOR = torch.bmm(gradient_NOP, hidden_NRP.mT).unflatten(0, (count, rows))
        hidden_gradient_NRHW = torch.bmm(up_NOR.mT, gradient_NOP).unflatten(2, gradient_NOHW.shape[2:])
        x_gradient_BJHW, down_gradient_JIYX = _convolution_gradients(
            _grouped(hidden_gradient_NRHW, rows), _grouped(x_NIHW, rows), down_KRIYX.flatten(0, 1),
            ctx.geometry, groups=count, wanted=(ctx.needs_input_grad[0], True),
        )  # fmt: skip
        x_gradient_NIHW = None
        if ctx.needs_input_grad[0]:
            x_gradient_NIHW, _ = _convolution_gradients(
                gradient_NOHW, x_NIHW, weight_OIYX, ctx.geometry, groups=1, wanted=(True, False)
            )
            x_gradient_NIHW.add_(_apart(x_gradient_BJHW, count))
        up_gradient_KOR = _scaled_(up_gradient_KBOR.sum(1), scale_K11)
        down_gradient_KRIYX = down_gradient_JIYX.unflatten(0, (count, rank))
        return x_gradient_NIHW, None, None, down_gradient_KRIYX, up_gradient_KOR, None, None


def _grouped(x_NCHW: Tensor, rows: int) -> Tensor:
    """The slices of K adapters side by side as channels, `[B, K C, H, W]`; a view where B or K is 1."""
    side_by_side: Tensor = x_NCHW.unflatten(0, (-1, rows)).transpose(0, 1).flatten(1, 2)
    return side_by_side


def _apart(x_BJHW: Tensor, count: int) -> Tensor:
    """The inverse of `_grouped`, `[N, C, H, W]`."""
    stacked: Tensor = x_BJHW.unflatten(1, (count, -1)).transpose(0, 1).flatten(0, 1)
    return stacked


def _convolution_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, *, groups: int, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    stride, padding, dilation = geometry
    x_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward.default(
        gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*wanted, False]
    )
    return x_gradient, weight_gradient


def _scaled_(target: Tensor, scale: Tensor | None) -> Tensor:
    return target if scale is None else target.mul_(scale)


def _product(left: Tensor, right: Tensor) -> Tensor:
    # On small matrices a batched product with a batch of one costs a sixth more than the plain product.
    return torch.mm(left[0], right[0]).unsqueeze(0) if len(left) == 1 else torch.bmm(left, right)


def _add_product_(target: Tensor, left: Tensor, right: Tensor) -> None:
    if len(left) == 1:
        target[0].addmm_(left[0], right[0])
    else:
        target.baddbmm_(left, right)
