"""A frozen linear layer and the low-rank updates of K adapters as one differentiable operation.

Apart, autograd would add the update to the output, and the two gradients of the input to each other, in passes
over the activations of their own; together each is part of a matrix product.

# Shape suffixes: K adapters, M rows of each (batch times tokens), I O inputs and outputs, R padded rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class LowRankLinear(torch.autograd.Function):
    """x W' + b + s_k (x A_k') B_k' for slice k of x; gradients for x, A and B, not for the frozen W and b."""

    @staticmethod
    def forward(
        ctx: Any,
        x_KMI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_KRI: Tensor,
        up_KOR: Tensor,
        scale_K11: Tensor,
    ) -> Tensor:
        """The layer's output, `[K, M, O]`."""
        output_KMO = F.linear(x_KMI, weight_OI, bias_O)
        hidden_KMR = _product(x_KMI, down_KRI.mT).mul_(scale_K11)
        _add_product_(output_KMO, hidden_KMR, up_KOR.mT)
        ctx.save_for_backward(x_KMI, weight_OI, down_KRI, up_KOR, scale_K11, hidden_KMR)
        return output_KMO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs of `forward`, from that of its output, `[K, M, O]`."""
        (gradient_KMO,) = gradients
        x_KMI, weight_OI, down_KRI, up_KOR, scale_K11, hidden_KMR = ctx.saved_tensors
        hidden_gradient_KMR = _product(gradient_KMO, up_KOR).mul_(scale_K11)
        x_gradient_KMI = None
        if ctx.needs_input_grad[0]:
            x_gradient_KMI = torch.matmul(gradient_KMO, weight_OI)
            _add_product_(x_gradient_KMI, hidden_gradient_KMR, down_KRI)
        down_gradient_KRI = _product(hidden_gradient_KMR.mT, x_KMI)
        up_gradient_KOR = _product(gradient_KMO.mT, hidden_KMR)
        return x_gradient_KMI, None, None, down_gradient_KRI, up_gradient_KOR, None


def _product(left: Tensor, right: Tensor) -> Tensor:
    # A batch of one costs a sixth more than the plain product on small matrices.
    return torch.mm(left[0], right[0]).unsqueeze(0) if len(left) == 1 else torch.bmm(left, right)


def _add_product_(target: Tensor, left: Tensor, right: Tensor) -> None:
    if len(left) == 1:
        target[0].addmm_(left[0], right[0])
    else:
        target.baddbmm_(left, right)
