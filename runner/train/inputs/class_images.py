"""Images of a class, drawn by the base model once for all jobs and sweeps that preserve this class.

Image i is drawn from seed i, so a larger set starts with the images that already exist.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from runner.cache.encodings import class_image_name, class_images_folder
from runner.data import Item
from runner.data.address import FileAddress
from runner.data.classes import SubjectClass
from runner.data.item import content_id
from runner.jobs.job import Job
from runner.train.base import Base
from runner.train.drawing import Sampling, Wish, draw, write_pictures
from runner.train.inputs.shared_out import SharedWork, share_out
from runner.train.inputs.text import Conditioner

log = logging.getLogger(__name__)

IMAGES_PER_TURN = 32
"""Written at once, so that little is lost when the process is killed, and workers can split the work."""
TURN_FILES = 16
"""Lock files per class; they are not removed."""


def draw_class_images(job: Job, kept: SubjectClass, base: Base, conditioner: Conditioner) -> tuple[Item, ...]:
    """Draw the images of a class that a job lacks, and return all of them, captioned with the class prompt.

    Args:
        conditioner: provides the embeddings of the class prompt and of the empty one.
    """
    folder = class_images_folder(job.experiment, kept.prompt, model=job.identity["model"])
    sampling = Sampling.of_class(job.experiment)
    wishes = [Wish(class_image_name(index), kept.prompt, index) for index in range(kept.to_draw)]
    place = base.place

    def draw_some(part: Sequence[Wish]) -> None:
        place.heed()
        # If adapters of other jobs are attached, no row belongs to any of them.
        write_pictures(draw(part, sampling, base, conditioner, lambda _rows: nullcontext()), folder)

    def begin(missing: int) -> None:
        there, most = len(wishes) - missing, len(wishes)
        log.info("%d images of the class %r: %d exist, %d to draw", most, kept.prompt, there, missing)

    def so_far(missing: int) -> None:
        log.info("%d of %d images of the class %r are drawn", len(wishes) - missing, len(wishes), kept.prompt)

    drawing = SharedWork(
        folder=folder,
        per_turn=IMAGES_PER_TURN,
        lock=lambda turn: turn_file(folder, turn[0].seed),
        is_there=lambda wish: (folder / wish.name).is_file(),
        do=draw_some,
        begin=begin,
        so_far=so_far,
        what="draw images of the class",
        doing=f"drawing images of the class {kept.prompt!r}",
    )
    share_out(wishes, drawing, place)
    side = job.experiment.resolution
    places = {f"class image {wish.name}": FileAddress(folder / wish.name) for wish in wishes}
    return tuple(
        Item(content_id(address.read()), name, kept.prompt, side, side, address=address)
        for name, address in places.items()
    )


def turn_file(folder: Path, first: int) -> Path:
    """The lock file of the worker that draws the images from `first` on; it lies beside their folder."""
    return folder.with_suffix(f".{first // IMAGES_PER_TURN % TURN_FILES}.lock")
