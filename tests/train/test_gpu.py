"""A step on a GPU, as far as that is visible without one: nothing mixes devices, and the host never waits."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from tests import forked_command  # it knows what the process that others are forked from has loaded
from tests.train.fake_gpu import step_on_a_gpu

assert forked_command

TEXT: dict[str, Any] = {"rank": 2, "text_encoder": True}
PACKS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "text encoders": (
        "sdxl_folder",
        [
            {"precision": "bf16", "lora": TEXT, "loss": {"snr_gamma": 5.0}, "dataset": {"caption_dropout": 0.5}},
            {"precision": "bf16", "lora": TEXT | {"rank": 4, "ema": 0.9}, "batch_size": 3, "accumulation": 2},
        ],
    ),
    "a prior": (
        "flux_folder",
        [
            {"precision": "fp16", "method": {"name": "dreambooth", "prior": "base", "class_prompt": "a thing"}},
            {"precision": "fp16", "loss": {"name": "huber"}},
        ],
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "text encoders" else name for name in PACKS]
)
def test_a_step_is_on_the_gpu_alone_and_waits_for_nothing(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, settings = PACKS[name]
    said = tmp_path / "said"
    process = multiprocessing.get_context("forkserver").Process(
        target=step_on_a_gpu, args=(tmp_path / "bench", request.getfixturevalue(folder), settings, said)
    )
    process.start()
    process.join()
    assert said.read_text() == ""
