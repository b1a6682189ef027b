"""The captions that an image may be trained with: those found for it, shuffled, with a prefix and a suffix.

Pure functions of the captions and the settings, so that all of them can be encoded once and shared by every job and
seed. Which one a sample gets is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.data.item import Item
    from runner.schema import DatasetSettings

SHOWN_CHARACTERS = 80
PUNCTUATION = tuple(",.;:!?")


def captions_of(item: Item, data: DatasetSettings) -> tuple[str, ...]:
    """All captions that `item` may be trained with; the first is used for measuring and sampling.

    By default these are the item's own. With `caption_shuffle` there are `caption_variants` of each, the first of them
    unchanged. A caption with nothing to shuffle appears just as often, so that all own captions have the same weight.
    The prefix and the suffix surround the shuffled part.
    """
    found = []
    for caption in item.captions:
        variants = data.caption_variants if data.caption_shuffle else 1
        found += [_framed(_shuffled(caption, variant, data), data) for variant in range(variants)]
    return tuple(found)


def as_measured(items: Sequence[Item], data: DatasetSettings) -> tuple[Item, ...]:
    """The items, each with the single caption it is measured with."""
    return tuple(dataclasses.replace(item, caption=captions_of(item, data)[0], more_captions=()) for item in items)


def shown(caption: str) -> str:
    """A caption as shown in a message: in quotes, and cut to its beginning if it is long."""
    return repr(caption if len(caption) <= SHOWN_CHARACTERS else f"{caption[: SHOWN_CHARACTERS - 3].rstrip()}...")


def tags_of(caption: str, data: DatasetSettings) -> tuple[list[str], list[str]]:
    """The parts of a caption between separators: (those that stay in front, those to shuffle)."""
    tags = [tag.strip() for tag in caption.split(data.caption_separator)]
    tags = [tag for tag in tags if tag]
    return tags[: data.keep_tokens], tags[data.keep_tokens :]


def can_be_shuffled(items: Sequence[Item], data: DatasetSettings) -> bool:
    """Whether any caption has two parts that may swap places."""
    return any(len(tags_of(caption, data)[1]) > 1 for item in items for caption in item.captions)


def _shuffled(caption: str, variant: int, data: DatasetSettings) -> str:
    kept, moving = tags_of(caption, data) if variant else ([], [])
    if len(moving) < 2:
        return caption
    # By a hash of the text, not by a seed: adding variants keeps the first ones, and every job gets the same.
    key = f"{variant}/{caption}"
    order = sorted(range(len(moving)), key=lambda place: hashlib.sha256(f"{place}/{key}".encode()).digest())
    return f"{data.caption_separator.rstrip()} ".join([*kept, *(moving[place] for place in order)])


def _framed(caption: str, data: DatasetSettings) -> str:
    text = _joined((data.caption_prefix or "").strip(), caption)
    return _joined(text, (data.caption_suffix or "").strip())


def _joined(left: str, right: str) -> str:
    space = " " if left and right and not right.startswith(PUNCTUATION) else ""
    return f"{left}{space}{right}"
