"""From encoded bytes to an upright RGB picture, with a note for everything changed on the way.

Takes the bytes of any format that Pillow reads. Does not know where they come from or what they are for.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

MAX_MEGAPIXELS = 500
OPAQUE = 255
BLACK, WHITE = 0, 255
ORIENTATION_TAG = 0x0112
SWAPS_SIDES = frozenset({5, 6, 7, 8})
"""EXIF orientations that rotate the picture by a quarter turn."""

DECODE_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders have been seen to raise on damaged files."""


class UnreadableImage(Exception):
    """The bytes cannot be decoded as a picture; the message says why, without the file's name."""


@dataclass(frozen=True)
class Inspection:
    """What one look at an image's bytes found: its upright size in pixels, and what decoding will change."""

    width_px: int
    height_px: int
    notes: tuple[str, ...]


def inspect(encoded: bytes) -> Inspection:
    """Decode `encoded` far enough to find damage anywhere in it. Raises `UnreadableImage`."""
    image = _open(encoded)
    try:
        width, height = image.size
        # TIFF rotates itself while loading and then loses the tag. PNG's tag arrives only with the pixels.
        turns_itself = image.format == "TIFF" and _orientation(image) != 1
        # At an eighth of the side, JPEG's entropy decoding still reads every byte, but the costly transform is skipped.
        drafted = image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
        orientation = _orientation(image)
        notes = _notes(image, turned=turns_itself or orientation != 1)
        if drafted is None:
            width, height = image.size
            if _is_wide_grey(image):
                _grey_to_8_bit(image)
    except _errors() as error:
        raise UnreadableImage(_reason(error)) from error
    if orientation in SWAPS_SIDES:
        width, height = height, width
    return Inspection(width, height, notes)


def decode(encoded: bytes, *, under: int = WHITE) -> Image.Image:
    """The first frame as upright 8-bit sRGB, with transparency laid over the grey `under` (0 to 255). Raises
    `UnreadableImage`.
    """
    from PIL import ImageOps

    image: Image.Image = _open(encoded)
    try:
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image, under)
    except _errors() as error:
        raise UnreadableImage(_reason(error)) from error


def _open(encoded: bytes) -> Image.Image:
    from PIL import Image

    if not encoded:
        raise UnreadableImage("the file is empty (0 bytes)")
    # Pillow has this limit only per process. It rejects at twice the value, and warns above the value itself.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_MEGAPIXELS * 1_000_000 // 2)
    try:
        return Image.open(io.BytesIO(encoded))
    except _errors() as error:
        raise UnreadableImage(_reason(error)) from error


def _errors() -> tuple[type[Exception], ...]:
    from PIL import Image

    return (*DECODE_ERRORS, Image.DecompressionBombError)


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in a format that is not supported; save it as PNG or JPEG"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_MEGAPIXELS} megapixels; scale it down"
    return f"{error or type(error).__name__}".rstrip(". ")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except DECODE_ERRORS:
        # A camera's broken EXIF block says nothing about the pixels, which loading checks.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _notes(image: Image.Image, *, turned: bool) -> tuple[str, ...]:
    """What `decode` will change in a loaded image."""
    notes = []
    if turned:
        notes.append("turned upright (EXIF)")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"first of {frames} frames")
    mode = image.mode
    if mode == "CMYK":
        notes.append("CMYK to RGB")
    elif _is_wide_grey(image):
        notes.append("16-bit grey to RGB")
    elif mode in ("1", "L", "LA", "La"):
        notes.append("grey to RGB")
    elif mode in ("P", "PA"):
        notes.append("palette to RGB")
    if _foreign_profile(image) is not None:
        notes.append("colour profile to sRGB")
    if (hidden := _hidden_grey(image)) is not None and hidden.getbbox() is not None:
        notes.append("transparency over white")
    elif _has_alpha(image):
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        if isinstance(lowest, (int, float)) and lowest < OPAQUE:
            notes.append("transparency over white")
    return tuple(notes)


def _has_alpha(image: Image.Image) -> bool:
    if _is_wide_grey(image):
        return False
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _is_wide_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _to_rgb(image: Image.Image, under: int) -> Image.Image:
    from PIL import Image

    if _is_wide_grey(image):
        grey = _grey_to_8_bit(image).convert("RGB")
        if (hidden := _hidden_grey(image)) is not None:
            grey.paste((under, under, under), mask=hidden)
        return grey
    if _has_alpha(image):
        # Converting a transparent picture straight to RGB shows the hidden colour under it, often black.
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (under, under, under, OPAQUE))
        flat = Image.alpha_composite(ground, rgba).convert("RGB")
        flat.info = image.info
        return _to_srgb(flat) if image.mode in ("RGBA", "RGB") else flat
    return _to_srgb(image).convert("RGB")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or 32 bits holding 16, to 8 bits; floats must be in 0..1. Raises ValueError out of range."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= top):
        raise ValueError(
            f"grey values from {lowest:g} to {highest:g}, expected 0 to {top:g}; save it with 8 or 16 bits per channel"
        )
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8))


def _hidden_grey(image: Image.Image) -> Image.Image | None:
    """A mask of the transparent pixels of 16-bit grey; None if it has no transparent grey."""
    import numpy as np
    from PIL import Image

    level = image.info.get("transparency")
    if not _is_wide_grey(image) or not isinstance(level, int):
        return None
    return Image.fromarray((np.asarray(image) == level).astype(np.uint8) * 255)


def _foreign_profile(image: Image.Image) -> bytes | None:
    """The embedded ICC profile of a colour picture, unless it is already sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode not in ("RGB", "RGBA", "CMYK") or not isinstance(profile, bytes) or len(profile) < 128:
        return None
    # The description is ASCII in version 2 profiles and UTF-16 in version 4.
    named_srgb = b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
    # Bytes 16 to 20 of the header name the colour space of the profile.
    fits = profile[16:20] == (b"CMYK" if image.mode == "CMYK" else b"RGB ")
    return profile if fits and not named_srgb else None


def _to_srgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profile = _foreign_profile(image)
    if profile is None:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        # A damaged profile is common and harmless: every viewer shows the picture without it.
        return image
    assert converted is not None, "a copy was asked for"
    return converted
