"""What an adapter is, whoever wrote its file: for each adapted layer the factors of an update.

# Shape suffixes: R rank, O I outputs and inputs of a layer.
"""

from __future__ import annotations

import dataclasses

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

    def delta(self) -> Tensor:
        """What is added to the layer's weight, `[O, I]` or `[O, I, kernel, kernel]`, fp32; not for DoRA."""
        assert self.magnitude is None
        update = self.up.flatten(1).float() @ self.down.flatten(1).float() * self.scale
        return update.view(len(self.up), *self.down.shape[1:])


AdapterLayers = dict[tuple[str, str], LowRank]
"""(component of the pipeline, name of the layer in it as it is loaded here) -> update."""
