"""Draws what is not there yet, measures all of it, and says the figures for a tuner's regular expression to find."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.measures.interval import Figure
from runner.paths import JobPaths
from runner.schema.tasks.evaluate import Evaluate
from runner.tasks.adapters import find_adapters
from runner.tasks.evaluate.check import real_images
from runner.tasks.evaluate.drawn import Series, draw_missing, neutral_series, subject_series, write_about
from runner.tasks.evaluate.measuring import Pictures, as_drawn
from runner.tasks.studios import studio_of
from runner.train.drawing import Picture, Sampling, Wish
from runner.train.place import Place

log = logging.getLogger(__name__)


def work(settings: Evaluate, paths: JobPaths, place: Place, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """As `runner.tasks` says; images that are there are not drawn again.

    Returns:
        `figures`: each with value, low, high, n; and `of`: the id of the training whose result was measured, where it
        is one adapter of a job.

    Raises:
        Interrupted: a signal asked to stop; what was drawn stays.
    """
    found = find_adapters(settings)
    weighted = [(each.place, weight) for each, (_, weight) in zip(found, settings.weighted, strict=True)]
    sampling = sampling_of(settings)

    def draw(wishes: Sequence[Wish], adapted: bool) -> list[Picture]:
        studio = studio_of(settings.model, settings.precision, place)
        return studio.draw(wishes, sampling, weighted if adapted else ())

    subject = subject_series(settings, paths) if settings.draws_subject else None
    drift = "base_drift" in settings.measured
    neutral = [neutral_series(settings, paths, adapted=adapted) for adapted in (False, True)] if drift else []
    series = [each for each in (subject, *neutral) if each is not None]
    write_about(settings, subject, paths)
    drawn = draw_missing(series, draw, stop=stop)
    figures = measured(settings, place, subject, neutral)
    say(figures)
    of = found[0].job.id if len(found) == 1 and found[0].job is not None else None
    return {
        "figures": {name: figure.as_data() for name, figure in figures.items()},
        "of": of,
        "images": sum(len(each.wishes) for each in series),
        "drawn": drawn,
    }


def measured(settings: Evaluate, place: Place, subject: Series | None, neutral: Sequence[Series]) -> dict[str, Figure]:
    """The figures of images that are drawn."""
    data = real_images(settings)
    return Pictures(
        settings,
        place.device,
        drawn=subject.pictures() if subject else (),
        texts=subject.texts if subject else (),
        real=[as_drawn(item.open(), settings.resolution) for item in data.items] if data else (),
        neutral=(neutral[0].pictures(), neutral[1].pictures()) if neutral else ((), ()),
    ).measure()


def say(figures: Mapping[str, Figure]) -> None:
    """One line for each on this process's output: `fid_score=12.34`."""
    for name, figure in figures.items():
        if figure.low is not None and figure.high is not None:
            log.info("%s %.4g, from %.4g to %.4g, of %d images", name, figure.value, figure.low, figure.high, figure.n)
        sys.stdout.write(f"{name}={figure.value!r}\n")
    sys.stdout.flush()


def sampling_of(settings: Evaluate) -> Sampling:
    """How the images are drawn."""
    return Sampling(
        settings.resolution,
        settings.scheduler.name,
        settings.inference_steps,
        settings.guidance_scale,
        settings.guidance_rescale,
        settings.negative_prompt,
        settings.scheduler.eta,
    )
