"""From settings to a checked data set: finds the items, reads each once, and accounts for every file or raises
with all faults.

Knows the order of work and the rules that apply to every source; the sources know the layouts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data.buckets import training_shape
from runner.data.captions import can_be_shuffled, shown
from runner.data.crops import resized_size
from runner.data.faults import Faults
from runner.data.inspection import Inspected, inspect_all
from runner.data.item import Item, Mask
from runner.data.report import InventoryReport, Row, Share
from runner.data.sources.find import find
from runner.data.sources.found import Found
from runner.data.sources.kohya import numbers_without_effect
from runner.data.sources.masks import masks_among
from runner.data.sources.streamed import is_indexed
from runner.errors import DatasetError
from runner.system.printable import whole

if TYPE_CHECKING:
    from runner.schema import DatasetSettings

MIN_ITEMS_TO_HOLD_OUT = 10


@dataclass(frozen=True)
class Described:
    """What the `dataset_info.json` of one source says about the class of its subject."""

    class_prompt: str | None = None
    class_folder: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """Items in an order that depends only on their content, and how they were found.

    `fingerprint` changes with the bytes of an image, a caption or the number of either, not with names, folders or
    order. `described` has one entry per source, or a single one for a single `path`.
    """

    items: tuple[Item, ...]
    fingerprint: str
    report: InventoryReport
    described: tuple[Described, ...] = ()

    def without_masks(self) -> Dataset:
        """Leave out images named like masks of others: a folder meant for training with masks may also be used where
        there are none, as real images or as class images.
        """
        masks = _like_masks(self.items)
        kept = tuple(item for item in self.items if item.file not in masks)
        return dataclasses.replace(self, items=kept, fingerprint=fingerprint_of(kept)) if masks else self


def read_dataset(settings: DatasetSettings, *, resolution: int | None = None, refresh: bool = True) -> Dataset:
    """Find, read and check all images of `settings.path`, or of all `settings.sources`; with `resolution` (pixels) the
    report tells enlarged from reduced; without `refresh` a complete copy of data in S3 is used as it is.

    Raises DatasetError with every fault: no such path, no images, damaged or too small images (unless
    `skip_unreadable`), missing captions, metadata that does not match the files.
    """
    items: list[Item] = []
    rows: list[Row] = []
    remarks: tuple[str, ...] = ()
    faults_of_all: list[str] = []
    described: list[Described] = []
    parts = _parts_of(settings)
    for number, (section, part, repeats) in enumerate(parts):
        faults = Faults(part.paths[0], section=section)
        try:
            found = find(part, faults, refresh=refresh)
            own_items, own_rows = _checked_items(found, part, faults)
            if not own_items and not len(faults):
                faults.add("empty", _nothing_left(found, own_rows))
            remarks += _idle_prompt(found, part) if section == "dataset" else ()
            remarks += numbers_without_effect(found, repeats=repeats)
            described.append(Described(found.class_prompt, found.class_folder))
            faults.raise_if_any()
        except DatasetError as error:
            faults_of_all.append(str(error))
            continue
        place = section.removeprefix("dataset").removeprefix(".")
        items += [_of_source(item, number, place, repeats) for item in own_items]
        rows += [dataclasses.replace(row, file=_file_in(place, row.file)) for row in own_rows]
    # What the readable sources lack may be in the ones that cannot be read.
    faults_of_all = faults_of_all or _faults_of_all(items, settings)
    if faults_of_all:
        raise DatasetError("\n".join(faults_of_all))
    items.sort(key=lambda item: (item.id, item.captions, item.file))
    kept = items[: settings.max_images]
    beyond = (f"beyond dataset.max_images={settings.max_images}",)
    rows += [Row(item.file, "dropped", beyond) for item in items[len(kept) :]]
    rows += _used_rows(kept, settings, resolution)
    report = InventoryReport(
        tuple(sorted(rows, key=lambda row: (row.file, row.outcome))), resolution, _shares(kept, parts), remarks
    )
    return Dataset(tuple(kept), fingerprint_of(kept), report, tuple(described))


def would_fetch(settings: DatasetSettings) -> bool:
    """Whether reading the data set would fetch parts of a streamed one from the Hub."""
    return any(part.stream and not is_indexed(part) for _, part, _ in _parts_of(settings))


def fingerprint_of(items: Sequence[Item]) -> str:
    """sha256, in hex, over the sorted (content id, captions) of all images, their repeats, and their masks."""
    content: list[Any] = sorted((item.id, *item.captions) for item in items)
    repeated = sorted((item.id, item.repeats, *item.captions) for item in items if item.repeats > 1)
    masked = sorted((item.id, item.mask.id, *item.captions) for item in items if item.mask)
    if repeated or masked:
        content = [content, repeated, masked]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def in_reading_order(items: Sequence[Item]) -> tuple[Item, ...]:
    """The same items in their order on disk: rows of a table one after another, so that each row group is read once."""
    return tuple(sorted(items, key=reading_place))


def reading_place(item: Item) -> tuple[str, int]:
    """Sort key for reading items in their order on disk."""
    return str(item.address.path), item.address.row


def split(items: Sequence[Item], *, held_out: float) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(train, held out): holds out a share of `held_out` (0 <= share < 1), chosen by content alone; both keep the
    given order.

    Copies of an image are always on the same side. Below 10 items nothing is held out; from 10 on, at least one
    item is, unless all are copies of one image.
    """
    if held_out == 0 or len(items) < MIN_ITEMS_TO_HOLD_OUT:
        return tuple(items), ()
    copies = Counter(item.id for item in items)
    ranked = sorted(copies, key=lambda identity: hashlib.sha256(f"held out {identity}".encode()).digest())
    wanted = min(max(1, round(held_out * len(items))), len(items) - 1)
    chosen: set[str] = set()
    for identity in ranked:
        if copies[identity] <= wanted:
            chosen.add(identity)
            wanted -= copies[identity]
    if not chosen and len(copies) > 1:
        chosen.add(min(ranked, key=lambda identity: copies[identity]))
    train = tuple(item for item in items if item.id not in chosen)
    return train, tuple(item for item in items if item.id in chosen)


def _parts_of(settings: DatasetSettings) -> list[tuple[str, DatasetSettings, int]]:
    """Each place with images: (the name of its settings, the settings, how often its images come in an epoch)."""
    if not settings.sources:
        return [("dataset", settings, 1)]
    parts = []
    for number, source in enumerate(settings.sources):
        own = {key: value for key, value in source if key in type(settings).model_fields and value is not None}
        part = settings.model_copy(update={"sources": (), **own})
        parts.append((f"dataset.sources.{number}", part, source.repeats))
    return parts


def _file_in(place: str, file: str) -> str:
    return f"{place}/{file}" if place else file


def _of_source(item: Item, number: int, place: str, repeats: int) -> Item:
    if not place:
        return item
    return dataclasses.replace(item, file=_file_in(place, item.file), repeats=item.repeats * repeats, source=number)


def _shares(items: Sequence[Item], parts: Sequence[tuple[str, DatasetSettings, int]]) -> tuple[Share, ...]:
    """What each of several sources contributes to an epoch."""
    shares = []
    for section, part, repeats in parts if len(parts) > 1 else ():
        place = section.removeprefix("dataset.")
        own = [item for item in items if item.file.startswith(f"{place}/")]
        shares.append(Share(place, part.paths[0], len(own), repeats, sum(item.repeats for item in own)))
    return tuple(shares)


def _faults_of_all(items: Sequence[Item], settings: DatasetSettings) -> list[str]:
    """Faults of all sources together."""
    faults = []
    if settings.masks and items and not any(item.mask for item in items):
        faults.append(
            "dataset.masks=true: no image has a mask. Put photo.mask.png beside photo.jpg, or masks/photo.png, or "
            "remove the setting."
        )
    if settings.caption_shuffle and items and not can_be_shuffled(items, settings):
        said = (
            f"dataset.caption_separator={settings.caption_separator!r} and dataset.keep_tokens={settings.keep_tokens}"
        )
        faults.append(
            f"dataset.caption_shuffle=true: with {said} no caption has two parts to shuffle. Change one of them."
        )
    return faults


def _checked_items(found: Found, settings: DatasetSettings, faults: Faults) -> tuple[list[Item], list[Row]]:
    """The usable images with their captions, and the rows of all other files; adds to `faults`."""
    default_caption = (settings.instance_prompt or found.instance_prompt or "").strip()
    items, rows = [], list(found.rows)
    inspected = inspect_all([entry.address for entry in found.entries], root=found.root, known=found.seen)
    masks = _checked_masks(found, inspected, faults)
    for entry, seen in zip(found.entries, inspected, strict=True):
        reason = _unusable(seen, settings.min_side_px)
        if reason and settings.skip_unreadable:
            rows.append(Row(entry.name, "dropped", (reason,)))
            continue
        if reason:
            fix = "Repair or remove it, or set dataset.skip_unreadable=true"
            faults.add("unreadable", f"{entry.name}: {reason}. {fix}.")
        captions = [caption.strip() for caption in entry.captions if caption.strip()] or [default_caption]
        if not captions[0]:
            fix = f"{entry.caption_fix}, or set dataset.instance_prompt for all without one"
            faults.add("caption", f"{entry.name}: no caption. {fix}.")
        for caption in captions:
            if whole(caption) != caption:
                faults.add(
                    "characters", f"{entry.name}: its caption {caption!r} contains half a character. Type it again."
                )
            if "\0" in caption:
                said = "contains a zero byte, as UTF-16 does. Save the text as UTF-8"
                faults.add("characters", f"{entry.name}: its caption {shown(caption)} {said}.")
        size = seen.width_px, seen.height_px
        first, *others = captions
        items.append(
            Item(
                seen.id,
                entry.name,
                first,
                *size,
                seen.notes,
                address=entry.address,
                more_captions=tuple(others),
                repeats=entry.repeats,
                mask=masks.get(entry.name),
            )
        )
    return items, rows


def _idle_prompt(found: Found, settings: DatasetSettings) -> tuple[str, ...]:
    """A remark if `instance_prompt` is the caption of no image; with several sources, another one may need it."""
    own = all(any(caption.strip() for caption in entry.captions) for entry in found.entries)
    if settings.instance_prompt is None or not found.entries or not own:
        return ()
    return ("dataset.instance_prompt is not used: every image has a caption of its own, which comes first",)


def _checked_masks(found: Found, images: Sequence[Inspected], faults: Faults) -> dict[str, Mask]:
    """The masks by image name; adds to `faults` those that cannot be read or have another shape."""
    pairs = [(entry, seen, entry.mask) for entry, seen in zip(found.entries, images, strict=True) if entry.mask]
    masks = {}
    inspected = inspect_all([address for _, _, (_, address) in pairs], root=found.root / "masks") if pairs else []
    for (entry, image, (file, address)), seen in zip(pairs, inspected, strict=True):
        if seen.error:
            faults.add("mask", f"{file}: {seen.error}. Repair the mask or remove it.")
        elif not image.error and not _same_shape(seen, image):
            sizes = f"{seen.width_px}x{seen.height_px} px, and {entry.name} {image.width_px}x{image.height_px}"
            faults.add("mask", f"{file}: the mask is {sizes}. A mask must have its image's shape.")
        masks[entry.name] = Mask(seen.id, file, address=address)
    return masks


def _same_shape(mask: Inspected, image: Inspected) -> bool:
    """Whether one is a scaled version of the other, to within a pixel of the smaller one."""
    one, other = mask.height_px * image.width_px, mask.width_px * image.height_px
    return abs(one - other) <= max(image.height_px, image.width_px)


def _unusable(seen: Inspected, min_side_px: int) -> str | None:
    if seen.error:
        return seen.error
    if min(seen.width_px, seen.height_px) < min_side_px:
        size = f"{seen.width_px}x{seen.height_px}"
        return f"the image is {size} px, its shorter side below dataset.min_side_px={min_side_px}"
    return None


def _nothing_left(found: Found, rows: list[Row]) -> str:
    left_out = [row for row in rows if row.outcome == "dropped" or "not an image" not in row.notes]
    if left_out:
        shown = "; ".join(f"{row.file}: {', '.join(row.notes)}" for row in left_out[:5])
        return f"no image is left, {len(left_out)} left out: {shown}. Correct these or their captions."
    return f"no images in {found.root}. Give a folder of images, or of parquet or arrow files."


def _used_rows(items: list[Item], settings: DatasetSettings, resolution: int | None) -> list[Row]:
    """A row for each item that is trained on, with everything that happens to it."""
    first: dict[str, str] = {}
    like_masks = {} if settings.masks else _like_masks(items)
    rows = []
    for item in items:
        notes, kinds = list(item.notes), set()
        if item.file in like_masks:
            kinds.add("warning")
            subject = like_masks[item.file]
            notes.append(
                f"trained as an image, and named like the mask of {subject}: dataset.masks=true reads it as that"
            )
        if any(note.startswith("turned") for note in item.notes):
            kinds.add("rotated")
        if any(not note.startswith("turned") for note in item.notes):
            kinds.add("converted")
        if item.id in first:
            kinds.add("duplicate")
            notes.append(f"same content as {first[item.id]}")
        first.setdefault(item.id, item.file)
        if settings.masks and item.mask is None:
            kinds.add("unmasked")
            notes.append("no mask: all of it counts")
        if resolution is not None:
            shape = training_shape(item.height_px, item.width_px, settings, resolution)
            resized_h, resized_w = resized_size(item.height_px, item.width_px, shape)
            if (resized_h, resized_w) != (item.height_px, item.width_px):
                verb = "enlarged" if (resized_h, resized_w) > (item.height_px, item.width_px) else "reduced"
                kinds.add(verb)
                notes.append(f"{verb} from {item.width_px}x{item.height_px} to {resized_w}x{resized_h}")
        rows.append(Row(item.file, "used", tuple(notes), frozenset(kinds)))
    return rows


def _like_masks(items: Sequence[Item]) -> dict[str, str]:
    """Image files named like the mask of another image: their name -> that image's name without suffix."""
    found = dict[str, str]()
    for number in {item.source for item in items}:
        files = [item.file for item in items if item.source == number and not item.address.column]
        within = {file.removeprefix(f"sources.{number}/"): file for file in files}
        found |= {within[name]: subject for name, subject in masks_among(list(within)).items()}
    return found
