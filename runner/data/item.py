"""One training image with its caption: identified by content, opened on demand. Knows nothing about crops or models."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.data.address import Address
from runner.data.decode import BLACK, WHITE, UnreadableImage, decode
from runner.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image


def content_id(encoded: bytes) -> str:
    """Identity of an image: sha256 over its encoded bytes, in hex."""
    return hashlib.sha256(encoded).hexdigest()


@dataclass(frozen=True)
class Mask:
    """Which parts of an image count: a picture of the same shape, white where they do. Identified by its content."""

    id: str
    file: str
    address: Address = field(repr=False, kw_only=True)

    def open(self) -> Image.Image:
        """The mask as upright 8-bit grey, in its own size, black where it is transparent because nothing was painted
        there. Raises DatasetError if its bytes have changed.
        """
        return _opened(self.address, self.id, self.file, under=BLACK).convert("L")


@dataclass(frozen=True)
class Item:
    """An image that was read and decoded once, and the caption it is trained with.

    `id` is the sha256 of the encoded bytes; `file` is for people; the size is that of the upright picture;
    `notes` say what `open` changes. Small and picklable: the pixels stay where they are.
    """

    id: str
    file: str
    caption: str
    width_px: int
    height_px: int
    notes: tuple[str, ...] = ()
    address: Address = field(repr=False, kw_only=True)
    more_captions: tuple[str, ...] = field(default=(), kw_only=True)
    """Alternative captions that it may be trained with."""
    repeats: int = field(default=1, kw_only=True)
    """How often it comes in an epoch."""
    source: int = field(default=0, kw_only=True)
    """Index of the data set's source that it comes from."""
    mask: Mask | None = field(default=None, kw_only=True)
    """Without a mask, all of it counts."""

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions found for it."""
        return (self.caption, *self.more_captions)

    def open(self) -> Image.Image:
        """The picture as upright RGB, 8 bits, transparency over white; size `(width_px, height_px)`.

        Raises DatasetError if the bytes are no longer those that were inspected, because caches are keyed by them.
        """
        return _opened(self.address, self.id, self.file)


def _opened(address: Address, identity: str, file: str, *, under: int = WHITE) -> Image.Image:
    try:
        encoded = address.read()
        if content_id(encoded) != identity:
            raise UnreadableImage(
                "the content has changed since the data set was read; start again, and where its size and time are as "
                "before, touch the file first"
            )
        return decode(encoded, under=under)
    except (OSError, ValueError, UnreadableImage) as error:
        raise DatasetError(f"dataset.path: {file}: {error}") from error
