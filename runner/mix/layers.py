"""What an adapter is, whoever wrote its file: for each adapted layer the factors of an update.

# Shape suffixes: R rank, O I outputs and inputs of a layer.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The update of one layer: `scale * up @ down`, added to its weight.

    Of DoRA (arXiv 2402.09353) there is a magnitude besides: the weight is then scaled, output by output, to that norm.
    """

    down: Tensor
    """`[R, I]`, or `[R, I, kernel, kernel]` for a convolution; fp32."""
    up: Tensor
    """`[O, R]`, or `[O, R, 1, 1]`; fp32."""
    scale: float
    """Alpha over rank, or over its root with rsLoRA."""
    magnitude: Tensor | None = None
    """`[O]`; None for LoRA."""

    @property
    def rank(self) -> int:
        """Rows of the down-projection."""
        return len(self.down)

    def compared(self, other: LowRank) -> tuple[float, float]:
        """(norm of the difference of two updates, norm of the other's), magnitudes aside; NaN where one is not finite.

        From the factors' products with each other, in fp64, which is exact to some 1e-8 of the norm. The updates
        themselves have as many numbers as the weights of a model: to make them took longer than all else in a check.
        """
        up_OR, down_RI = (
            torch.cat([self.up.flatten(1).double() * self.scale, other.up.flatten(1).double() * -other.scale], 1),
            torch.cat([self.down.flatten(1).double(), other.down.flatten(1).double()]),
        )
        products_RR = (up_OR.T @ up_OR) * (down_RI @ down_RI.T)
        squares = torch.stack([products_RR.sum(), products_RR[self.rank :, self.rank :].sum()])
        apart, size = squares.clamp(min=0).sqrt().tolist()  # rounding may leave less than nothing
        return apart, size


AdapterLayers = dict[tuple[str, str], LowRank]
"""(component of the pipeline, name of the layer in it as it is loaded here) -> update."""
