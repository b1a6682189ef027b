"""Searches: which settings to try next, based on the results so far. Knows neither Hydra nor how jobs run."""

from __future__ import annotations

from runner.search.search import OptunaSearch
from runner.search.space import Choices, Interval, Parameter

__all__ = ["Choices", "Interval", "OptunaSearch", "Parameter"]
