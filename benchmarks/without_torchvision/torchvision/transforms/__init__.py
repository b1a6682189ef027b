"""Transforms of Pillow images, by the names and with the results of torchvision's."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchvision.transforms.functional import crop


class InterpolationMode(enum.Enum):
    """How pixels between pixels are found."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    BOX = Image.Resampling.BOX
    HAMMING = Image.Resampling.HAMMING
    LANCZOS = Image.Resampling.LANCZOS


class Resize:
    """Scales the shorter side to `size` pixels."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        if short == self.size:
            return image
        width, height = (int(self.size * side / short) for side in image.size)
        return image.resize((width, height), self.interpolation.value)


class CenterCrop:
    """Cuts a square out of the middle."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left = (round((side - self.size) / 2) for side in (image.height, image.width))
        return crop(image, top, left, self.size, self.size)


class RandomCrop:
    """Cuts a square out anywhere."""

    def __init__(self, size: int) -> None:
        self.size = size

    @staticmethod
    def get_params(image: Image.Image, output_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width of one draw."""
        height, width = output_size
        return random.randint(0, image.height - height), random.randint(0, image.width - width), height, width

    def __call__(self, image: Image.Image) -> Image.Image:
        return crop(image, *self.get_params(image, (self.size, self.size)))


class RandomHorizontalFlip:
    """Mirrors with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < self.p else image


class ToTensor:
    """`[3, H, W]` in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        array_HW3 = np.array(image, dtype=np.uint8)
        return torch.from_numpy(array_HW3).permute(2, 0, 1).contiguous().float().div_(255)


class Normalize:
    """Subtracts a mean and divides by a deviation, channel by channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, tensor_CHW: Tensor) -> Tensor:
        return (tensor_CHW - self.mean).div_(self.std)


class Compose:
    """One after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image
