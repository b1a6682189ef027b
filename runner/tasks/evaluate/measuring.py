"""Computes figures from pictures; each network sees each picture only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from runner.measures import distances, likeness
from runner.measures.interval import Figure, Resampling
from runner.measures.networks import Clip, PictureNetwork, Vision, picture_network
from runner.schema.evaluation import METRICS, MetricName, Network
from runner.schema.tasks.evaluate import Evaluate


class Pictures:
    """The images of one evaluation, and what the networks see in them.

    Args:
        drawn: images drawn with the adapters.
        texts: what each of them should show.
        neutral: pairs of images, by the base alone and with the adapters.
    """

    def __init__(
        self,
        settings: Evaluate,
        device: torch.device,
        *,
        drawn: Sequence[Image.Image] = (),
        texts: Sequence[str] = (),
        real: Sequence[Image.Image] = (),
        neutral: tuple[Sequence[Image.Image], Sequence[Image.Image]] = ((), ()),
    ) -> None:
        self.settings, self.device = settings, device
        self.drawn, self.texts, self.real, self.neutral = drawn, texts, real, neutral
        self.resampling = Resampling(settings.confidence, settings.bootstrap)
        self._seen: dict[tuple[Network, str], Tensor] = {}

    def measure(self) -> dict[str, Figure]:
        """All figures that the settings ask for, by name.

        Raises:
            SettingsError: a network cannot be loaded.
        """
        of, how = self._of, self.resampling
        found: dict[MetricName, Callable[[], Figure]] = {
            "fid": lambda: distances.fid(of("inception", "drawn"), of("inception", "real"), how),
            "kid": lambda: distances.kid(of("inception", "drawn"), of("inception", "real"), how),
            "clip_text": lambda: likeness.text_score(of("clip", "drawn"), self.clip.texts(self.texts), how),
            "clip_image": lambda: likeness.image_score(of("clip", "drawn"), of("clip", "real"), how),
            "dino": lambda: likeness.image_score(of("dino", "drawn"), of("dino", "real"), how),
            "base_drift": self._drift,
        }
        return {METRICS[name].figure: found[name]() for name in self.settings.measured}

    @cached_property
    def clip(self) -> Clip:
        """The network for texts."""
        return Clip("features.clip", str(self.settings.features.clip), self.device)

    @cached_property
    def dino(self) -> PictureNetwork:
        """The network for subjects."""
        return Vision("features.dino", str(self.settings.features.dino), self.device)

    @cached_property
    def inception(self) -> PictureNetwork:
        """The network that FID and KID are defined with."""
        return picture_network("features.inception", str(self.settings.features.inception), self.device)

    def _of(self, network: Network, pictures: Literal["drawn", "real"]) -> Tensor:
        """The features that a network sees in the drawn or real pictures, computed once."""
        if (network, pictures) not in self._seen:
            seer: PictureNetwork = getattr(self, network)
            self._seen[network, pictures] = seer.pictures(getattr(self, pictures))
        return self._seen[network, pictures]

    def _drift(self) -> Figure:
        base, adapted = self.neutral
        if self.settings.drift_in == "pixels":
            return likeness.pixel_drift(_pixels(base), _pixels(adapted), self.resampling)
        network: PictureNetwork = getattr(self, self.settings.drift_in)
        return likeness.feature_drift(network.pictures(base), network.pictures(adapted), self.resampling)


def as_drawn(image: Image.Image, side_px: int) -> Image.Image:
    """A real image in the shape of the drawn ones, center-cropped as in training: otherwise the figures would also
    measure how each network downscales large images.
    """
    return ImageOps.fit(image, (side_px, side_px), Image.Resampling.LANCZOS)


def _pixels(pictures: Sequence[Image.Image]) -> Iterator[Tensor]:
    """pixels_3HW of each, from 0 to 1, fp32."""
    return (torch.from_numpy(np.array(each)).permute(2, 0, 1).float() / 255 for each in pictures)
