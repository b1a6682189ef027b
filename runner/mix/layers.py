"""What an adapter is, whichever program wrote its file: for each adapted layer, the factors of an update.

# Shape suffixes: R rank, O I outputs and inputs of a layer.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The update of one layer: `scale * up @ down`, added to its weight.

    DoRA (arXiv 2402.09353) also has a magnitude: the weight is then scaled to that norm, output by output.
    """

    down: Tensor
    """`[R, I]`, or `[R, I, kernel, kernel]` for a convolution; fp32."""
    up: Tensor
    """`[O, R]`, or `[O, R, 1, 1]`; fp32."""
    scale: float
    """Alpha over rank, or over the square root of the rank with rsLoRA."""
    magnitude: Tensor | None = None
    """`[O]`; None for LoRA."""

    @property
    def rank(self) -> int:
        """Rows of the down-projection."""
        return len(self.down)

    def compared(self, other: LowRank) -> tuple[float, float]:
        """(norm of the difference of two updates, norm of the other's), without magnitudes; NaN if one is not finite.

        Computed from the products of the factors in fp64, which is exact to about 1e-8 of the norm. The updates
        themselves have as many numbers as a model's weights: building them took longer than everything else in a check.
        """
        up_OR, down_RI = (
            torch.cat([self.up.flatten(1).double() * self.scale, other.up.flatten(1).double() * -other.scale], 1),
            torch.cat([self.down.flatten(1).double(), other.down.flatten(1).double()]),
        )
        products_RR = (up_OR.T @ up_OR) * (down_RI @ down_RI.T)
        squares = torch.stack([products_RR.sum(), products_RR[self.rank :, self.rank :].sum()])
        apart, size = squares.clamp(min=0).sqrt().tolist()  # rounding may make it negative
        return apart, size


AdapterLayers = dict[tuple[str, str], LowRank]
"""(component of the pipeline, name of the layer in the component as loaded here) -> update."""
