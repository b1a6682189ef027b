"""Flow matching: noise levels as in the papers and diffusers, and settings that fit no other process."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling
from pydantic import ValidationError

from runner.errors import ModelError
from runner.families.flow import FlowMatching, load_flow_matching, shifted, spread
from runner.schema import Experiment, FlowSettings, ModelSettings

SIDE_1024 = (128, 128)
SD3 = {"shift": 3.0}
FLUX = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
EVENLY = FlowSettings(timesteps="uniform")
DRAWS = [index / 1000 for index in range(1000)]


def test_levels_are_shifted_as_the_scheduler_of_sd3_has_them() -> None:
    process, table = FlowMatching(SD3), FlowMatchEulerDiscreteScheduler(**SD3).sigmas
    # The table starts at pure noise and falls: its entry 500 is the level 0.5, shifted.
    assert float(table[500]) == pytest.approx(0.75)
    assert process.timestep(0.5, EVENLY, SIDE_1024) == pytest.approx(750)
    ours = [process.timestep(1 - index / 1000, EVENLY, SIDE_1024) / 1000 for index in range(1000)]
    assert ours == pytest.approx(table.tolist(), abs=1e-6)


@pytest.mark.parametrize(("side", "mu"), [(32, 0.5), (128, 1.15), (64, 0.5 + 0.65 * 768 / 3840)])
def test_flux_shifts_by_the_number_of_tokens(side: int, mu: float) -> None:
    process, scheduler = FlowMatching(FLUX), FlowMatchEulerDiscreteScheduler(**FLUX)
    assert process.shift((side // 2) ** 2) == pytest.approx(math.exp(mu))
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1], mu=mu)
    for shape in ((side, side), (side // 2, side * 2), (side * 2, side // 2)):
        ours = [process.timestep(level, EVENLY, shape) / 1000 for level in (0.9, 0.5, 0.1)]
        assert ours == pytest.approx(scheduler.sigmas[:3].tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("side", [16, 64, 200])
def test_a_shift_between_other_image_sizes_is_that_of_diffusers(side: int, kind: Any) -> None:
    sizes = {"base_image_seq_len": 100, "max_image_seq_len": 5000, "base_shift": 0.7, "max_shift": 2.5}
    config = {"use_dynamic_shifting": True, "time_shift_type": kind, "num_train_timesteps": 500, **sizes}
    process, scheduler = FlowMatching(config), FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1], mu=calculate_shift((side // 2) ** 2, *sizes.values()))
    ours = [process.timestep(level, EVENLY, (side, side)) for level in (0.9, 0.5, 0.1)]
    assert ours == pytest.approx(scheduler.timesteps.tolist(), rel=1e-5)


def test_a_shift_of_the_settings_takes_the_place_of_the_models() -> None:
    process = FlowMatching(FLUX)
    assert process.timestep(0.3, FlowSettings(timesteps="uniform", shift=1.0), SIDE_1024) == pytest.approx(300)
    assert shifted(0.5, 3.0) == 0.75


def test_the_logit_of_a_level_is_normal() -> None:
    settings = FlowSettings(logit_mean=0.5, logit_std=2.0)
    logits = [math.log(level / (1 - level)) for level in (spread(draw, settings) for draw in DRAWS[1:])]
    mean = sum(logits) / len(logits)
    deviation = math.sqrt(sum((logit - mean) ** 2 for logit in logits) / len(logits))
    assert (mean, deviation) == pytest.approx((0.5, 2.0), abs=0.02)
    assert spread(0.5, settings) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_levels_are_distributed_first_and_shifted_afterwards() -> None:
    """As in diffusers' scripts, which look the distributed level up in the scheduler's shifted table."""
    settings, table = FlowSettings(logit_mean=0.5, logit_std=2.0), FlowMatchEulerDiscreteScheduler(**SD3).sigmas
    levels = [index / 1000 for index in range(1, 1000)]
    draws = [NormalDist(0.5, 2.0).cdf(math.log(level / (1 - level))) for level in levels]
    ours = [FlowMatching(SD3).timestep(draw, settings, SIDE_1024) / 1000 for draw in draws]
    assert ours == pytest.approx(table.flip(0)[: len(levels)].tolist(), abs=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.29, -0.5])
def test_the_mode_scheme_is_that_of_the_paper(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    draws = torch.tensor(DRAWS, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws)
    theirs = compute_density_for_timestep_sampling("mode", len(draws), mode_scale=scale)
    ours = [spread(1 - draw, FlowSettings(timesteps="mode", mode_scale=scale)) for draw in DRAWS]
    assert ours == pytest.approx(theirs.tolist(), abs=1e-9)


@pytest.mark.parametrize("timesteps", ["uniform", "logit_normal", "mode"])
def test_a_larger_draw_is_a_noisier_sample(timesteps: Any) -> None:
    levels = [spread(draw, FlowSettings(timesteps=timesteps)) for draw in [*DRAWS, 1 - 2**-53]]
    assert all(0 <= low <= high <= 1 for low, high in pairwise(levels))


def test_samples_lie_on_the_line_and_its_direction_is_the_target() -> None:
    draw = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(3, 4, 2, 2, generator=draw) for _ in range(2))
    process, timesteps = FlowMatching(SD3), torch.tensor([0.0, 250.0, 1000.0])
    noisy = process.add_noise(image, noise, timesteps)
    assert torch.equal(noisy[0], image[0]) and torch.equal(noisy[2], noise[2])
    target = process.target(image, noise, timesteps)
    assert torch.allclose(noisy - timesteps.view(-1, 1, 1, 1) / 1000 * target, image, atol=1e-6)


def test_a_model_of_another_process_is_refused(sdxl_folder: Path, sd3_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.family = 'sd3'.*EulerDiscreteScheduler"):
        load_flow_matching(sdxl_folder, ModelSettings(family="sd3"))
    assert load_flow_matching(sd3_folder, ModelSettings(family="sd3")).shift(256) == 3.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"model": {"family": "sdxl"}, "flow": {"timesteps": "uniform"}},
            r"flow\.timesteps = 'uniform': has no effect",
        ),
        ({"model": {"family": "sd"}, "flow": {"shift": 3.0}}, r"flow\.shift = 3\.0: has no effect"),
        ({"loss": {"snr_gamma": 5.0}}, r"loss\.snr_gamma = 5\.0"),
        ({"loss": {"noise_offset": 0.1}}, r"loss\.noise_offset = 0\.1"),
        ({"scheduler": {"name": "ddim"}}, r"scheduler\.name = 'ddim'"),
        ({"model": {"family": "sd3", "prediction_type": "epsilon"}}, r"model\.prediction_type = 'epsilon'"),
        ({"resolution": 72}, r"resolution = 72: should be a multiple of 16"),
        ({"lora": {"targets": "linear_conv"}}, r"lora\.targets = 'linear_conv'"),
        ({"validation": {"negative_prompt": "ugly"}}, r"validation\.negative_prompt = 'ugly'"),
        ({"flow": {"mode_scale": 1.0}}, "mode_scale = 1.0: has no effect with flow.timesteps=logit_normal"),
        ({"flow": {"timesteps": "uniform", "logit_std": 0.5}}, "logit_std = 0.5: has no effect"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Experiment.model_validate({"model": {"family": "flux"}, **settings})


def test_all_that_does_not_fit_is_said_at_once() -> None:
    with pytest.raises(ValidationError) as refused:
        Experiment.model_validate(
            {"model": {"family": "sd3"}, "resolution": 72, "loss": {"snr_gamma": 5.0}, "scheduler": {"name": "ddim"}}
        )
    said = str(refused.value)
    assert all(key in said for key in ("resolution = 72", "loss.snr_gamma = 5.0", "scheduler.name = 'ddim'"))


def test_defaults_fit_every_family() -> None:
    for family in ("sd", "sdxl", "sd3", "flux"):
        Experiment.model_validate({"model": {"family": family}})
