"""Draws the missing images, measures all of them, and prints figures that a tuner's regular expression can find."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from runner.data import Item
from runner.jobs.job import update_manifest
from runner.measures.interval import Figure
from runner.paths import JobPaths
from runner.schema.experiment import OF_EVALUATION
from runner.schema.method import NewTokens
from runner.schema.tasks.evaluate import Evaluate
from runner.studio import Studio
from runner.system.amounts import count
from runner.tasks.adapters import find_adapters
from runner.tasks.evaluate.check import real_images
from runner.tasks.evaluate.drawn import Opened, Series, draw_missing, neutral_series, subject_series, write_about
from runner.tasks.evaluate.measuring import Pictures, as_drawn
from runner.tasks.evaluate.of_training import FOLDER, evaluation_of
from runner.tasks.studios import studio_of
from runner.train.drawing import Picture, Sampling, Wish
from runner.train.job_run import JobRun
from runner.train.place import Place

log = logging.getLogger(__name__)

KEPT_BYTES = 2**30
"""Limit for kept pictures of the base alone, about 700 at 1024 px: a sweep over sampling needs others for each job."""


def work(settings: Evaluate, paths: JobPaths, place: Place, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """See `runner.tasks`; existing images are not drawn again.

    Returns:
        `figures`: each with value, low, high, n; `of`: the id of the training whose result was measured, if the only
        adapter comes from a job; and `images` and `drawn`: how many there are, and how many were drawn now.

    Raises:
        Interrupted: a signal asked to stop; what was drawn stays.
    """
    found = find_adapters(settings)
    weighted = [(each.place, weight) for each, (_, weight) in zip(found, settings.weighted, strict=True)]

    def studio() -> Studio:
        return studio_of(settings.model, settings.precision, place)

    figures, count, drawn = evaluate(settings, paths, place, weighted, studio, stop=stop)
    of = found[0].job.id if len(found) == 1 and found[0].job is not None else None
    as_data = {name: figure.as_data() for name, figure in figures.items()}
    return {"figures": as_data, "of": of, "images": count, "drawn": drawn}


def evaluate(
    settings: Evaluate,
    paths: JobPaths,
    place: Place,
    adapters: Sequence[tuple[Path, float]],
    studio: Callable[[], Studio],
    *,
    of_base: dict[Any, Any] | None = None,
    stop: Callable[[], bool],
) -> tuple[dict[str, Figure], int, int]:
    """(figures, how many images there are, how many of them were drawn now).

    Args:
        adapters: where to load each from, and its weight.
        studio: called only if something has to be drawn.
        of_base: where images of the base alone are kept for other jobs; by default, with the studio.
    """
    sampling = Sampling.of(settings, settings)

    def draw(wishes: Sequence[Wish], adapted: bool) -> list[Picture]:
        return (
            studio().draw(wishes, sampling, adapters) if adapted else drawn_by_base(studio, wishes, sampling, of_base)
        )

    subject = subject_series(settings, paths) if settings.draws_subject else None
    drift = "base_drift" in settings.measured
    neutral = [neutral_series(settings, paths, adapted=adapted) for adapted in (False, True)] if drift else []
    series = [each for each in (subject, *neutral) if each is not None]
    write_about(settings, subject, paths)
    drawn = draw_missing(series, draw, stop=stop)
    figures = measured(settings, place, subject, neutral)
    say(figures)
    return figures, sum(len(each.wishes) for each in series), drawn


def drawn_by_base(
    studio: Callable[[], Studio], wishes: Sequence[Wish], sampling: Sampling, kept: dict[Any, Any] | None
) -> list[Picture]:
    """What the base alone draws, cached for the jobs of a worker that ask for the same images soon after each other."""
    kept = studio().base.drawn if kept is None else kept
    missing = [wish for wish in wishes if (sampling, wish) not in kept]
    drawn = dict(zip(missing, studio().draw(missing, sampling), strict=True)) if missing else {}
    # Cached pictures move to the end: the oldest are dropped first.
    pictures = [kept.pop((sampling, wish)) if wish not in drawn else drawn[wish] for wish in wishes]
    kept.update(((sampling, wish), each) for wish, each in zip(wishes, pictures, strict=True))
    spent = sum(len(each.png) for each in kept.values())
    while spent > KEPT_BYTES:
        spent -= len(kept.pop(next(iter(kept))).png)
    return pictures


def evaluate_training(run: JobRun, *, stop: Callable[[], bool]) -> None:
    """Measure a training's result, from its own file, before it is completed, so that its record has the figures.

    The base is loaded once more for this, without the adapters that other jobs of the pack are training. Of several
    processes only the main one measures, and the others wait.

    Raises:
        Interrupted: a signal asked to stop; what was drawn stays.
        SettingsError: a network cannot be loaded.
    """
    settings = evaluation_of(run.settings, run.paths.weights)
    if settings is None:
        return
    held: list[Studio] = []
    place = run.base.place.alone()

    def studio() -> Studio:
        if not held:
            held.append(Studio(settings.model, settings.precision, place))
        return held[0]

    adapter = run.job.folder if isinstance(run.settings.method, NewTokens) else run.paths.weights
    paths = JobPaths(run.job.folder / FOLDER)
    of_base = run.base.drawn  # all jobs of the pack are on one base
    figures, _, _ = evaluate(settings, paths, place, [(adapter, 1.0)], studio, of_base=of_base, stop=stop)
    held.clear()
    run.base.collect()
    update_manifest(run.job.folder, figures={name: figure.as_data() for name, figure in figures.items()})
    run.record({f"{OF_EVALUATION}{name}": figure.value for name, figure in figures.items()})


def measured(settings: Evaluate, place: Place, subject: Series | None, neutral: Sequence[Series]) -> dict[str, Figure]:
    """The figures of images that have been drawn."""
    data = real_images(settings)
    return Pictures(
        settings,
        place.device,
        drawn=subject.pictures() if subject else (),
        texts=subject.texts if subject else (),
        real=Opened([partial(_real, item, settings.resolution) for item in data.items] if data else ()),
        neutral=(neutral[0].pictures(), neutral[1].pictures()) if neutral else ((), ()),
    ).measure()


def _real(item: Item, side_px: int) -> Image.Image:
    return as_drawn(item.open(), side_px)


def say(figures: Mapping[str, Figure]) -> None:
    """Print one line per figure to stdout: `fid_score=12.34`."""
    for name, figure in figures.items():
        if figure.low is not None and figure.high is not None:
            images = count(figure.n, "image")
            log.info("%s %.4g, from %.4g to %.4g, of %s", name, figure.value, figure.low, figure.high, images)
        sys.stdout.write(f"{name}={figure.value!r}\n")
    sys.stdout.flush()
