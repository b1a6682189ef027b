"""The base model that tasks draw with, kept loaded from one job of a worker to the next."""

from __future__ import annotations

from functools import lru_cache

from runner.schema import ModelSettings
from runner.schema.inputs import Precision
from runner.studio import Studio
from runner.train.place import Place


@lru_cache(maxsize=1)
def studio_of(model: ModelSettings, precision: Precision, place: Place) -> Studio:
    """A studio over a base model; the one that was asked for last is still there."""
    return Studio(model, precision, place)
