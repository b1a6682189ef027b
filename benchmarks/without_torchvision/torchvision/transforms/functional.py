"""The one function of this module that is needed."""

from __future__ import annotations

from PIL import Image


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """A rectangle of an image."""
    return image.crop((left, top, left + width, top + height))
