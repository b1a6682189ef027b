"""Keeps the base model that tasks draw with loaded from one job of a worker to the next."""

from __future__ import annotations

import gc

from runner.schema import ModelSettings
from runner.schema.inputs import Precision
from runner.studio import Studio
from runner.train.place import Place

_LAST: dict[tuple[ModelSettings, Precision], Studio] = {}


def studio_of(model: ModelSettings, precision: Precision, place: Place) -> Studio:
    """A studio for a base model; the most recent one stays loaded."""
    key = model, precision
    if key not in _LAST:
        _LAST.clear()  # before another is loaded: two might not fit
        gc.collect()  # layers and the adapters that replace them refer to each other
        _LAST[key] = Studio(model, precision, place)
    return _LAST[key]
