"""DoRA (arXiv 2402.09353) at one frozen layer: the magnitudes of a pack's adapters, and the norms they replace.

The weight of output channel o becomes m_o (W + s B A)_o / ||(W + s B A)_o||. The magnitudes m are trained and start as
the norms of W. As in the paper (section 4.3) and in peft, no gradient flows through the norm in the denominator.

# Shape suffixes: K adapters, I O layer inputs (including the kernel of a convolution) and outputs, R padded rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def squared_norms(frozen: nn.Module) -> Tensor:
    """The squared norm of each output channel of a linear layer or a convolution, `[O]`, fp32."""
    return _flat_weight(frozen).square().sum(1)


def _flat_weight(frozen: Any) -> Tensor:
    """The weight as `[O, I]`, fp32; a quantized layer dequantizes it for this call."""
    weight: Tensor = frozen.weight
    return weight.detach().float().flatten(1)


class Magnitudes:
    """The factors applied to a layer's output channels, per adapter; 1 for adapters without DoRA."""

    def __init__(self, frozen: nn.Module, magnitude_KO: nn.Parameter, decomposed: Sequence[bool]) -> None:
        self.frozen, self.magnitude_KO, self.decomposed = frozen, magnitude_KO, list(decomposed)
        self._is_decomposed_K1 = torch.tensor(self.decomposed, device=magnitude_KO.device)[:, None]
        self._squared_O = squared_norms(frozen)
        self._norm_KO = torch.ones_like(magnitude_KO)

    @torch.no_grad()
    def measure(self, down: Tensor, up: Tensor, scale_K11: Tensor) -> None:
        """Recompute the norms for the current weights.

        Expanding ||W + s B A||^2 avoids building a matrix the size of W for each adapter.
        """
        down_KRI, up_KOR, scale_K1 = down.flatten(2).float(), up.flatten(2).float(), scale_K11[..., 0]
        mixed_KO = (torch.matmul(_flat_weight(self.frozen), down_KRI.mT) * up_KOR).sum(2)
        update_KO = (torch.bmm(up_KOR, torch.bmm(down_KRI, down_KRI.mT)) * up_KOR).sum(2)
        norm_KO = (self._squared_O + 2 * scale_K1 * mixed_KO + scale_K1.square() * update_KO).clamp_min(0).sqrt()
        self._norm_KO.copy_(torch.where(self._is_decomposed_K1, norm_KO, 1.0))

    def factors(self, adapters: slice) -> Tensor | None:
        """m / norm of each output channel, `[K, O]`, fp32; None if none of these adapters has magnitudes."""
        if not any(self.decomposed[adapters]):
            return None
        return self.magnitude_KO[adapters] / self._norm_KO[adapters]
