"""The lines that a person reads while a pack trains say what is true at any size of model."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from runner.train import progress
from runner.train.progress import Progress


class Watch:
    """A clock that goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(
    ("before_s", "step_s", "images_per_s", "said"),
    [
        (600.0, 40.0, 0.025, ["step 1 of 101", "0.025 images/s", " 1 h 06 min left"]),
        (30.0, 12.0, 3.14159, ["3.14 images/s", " 20 min 00 s left"]),
    ],
)
def test_the_time_left_is_that_of_the_steps_alone(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    before_s: float,
    step_s: float,
    images_per_s: float,
    said: list[str],
) -> None:
    caplog.set_level(logging.INFO)
    watch = Watch(monkeypatch)
    run: Any = SimpleNamespace(
        job=SimpleNamespace(id="one"), settings=SimpleNamespace(steps=101), step=0, last_loss=0.1, images_per_s=0.0
    )
    shown = Progress(enabled=True)
    watch.now += before_s  # loading and encoding
    shown.begin()
    run.step, run.images_per_s = 1, images_per_s
    watch.now += step_s
    shown.update([run])
    for each in said:
        assert each in caplog.text
