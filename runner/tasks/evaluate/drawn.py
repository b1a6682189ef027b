"""The images that are measured: lists them, and draws the missing ones."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import overload

from PIL import Image

from runner.errors import Interrupted
from runner.paths import JobPaths
from runner.schema.tasks.evaluate import Evaluate
from runner.system.amounts import count
from runner.tasks.evaluate.prompts import NEUTRAL, prompts_of
from runner.train.drawing import Picture, Wish, wishes_of, write_pictures, write_prompts

log = logging.getLogger(__name__)

IMAGES_AT_ONCE = 8
"""Drawn between two checks whether to stop, and written before the next ones are drawn."""

Draw = Callable[[Sequence[Wish], bool], list[Picture]]
"""Draws with the adapters, or (False) with the base alone."""


class Opened(Sequence[Image.Image]):
    """Pictures that are opened on each access and not kept: all of them together may not fit into memory."""

    def __init__(self, opens: Sequence[Callable[[], Image.Image]]) -> None:
        self._opens = opens

    def __len__(self) -> int:
        return len(self._opens)

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...

    @overload
    def __getitem__(self, place: slice) -> list[Image.Image]: ...

    def __getitem__(self, place: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(place, slice):
            return [each() for each in self._opens[place]]
        return self._opens[place]()


@dataclasses.dataclass(frozen=True)
class Series:
    """Images of one kind: where they are, with or without adapters, and what CLIP compares each with."""

    folder: Path
    adapted: bool
    wishes: list[Wish]
    texts: list[str]

    def files(self) -> list[Path]:
        """Where they are, drawn or not."""
        return [self.folder / wish.name for wish in self.wishes]

    def pictures(self) -> Opened:
        """All of them, as they were drawn."""
        return Opened([partial(_opened, file) for file in self.files()])


def subject_series(settings: Evaluate, paths: JobPaths) -> Series:
    """The default prompts for a subject, or those that were given."""
    templates = prompts_of(settings)
    subject = settings.subject or ""
    drawn = [template.replace("{}", subject) for template in templates]
    compared = [template.replace("{}", settings.subject_class or subject) for template in templates]
    return _series(paths.samples_at(0), True, drawn, compared, settings.seeds)


def neutral_series(settings: Evaluate, paths: JobPaths, *, adapted: bool) -> Series:
    """The prompts that adapters should not change."""
    folder = paths.samples / ("neutral" if adapted else "neutral-base")
    return _series(folder, adapted, NEUTRAL, NEUTRAL, settings.seeds)


def draw_missing(series: Iterable[Series], draw: Draw, *, stop: Callable[[], bool]) -> int:
    """Draw the missing images; returns how many they were.

    Raises:
        Interrupted: `stop` asked for it; what was drawn stays.
    """
    left = [(each, wish) for each in series for wish in each.wishes if not (each.folder / wish.name).is_file()]
    for each, wishes in _parts(left):
        if stop():
            raise Interrupted("stopped between two images; those that are drawn stay")
        write_pictures(draw(wishes, each.adapted), each.folder)
        log.info("drawn: %s of %s", count(len(wishes), "image"), each.folder.name)
    return len(left)


def write_about(settings: Evaluate, subject: Series | None, paths: JobPaths) -> None:
    """Record next to the images what they were drawn from, as for the samples of a training."""
    prompts = [wish.prompt for wish in subject.wishes[:: len(settings.seeds)]] if subject else []
    write_prompts(paths, prompts, settings, settings, neutral=NEUTRAL)


def _series(folder: Path, adapted: bool, drawn: Sequence[str], compared: Sequence[str], seeds: Sequence[int]) -> Series:
    return Series(folder, adapted, wishes_of(drawn, seeds), [text for text in compared for _ in seeds])


def _parts(left: Sequence[tuple[Series, Wish]]) -> Iterator[tuple[Series, list[Wish]]]:
    """A few wishes of one series at a time."""
    for folder in dict.fromkeys(each.folder for each, _ in left):
        own = [(each, wish) for each, wish in left if each.folder == folder]
        for start in range(0, len(own), IMAGES_AT_ONCE):
            part = own[start : start + IMAGES_AT_ONCE]
            yield part[0][0], [wish for _, wish in part]


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
