"""Every format and colour space ends as the same upright RGB picture, and damage is found."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from runner.data.decode import SWAPS_SIDES, UnreadableImage, decode, inspect


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def distance(left: Image.Image, right: Image.Image) -> float:
    """Mean absolute difference of two pictures, in grey levels."""
    assert left.size == right.size
    assert left.mode == right.mode == "RGB"
    return float(np.abs(np.asarray(left, np.float64) - np.asarray(right, np.float64)).mean())


@pytest.mark.parametrize(
    ("form", "options", "allowed"),
    [
        ("PNG", {}, 0.0),
        ("WEBP", {"lossless": True}, 0.0),
        ("BMP", {}, 0.0),
        ("TIFF", {"compression": "tiff_lzw"}, 0.0),
        ("JPEG", {"quality": 97, "subsampling": 0}, 1.5),
        ("JPEG", {"quality": 97, "subsampling": 0, "progressive": True}, 1.5),
        ("AVIF", {"quality": 97}, 3.0),
    ],
)
def test_formats_agree(photos: dict[str, Image.Image], form: str, options: Any, allowed: float) -> None:
    """A photograph comes back from each format within that format's own loss."""
    for photo in photos.values():
        data = encoded(photo, form, **options)

        assert distance(decode(data), photo) <= allowed
        assert inspect(data).notes == ()
        assert (inspect(data).width_px, inspect(data).height_px) == photo.size


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photos: dict[str, Image.Image], form: str, orientation: int) -> None:
    """A picture stored in any of the eight orientations comes back upright, with its upright size."""
    photo = photos["cat"]
    exif = Image.Exif()
    exif[0x0112] = orientation
    # The stored pixels are the upright ones moved by the inverse; orientations 6 and 8 undo each other.
    inverse = Image.Exif()
    inverse[0x0112] = {6: 8, 8: 6}.get(orientation, orientation)
    stored = photo.copy()
    stored.info["exif"] = inverse.tobytes()
    stored = ImageOps.exif_transpose(stored) or stored
    assert (stored.size != photo.size) == (orientation in SWAPS_SIDES)

    data = encoded(stored, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))

    seen = inspect(data)
    allowed = 4.0 if form in ("JPEG", "WEBP") else 0.0
    assert distance(decode(data), photo) <= allowed
    assert (seen.width_px, seen.height_px) == photo.size
    assert ("turned upright (EXIF)" in seen.notes) == (orientation != 1)


def test_transparency_over_white(photos: dict[str, Image.Image]) -> None:
    """Hidden colours do not show: the clear half is white in RGBA, LA and palette pictures."""
    rgba = photos["astronaut"].convert("RGBA")
    alpha = Image.new("L", rgba.size, 255)
    alpha.paste(0, (0, 0, rgba.width // 2, rgba.height))
    rgba.putalpha(alpha)
    palette = rgba.convert("RGB").quantize(32)
    grey = rgba.convert("LA")
    for data in (encoded(rgba, "PNG"), encoded(grey, "PNG"), encoded(rgba, "WEBP", lossless=True)):
        pixels = np.asarray(decode(data))
        assert (pixels[:, : rgba.width // 2] == 255).all()
        assert pixels[:, rgba.width // 2 :].mean() < 200
        assert "transparency over white" in inspect(data).notes
    hidden = palette.getpixel((0, 0))
    data = encoded(palette, "PNG", transparency=hidden)
    assert decode(data).getpixel((0, 0)) == (255, 255, 255)
    assert set(inspect(data).notes) == {"palette to RGB", "transparency over white"}


def test_opaque_alpha_changes_nothing(photos: dict[str, Image.Image]) -> None:
    """An alpha channel that is opaque everywhere is no conversion."""
    data = encoded(photos["cat"].convert("RGBA"), "PNG")

    assert distance(decode(data), photos["cat"]) == 0
    assert inspect(data).notes == ()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(photos: dict[str, Image.Image], form: str) -> None:
    """16-bit grey has the brightness of the same picture in 8 bits; Pillow's own conversion clips it."""
    grey = photos["coffee"].convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert wide.mode == "I;16"

    data = encoded(wide, form)

    assert distance(decode(data), grey.convert("RGB")) == 0
    assert inspect(data).notes == ("16-bit grey to RGB",)


def test_16_bit_grey_may_have_a_colour_that_is_transparent(photos: dict[str, Image.Image]) -> None:
    """PNG's tRNS chunk hides one of the 65536 greys, and no other that is like it in 8 bits."""
    wide = np.asarray(photos["coffee"].convert("L")).astype(np.uint16) * 257
    wide[:10], wide[10:20] = 5140, 5141
    data = encoded(Image.fromarray(wide), "PNG", transparency=5140)

    assert decode(data).getpixel((0, 0)) == (255, 255, 255)
    assert decode(data, under=0).getpixel((0, 9)) == (0, 0, 0)
    assert decode(data).getpixel((0, 10)) == (20, 20, 20)
    assert inspect(data).notes == ("16-bit grey to RGB", "transparency over white")


def test_float_grey(photos: dict[str, Image.Image]) -> None:
    """Floats from 0 to 1 are scaled; others mean nothing as a picture and are refused with their range."""
    grey = np.asarray(photos["coffee"].convert("L"))
    good = encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF")
    assert distance(decode(good), photos["coffee"].convert("L").convert("RGB")) == 0

    with pytest.raises(UnreadableImage, match="expected 0 to 1"):
        inspect(encoded(Image.fromarray(grey.astype(np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette(photos: dict[str, Image.Image], mode: str) -> None:
    """Grey, bilevel and palette pictures become the RGB picture they show."""
    photo = photos["astronaut"].convert(mode)
    data = encoded(photo, "PNG")

    assert distance(decode(data), photo.convert("RGB")) == 0
    assert len(inspect(data).notes) == 1


def test_cmyk_keeps_its_colours(photos: dict[str, Image.Image]) -> None:
    """A CMYK JPEG, which Adobe's programs and Pillow store inverted, is not a negative."""
    photo = photos["coffee"]
    data = encoded(photo.convert("CMYK"), "JPEG", quality=97, subsampling=0)
    assert b"Adobe" in data[:4000]

    assert distance(decode(data), photo) < 3
    assert inspect(data).notes == ("CMYK to RGB",)


def test_colour_profile_is_applied(photos: dict[str, Image.Image]) -> None:
    """Pixels in another profile are converted; a damaged profile and sRGB's own leave them alone."""
    photo = photos["astronaut"]
    lab_like = _swapped_profile()
    converted = decode(encoded(photo, "PNG", icc_profile=lab_like))
    red, green, blue = photo.split()
    assert distance(converted, Image.merge("RGB", (green, red, blue))) < 2
    assert inspect(encoded(photo, "PNG", icc_profile=lab_like)).notes == ("colour profile to sRGB",)
    with_alpha = photo.convert("RGBA")
    with_alpha.putpixel((0, 0), (0, 0, 0, 0))
    seen_through = decode(encoded(with_alpha, "PNG", icc_profile=lab_like))
    assert distance(seen_through, converted) < 0.1
    assert seen_through.getpixel((0, 0)) == (255, 255, 255)

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, lab_like[:200], b"nonsense"):
        assert distance(decode(encoded(photo, "PNG", icc_profile=profile)), photo) == 0
    of_grey = lab_like[:16] + b"GRAY" + lab_like[20:]
    for profile in (srgb, of_grey, b"nonsense"):
        assert inspect(encoded(photo, "PNG", icc_profile=profile)).notes == (), "nothing is converted"


def _swapped_profile() -> bytes:
    """sRGB with the tags of its red and green primaries swapped, under another name."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    wide_name = "sRGB".encode("utf-16-be")
    return bytes(data).replace(b"sRGB", b"swap").replace(wide_name, "swap".encode("utf-16-be"))


def test_animation_gives_its_first_frame(photos: dict[str, Image.Image]) -> None:
    """Of several frames, the first is used, and this is noted."""
    frames = [photos["cat"].resize((64, 48)), photos["coffee"].resize((64, 48))]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    assert distance(decode(data), frames[0]) == 0
    assert inspect(data).notes == ("first of 2 frames",)


def test_two_pictures_of_one_shot(photos: dict[str, Image.Image]) -> None:
    """Cameras store a second picture behind the first (MPO); the first is read at its full size."""
    data = encoded(photos["cat"], "MPO", save_all=True, append_images=[photos["coffee"]], quality=97)

    seen = inspect(data)
    assert (seen.width_px, seen.height_px) == decode(data).size == photos["cat"].size
    assert distance(decode(data), photos["cat"]) < 2.5
    assert seen.notes == ("first of 2 frames",)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_files_are_found(photos: dict[str, Image.Image], form: str, share: float) -> None:
    """A file cut short anywhere is refused by the quick look, as it would be by the full decoding."""
    data = encoded(photos["rocket"], form)
    cut = data[: int(len(data) * share)]

    for look in (inspect, decode):
        with pytest.raises(UnreadableImage):
            look(cut)


def test_not_an_image() -> None:
    """Empty files and text say what they are."""
    with pytest.raises(UnreadableImage, match="empty"):
        inspect(b"")
    with pytest.raises(UnreadableImage, match="not an image"):
        inspect(b"this is a text file\n" * 50)


def test_bomb_is_refused_before_it_is_unpacked() -> None:
    """A small file that claims 900 megapixels is refused by its header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + body

    with pytest.raises(UnreadableImage, match="500 megapixels"):
        inspect(data)


@pytest.mark.filterwarnings("ignore")  # Pillow remarks on damage that it can read past
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_random_damage_never_escapes(photos: dict[str, Image.Image], form: str) -> None:
    """With flipped bytes, a file is a picture of the reported size, or `UnreadableImage` at the first look."""
    generator = np.random.default_rng(0)
    good = encoded(photos["cat"].resize((48, 40)), form)
    for _ in range(100):
        damaged = bytearray(good)
        for place in generator.integers(0, len(good), 4):
            damaged[place] = int(generator.integers(0, 256))
        try:
            seen = inspect(bytes(damaged))
        except UnreadableImage as error:
            said = str(error)
        else:
            said = "read"
            assert decode(bytes(damaged)).size == (seen.width_px, seen.height_px)
        assert said
