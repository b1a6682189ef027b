"""The record of a job's time: every second of a process is charged to a job, and what each would have cost alone."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from runner.schema.inputs import ModelSettings
from runner.train import clock
from runner.train.clock import PHASES, Clock
from runner.train.cost import Alone, Cost, alone_s
from runner.train.drawing import Sampling
from runner.train.pack import Pack
from tests.train.bench import CPU

if TYPE_CHECKING:
    from runner.train.base import Base
    from runner.train.job_run import JobRun


class Trained:
    """A job that time is charged to."""

    def __init__(self) -> None:
        self.timings = dict.fromkeys(PHASES, 0.0)
        self.trained_s = 0.0
        self.cost = Cost()

    def spent(self) -> dict[str, float]:
        return {phase: seconds for phase, seconds in self.timings.items() if seconds}


def test_every_second_is_charged_once_to_whom_it_was_spent_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now))
    small, large, coming = Trained(), Trained(), Trained()
    charged = Clock()
    charged.training = {small: 1, large: 3}
    now += 8
    charged.charge_training()
    now += 4
    with charged.charging("cache", [coming]):
        now += 3
    with suppress(OSError), charged.charging("artifacts", [small, large]):
        now += 2
        raise OSError("the disk is full")
    now += 4
    charged.charge_training()
    assert small.spent() == {"train": 2 + 1 + 1, "artifacts": 1}
    assert large.spent() == {"train": 6 + 3 + 3, "artifacts": 1}
    assert coming.spent() == {"cache": 3}
    assert (small.trained_s, large.trained_s, coming.trained_s) == (16, 16, 0), "both were trained all the time"
    assert charged.trained_s == {4: 16}


def test_drawing_is_timed_by_the_pass_and_what_is_broken_off_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now))
    timed = Clock()
    assert timed.forward_s == 0
    for passes, seconds in ((4, 2.0), (12, 2.0)):
        with timed.drawing(passes):
            now += seconds
    with suppress(OSError), timed.drawing(100):
        now += 9
        raise OSError("the disk is full")
    assert timed.forward_s == 4 / 16


@pytest.mark.parametrize(("family", "scale", "passes"), [("sdxl", 5.0, 40), ("sdxl", 1.0, 20), ("flux", 5.0, 20)])
def test_guidance_takes_two_passes_a_step_unless_the_model_is_told_it(family: str, scale: float, passes: int) -> None:
    model = ModelSettings.model_validate({"path": "somewhere", "family": family})
    assert Sampling(64, "model", 20, scale).passes(model) == passes


def test_all_jobs_wait_and_pay_alike_while_those_that_join_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now))

    def time_it(*_: object) -> None:
        nonlocal now
        now += 3

    monkeypatch.setattr(Pack, "_measured_alone", time_it)
    monkeypatch.setattr(Pack, "_assemble", lambda *_: None)
    pack, runs = Pack(CPU), cast("list[JobRun]", [Trained() for _ in range(4)])
    pack.base = cast("Base", object())
    first, second, third, last = runs
    pack.join([first])
    pack.join([second, third])
    pack.leave([second, third])
    pack.join([last])
    assert [run.timings["load"] for run in runs] == [3 + 3 + 3, 3, 3, 3]
    assert [run.cost.packed_with for run in runs] == [3, 3, 3, 2], "the most at any time"


@pytest.mark.parametrize(("step_s", "train_s"), [(None, 1000), (2.0, 7 * 2)])
def test_a_job_alone_would_begin_load_train_and_do_all_that_was_its_own(step_s: float | None, train_s: float) -> None:
    timings = {"load": 9e9, "cache": 10, "train": 1000, "validate": 20, "artifacts": 40}
    alone = Alone(startup_s=100, load_s=200, step_s=step_s)
    assert alone_s(alone, timings, steps=7) == 100 + 200 + 10 + 20 + 40 + train_s
