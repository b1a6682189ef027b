"""Images of a class, drawn by the base model once for all jobs and sweeps that keep this class.

Image i is drawn from seed i, so that more of them begin with those that are there.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext

from runner.data import Item
from runner.data.address import FileAddress
from runner.data.classes import SubjectClass
from runner.data.item import content_id
from runner.encodings import class_image_name, class_images_folder
from runner.exclusive import alone
from runner.job import Job
from runner.train.base import Base
from runner.train.drawing import Sampling, Wish, draw, write_pictures
from runner.train.inputs.text import Conditioner

log = logging.getLogger(__name__)

IMAGES_PER_LOOK = 32
"""Written at once, so that little is lost when the process is killed."""


def draw_class_images(job: Job, kept: SubjectClass, base: Base, conditioner: Conditioner) -> tuple[Item, ...]:
    """The images of a class that a job lacks, captioned with the class prompt.

    Args:
        conditioner: gives the embeddings of the class prompt and of the empty one.
    """
    folder = class_images_folder(job.experiment, kept.prompt, model=job.identity["model"])
    sampling = Sampling.of_class(job.experiment)
    wishes = [Wish(class_image_name(index), kept.prompt, index) for index in range(kept.to_draw)]
    place = base.place
    beside = place.beside(folder)
    turn = alone(folder.with_suffix(".lock"), doing=f"drawing images of the class {kept.prompt!r}")
    # One process waits for those of other packs, and the others for it.
    with turn if place.rank == beside[0] else nullcontext():
        place.wait()
        missing = [wish for wish in wishes if not (folder / wish.name).is_file()]
        place.wait()  # all must have looked before the first one writes, or they would share the work differently
        mine = [missing[index] for index in place.share(len(missing), beside)]
        if place.is_main:
            there, most = len(wishes) - len(missing), len(wishes)
            log.info("%d images of the class %r: %d are there, %d to draw", most, kept.prompt, there, len(missing))

        def work() -> None:
            for start in range(0, len(mine), IMAGES_PER_LOOK):
                place.heed()
                part = mine[start : start + IMAGES_PER_LOOK]
                # Where adapters of other jobs are attached, no row belongs to any of them.
                write_pictures(draw(part, sampling, base, conditioner, lambda _rows: nullcontext()), folder)

        place.together(work, what="draw images of the class")
    side = job.experiment.resolution
    places = {f"class image {wish.name}": FileAddress(folder / wish.name) for wish in wishes}
    return tuple(
        Item(content_id(address.read()), name, kept.prompt, side, side, address=address)
        for name, address in places.items()
    )
