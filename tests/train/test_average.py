"""The average of a job's weights equals diffusers' own, does not affect training, and is what is shown and saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import nn

from runner.train.adapters.average import Average
from tests.train.bench import Bench, difference, records, weights


@pytest.mark.parametrize("decay", [0.1, 0.6, 0.999])
def test_the_average_is_the_one_of_diffusers(decay: float) -> None:
    parameter = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    ours, theirs = Average(parameter.detach(), decay), EMAModel([parameter], decay=decay)
    for step in range(1, 40):
        with torch.no_grad():
            parameter += torch.randn(50, generator=torch.Generator().manual_seed(step))
        ours.update(parameter.detach(), step)
        theirs.step([parameter])
        torch.testing.assert_close(ours.weights, theirs.shadow_params[0])


def test_the_average_is_saved_and_validated_and_does_not_change_the_training(bench: Bench, sdxl_folder: Path) -> None:
    common = {"steps": 4, "checkpoint": {"every": 1, "keep": 9}, "validation": {"every": 2}}
    plain, averaged = (bench.job(sdxl_folder, **common, lora={"ema": decay}) for decay in (0.0, 0.9))
    assert bench.train(plain)
    assert bench.train(averaged)
    assert records(plain, "train/loss") == records(averaged, "train/loss")
    course = []
    for step in (1, 2, 3):
        raw, same = (load_file(job.paths.checkpoint_at(step) / "adapter.safetensors") for job in (plain, averaged))
        assert all(torch.equal(raw[key], same[key]) for key in raw), "checkpoints hold the weights themselves"
        course.append({key.replace("/", "."): tensor for key, tensor in raw.items()})
    course.append(weights(plain))
    expected = {key: tensor.clone() for key, tensor in course[0].items()}
    for step, state in enumerate(course[1:], start=2):
        for key, tensor in state.items():
            expected[key].lerp_(tensor, 1 - min(0.9, step / (9 + step)))
    assert difference(weights(averaged), expected) < 1e-6
    assert difference(weights(averaged), weights(plain)) > 1e-2
    losses = records(averaged, "validation/loss")
    assert losses[0] == records(plain, "validation/loss")[0]
    assert losses[4] != records(plain, "validation/loss")[4]


def test_a_job_without_it_keeps_its_id(bench: Bench, sdxl_folder: Path) -> None:
    assert bench.job(sdxl_folder).id == bench.job(sdxl_folder, lora={"ema": 0.0}).id
    assert bench.job(sdxl_folder).id != bench.job(sdxl_folder, lora={"ema": 0.9}).id
