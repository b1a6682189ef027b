"""The moving average of an adapter's weights, which validation, samples and the saved files use.

Averaging the last part of training removes the noise of single steps from the weights (Polyak and Juditsky 1992).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Average:
    """An exponential moving average, fp32, of one job's weights."""

    def __init__(self, weights: Tensor, decay: float) -> None:
        self.weights, self.decay = weights.clone(), decay

    @torch.no_grad()
    def update(self, weights: Tensor, step: int) -> None:
        """Fold in the weights after optimizer step `step`, counted from 1."""
        self.weights.lerp_(weights, 1 - decay_at(step, self.decay))


def decay_at(step: int, most: float) -> float:
    """How much of the average is kept at a step: nothing at the first, then min(most, step / (9 + step)).

    This is the warm-up of TensorFlow's `ExponentialMovingAverage` and diffusers' `EMAModel`: without it, the initial
    weights would linger in the average for a long time.
    """
    return 0.0 if step <= 1 else min(most, step / (9 + step))
