"""How similar images are to a text or to other images: mean cosines of features, with intervals.

B drawn images, R real images, D features each.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from runner.measures.interval import Figure, Resampling


def mean_of(scores_B: Tensor, resampling: Resampling) -> Figure:
    """The mean of one score per image."""
    scores = scores_B.double()
    return resampling.figure(float(scores.mean()), (len(scores),), lambda one: float(one @ scores / one.sum()))


def text_score(drawn_BD: Tensor, texts_BD: Tensor, resampling: Resampling) -> Figure:
    """Mean cosine between each image and its own text, from -1 to 1; higher is better.

    This is CLIP-T of DreamBooth (arXiv 2208.12242) and, where positive, a hundredth of torchmetrics' CLIPScore.
    """
    return mean_of((unit(drawn_BD) * unit(texts_BD)).sum(dim=1), resampling)


def image_score(drawn_BD: Tensor, real_RD: Tensor, resampling: Resampling) -> Figure:
    """Mean cosine over all pairs of a drawn and a real image, from -1 to 1; higher is better.

    With CLIP's features this is CLIP-I of DreamBooth (arXiv 2208.12242), with DINO's its DINO score. Both sets are
    resampled.
    """
    pairs_BR = unit(drawn_BD) @ unit(real_RD).T
    return resampling.figure(
        float(pairs_BR.mean()),
        tuple(pairs_BR.shape),
        lambda one, other: float(one @ pairs_BR @ other / (one.sum() * other.sum())),
    )


def feature_drift(base_BD: Tensor, adapted_BD: Tensor, resampling: Resampling) -> Figure:
    """Mean of 1 - cosine between the two images of each prompt and seed, from 0 to 2; 0 means no change."""
    return mean_of(1 - (unit(base_BD) * unit(adapted_BD)).sum(dim=1), resampling)


def pixel_drift(base: Iterable[Tensor], adapted: Iterable[Tensor], resampling: Resampling) -> Figure:
    """Mean over images of the root mean squared difference of pixels, as a share of their range.

    Args:
        base, adapted: the same number of images, `[C, H, W]` each; consumed one at a time.
    """
    pairs = zip(base, adapted, strict=True)
    return mean_of(torch.stack([(one - other).double().square().mean().sqrt() for one, other in pairs]), resampling)


def unit(features_BD: Tensor) -> Tensor:
    """The features scaled to length 1, fp64."""
    return torch.nn.functional.normalize(features_BD.double(), dim=1)
