"""The base model that tasks draw with, kept from one job of a worker to the next."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

from runner.schema import ModelSettings
from runner.tasks.studios import studio_of
from runner.train.drawing import Sampling, Wish
from tests.train.bench import CPU, Bench


def test_a_base_model_is_gone_before_the_next_is_there_with_what_was_drawn_with(bench: Bench) -> None:
    job = bench.job(Path("embedded"), model={"family": "sdxl"}, steps=1)
    assert bench.train(job)
    gc.disable()  # otherwise it might be collected by chance
    try:
        studio = studio_of(ModelSettings(), "fp32", CPU)
        studio.draw([Wish("a", "a house", 0)], Sampling(64, "model", 1, 1.0), [(job.folder, 1.0)])
        weights = [weakref.ref(each) for each in studio.base.denoiser.parameters()]
        del studio
        studio_of(ModelSettings(), "bf16", CPU)
        assert not any(each() is not None for each in weights)
    finally:
        gc.enable()
