"""Masks among the files of a folder: which file is the mask of which image. Reads names only.

photo.mask.png          beside photo.jpg
photo-masklabel.png     the same, with the name that OneTrainer uses
masks/photo.png         in a top-level folder `masks`, with the same subfolders as the images
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from runner.data.faults import Faults
from runner.data.sources.listing import Listing, stem_of

ENDINGS = (".mask", "-masklabel")
FOLDER = "masks/"


def without_masks(listing: Listing, faults: Faults) -> tuple[Listing, dict[str, str]]:
    """(the listing without masks among its images, the mask of each image by the image's name without suffix).

    Adds to `faults`: masks without an image, and second masks of an image.
    """
    images, masks = [], dict[str, str]()
    for name in listing.images:
        subject = _subject_of(stem_of(name))
        if subject is None:
            images.append(name)
        elif subject in masks:
            faults.add("mask", f"{name} and {masks[subject]} are masks of one image. Remove one of them.")
        else:
            masks[subject] = name
    stems = {stem_of(name) for name in images}
    for subject in sorted(masks.keys() - stems):
        faults.add("mask", f"{masks[subject]}: a mask without its image: there is no {subject}. Rename or remove it.")
    return dataclasses.replace(listing, images=images), masks


def masks_among(images: Sequence[str]) -> dict[str, str]:
    """Image name -> the image without suffix that it is the mask of, for those whose names say so."""
    stems = {stem_of(name) for name in images}
    named = {name: _subject_of(stem_of(name)) for name in images}
    return {name: subject for name, subject in named.items() if subject is not None and subject in stems}


def _subject_of(stem: str) -> str | None:
    """The image that a file is the mask of, without suffix; None if it is not a mask."""
    if stem.startswith(FOLDER):
        return stem.removeprefix(FOLDER)
    return next((stem.removesuffix(ending) for ending in ENDINGS if stem.endswith(ending)), None)
