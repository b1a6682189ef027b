"""How far the drawn images are from real ones as a whole: FID and KID, from features computed beforehand.

B drawn and R real images, D features each. The value of the FID and the kernel of the KID come from torchmetrics; the
intervals need the arithmetic a thousand times, and use the products of features instead of their covariances.
"""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import Tensor, nn

from runner.measures.interval import Figure, Resampling

log = logging.getLogger(__name__)

LEAST_FOR_PAIRS = 3
"""Two images have only one meaningful pair, which would be the same in every resampling."""
MOST_TO_RESAMPLE = 2000
"""Number of images above which the interval of the FID would take hours."""
FID_WORK = 2e10
FEWEST_TIMES = 100


class Given(nn.Module):
    """Takes the place of a network in torchmetrics when the features already exist."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the features unchanged."""
        return features_BD


def fid(drawn_BD: Tensor, real_RD: Tensor, resampling: Resampling) -> Figure:
    """Fréchet distance of two Gaussians fitted to the features (Heusel et al. 2017, arXiv 1706.08500); lower is better.

    For few images it is far too high, because it then measures the missing rank of the covariances (Binkowski et al.
    2018, arXiv 1801.01401). Only values for the same numbers of images can be compared. The interval is a bootstrap
    over both sets, shifted onto the value, so it shows the spread but not this bias; there is none above 2000 images.
    It is 1.5 to 2.6 times as wide as the spread of the figure between samples of 50 to 100 images.

    Raises:
        ValueError: a set has fewer than two images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    drawn, real = drawn_BD.double(), real_RD.double()
    if min(len(drawn), len(real)) < 2:
        raise ValueError(f"the FID needs two images on each side, and has {len(drawn)} drawn and {len(real)} real")
    metric = FrechetInceptionDistance(feature=Given(drawn.shape[1])).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    # Rounding of eigenvalues may push it below zero, which no distance can be; shifting the interval may, too.
    value = max(float(metric.compute()), 0.0)
    small, large = sorted((len(drawn), len(real)))
    if small > MOST_TO_RESAMPLE:
        log.info("fid_score: no interval for more than %d images", MOST_TO_RESAMPLE)
        return Figure(value, None, None, len(drawn))
    times = max(FEWEST_TIMES, min(resampling.count, int(FID_WORK / (small * small * large))))
    products = drawn @ drawn.T, real @ real.T, drawn @ real.T
    found = resampling.figure(
        value,
        (len(drawn), len(real)),
        lambda one, other: frechet_of_products(*products, one, other),
        centred=True,
        count=min(times, resampling.count),
    )
    return found if found.low is None else dataclasses.replace(found, low=max(found.low, 0.0))


def frechet_of_products(drawn_BB: Tensor, real_RR: Tensor, cross_BR: Tensor, drawn_B: Tensor, real_R: Tensor) -> float:
    """The Fréchet distance computed from all products of features.

    With A and C the centred features as columns over the root of (count - 1), the covariances are AAᵀ and CCᵀ, and the
    trace of the root of their product is the sum of AᵀC's singular values: small if there are fewer images than
    features.

    Args:
        drawn_BB, real_RR, cross_BR: products of the features of every two images.
        drawn_B, real_R: the weight of each image; sum to B and R.
    """
    drawn, real = drawn_B / drawn_B.sum(), real_R / real_R.sum()
    between = drawn @ drawn_BB @ drawn + real @ real_RR @ real - 2 * (drawn @ cross_BR @ real)
    scale_drawn, scale_real = drawn_B.sum() / (drawn_B.sum() - 1), real_R.sum() / (real_R.sum() - 1)
    spread = scale_drawn * (drawn @ drawn_BB.diagonal() - drawn @ drawn_BB @ drawn)
    spread = spread + scale_real * (real @ real_RR.diagonal() - real @ real_RR @ real)
    centred = cross_BR - (cross_BR @ real)[:, None] - (drawn @ cross_BR)[None] + drawn @ cross_BR @ real
    weighted = (drawn * scale_drawn).sqrt()[:, None] * centred * (real * scale_real).sqrt()[None]
    kept = weighted[drawn_B > 0][:, real_R > 0]
    return float(between + spread - 2 * torch.linalg.svdvals(kept).sum())


def kid(drawn_BD: Tensor, real_RD: Tensor, resampling: Resampling) -> Figure:
    """Squared maximum mean discrepancy with a cubic kernel of features (arXiv 1801.01401); lower is better, about 0 for
    the same distribution and then often below it.

    The estimator is unbiased for any number of images; it uses all images instead of random subsets. In the bootstrap,
    pairs of copies of one image do not count, so that it stays unbiased. The interval is about 1.5 times as wide as the
    spread of the figure between samples of 50 to 100 images; there is none for two images.

    Raises:
        ValueError: a set has fewer than two images.
    """
    from torchmetrics.image.kid import poly_kernel

    drawn, real = drawn_BD.double(), real_RD.double()
    if min(len(drawn), len(real)) < 2:
        raise ValueError(f"the KID needs two images on each side, and has {len(drawn)} drawn and {len(real)} real")
    kernels = poly_kernel(drawn, drawn), poly_kernel(real, real), poly_kernel(drawn, real)
    once = torch.ones(len(drawn), dtype=torch.float64), torch.ones(len(real), dtype=torch.float64)
    return resampling.figure(
        discrepancy(*kernels, *once),
        (len(drawn), len(real)),
        lambda one, other: discrepancy(*kernels, one, other),
        least=LEAST_FOR_PAIRS,
    )


def discrepancy(drawn_BB: Tensor, real_RR: Tensor, cross_BR: Tensor, drawn_B: Tensor, real_R: Tensor) -> float:
    """The unbiased squared discrepancy from weighted kernel values; nan if one image has all the weight."""

    def within(kernel: Tensor, weights: Tensor) -> Tensor:
        pairs = weights.sum() ** 2 - (weights**2).sum()
        return (weights @ kernel @ weights - (weights**2) @ kernel.diagonal()) / pairs

    between = drawn_B @ cross_BR @ real_R / (drawn_B.sum() * real_R.sum())
    return float(within(drawn_BB, drawn_B) + within(real_RR, real_R) - 2 * between)
