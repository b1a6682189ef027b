"""Losses, noise and timesteps other than the plain ones: what they compute, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from pydantic import ValidationError

from runner.check import Checker
from runner.errors import SettingsError
from runner.families.noise import NoiseSchedule
from runner.families.prediction import Prediction
from runner.schema import Experiment, LossSettings, ModelSettings
from runner.studio import Studio
from runner.train.drawing import Sampling, Wish
from runner.train.inputs.noising import Noising
from runner.train.loss import training_loss
from runner.train.randomness import generator
from tests.train.bench import CPU, Bench, write_images
from tests.train.test_samples import samples_of

TIMESTEPS = torch.tensor([0, 300, 999])


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    scaled = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return NoiseSchedule(scaled, Prediction("epsilon", zero_terminal_snr=False))


@pytest.mark.parametrize("kind", ["exponential", "snr", "constant"])
def test_the_huber_error_is_squared_for_small_deviations_and_absolute_for_large_ones(
    schedule: NoiseSchedule, kind: Any
) -> None:
    settings = LossSettings(name="huber", huber_c=0.1, huber_schedule=kind)
    small, large = torch.full((3, 1, 2, 2), 1e-3), torch.full((3, 1, 2, 2), 1e3)
    assert training_loss(small, TIMESTEPS, settings, schedule).tolist() == pytest.approx([1e-6] * 3, rel=2e-2)
    slope = training_loss(large, TIMESTEPS, settings, schedule) / 1e3 / 2
    sigma = math.sqrt(1 / float(schedule.snr(torch.tensor([300]))))
    middle = {"exponential": 0.1**0.3, "snr": 0.9 / (1 + sigma) ** 2 + 0.1, "constant": 0.1}[kind]
    first = {"exponential": 1.0, "snr": 0.9 / (1 + 1175.44**-0.5) ** 2 + 0.1, "constant": 0.1}[kind]
    last = {"exponential": 0.1**0.999, "snr": 0.9 / (1 + 0.00468**-0.5) ** 2 + 0.1, "constant": 0.1}[kind]
    assert slope.tolist() == pytest.approx([first, middle, last], rel=2e-3)


def test_the_huber_error_has_a_slope_everywhere(schedule: NoiseSchedule) -> None:
    off = torch.tensor([0.0, 1e-8, -3.0]).view(3, 1, 1, 1).requires_grad_()
    training_loss(off, TIMESTEPS, LossSettings(name="huber"), schedule).sum().backward()
    assert off.grad is not None and torch.isfinite(off.grad).all()


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [
        ({}, [1.0, 1.0, 1.0]),
        ({"snr_gamma": 5.0}, [5 / 1175.44, 5 / 8.454, 1.0]),
        ({"debiased": True}, [1000**-0.5, 8.454**-0.5, 0.00468**-0.5]),
    ],
)
def test_an_error_counts_as_much_as_its_timestep_does(
    schedule: NoiseSchedule, weighting: Any, weights: list[float]
) -> None:
    off, timesteps = torch.full((3, 1, 2, 2), 2.0), torch.tensor([0, 100, 999])
    losses = training_loss(off, timesteps, LossSettings(**weighting), schedule)
    assert losses.tolist() == pytest.approx([4 * weight for weight in weights], rel=2e-3)


def test_an_offset_is_one_number_for_each_channel(schedule: NoiseSchedule) -> None:
    plain, offset = (
        Noising(Experiment(loss=LossSettings(noise_offset=strength)), schedule).noise(
            generator(0, "test"), 7, (64, 4, 4)
        )
        for strength in (0.0, 0.1)
    )
    added = offset - plain
    assert torch.allclose(added, added[:, :1, :1].expand_as(added), atol=1e-6)
    assert float(added[:, 0, 0].std()) == pytest.approx(0.1, rel=0.3)


def test_coarse_noise_is_as_strong_as_plain_noise_and_smoother(schedule: NoiseSchedule) -> None:
    plain, coarse = (
        Noising(Experiment(loss=LossSettings(**levels)), schedule).noise(generator(0, "test"), 7, (4, 32, 32))
        for levels in ({}, {"multires_levels": 6, "multires_discount": 0.8})
    )
    assert float(coarse.std()) == pytest.approx(1.0, abs=1e-5)

    def likeness(noise: torch.Tensor) -> float:
        """Correlation of each number with its neighbour."""
        return float((noise[..., 1:] * noise[..., :-1]).mean())

    assert abs(likeness(plain)) < 0.05
    assert likeness(coarse) > 0.15


def test_one_level_is_coarser_than_the_latent_by_less_than_four(schedule: NoiseSchedule) -> None:
    noising = Noising(Experiment(loss=LossSettings(multires_levels=1, multires_discount=0.99)), schedule)
    drawn = torch.stack([noising.noise(generator(0, "test", sample), sample, (4, 32, 32)) for sample in range(200)])
    # Enlarged linearly, a number reaches as far as its neighbours: at most 4 pixels to either side.
    likeness = {apart: float((drawn[..., apart:] * drawn[..., :-apart]).mean()) for apart in (1, 8)}
    assert likeness[1] > 0.2
    assert abs(likeness[8]) < 0.01


def test_every_coarser_level_counts_less_than_the_one_before(schedule: NoiseSchedule) -> None:
    """Otherwise the coarsest, almost one number per channel, would make up half of the noise instead of a tenth."""
    noising = Noising(Experiment(loss=LossSettings(multires_levels=6, multires_discount=0.5)), schedule)
    found = noising.noise(generator(0, "test"), 7, (64, 64, 64))
    assert 0.05 < float(found.mean(dim=(1, 2)).std()) < 0.2


def test_nothing_is_coarser_than_one_number_for_a_channel(schedule: NoiseSchedule) -> None:
    one, many = (
        Noising(Experiment(loss=LossSettings(multires_levels=levels)), schedule).noise(
            generator(0, "test"), 7, (4, 2, 2)
        )
        for levels in (1, 10)
    )
    assert torch.equal(one, many)


def test_what_is_perturbed_is_what_the_model_sees_and_not_what_it_predicts(bench: Bench, sdxl_folder: Path) -> None:
    plain = samples_of(bench, sdxl_folder).batch(0, range(2))
    perturbed = samples_of(bench, sdxl_folder, loss={"input_perturbation": 0.1}).batch(0, range(2))
    assert torch.equal(plain.noise, perturbed.noise) and torch.equal(plain.latents, perturbed.latents)
    assert torch.equal(plain.seen_noise, plain.noise)
    first, second = perturbed.seen_noise - plain.noise
    assert float(first.std()) == pytest.approx(0.1, rel=0.2) and float(second.std()) == pytest.approx(0.1, rel=0.2)
    assert not torch.allclose(first, second, atol=1e-4), "each sample in its own way"


def test_every_sample_is_perturbed_in_its_own_way(schedule: NoiseSchedule) -> None:
    noising = Noising(Experiment(loss=LossSettings(input_perturbation=0.1)), schedule)
    first, again, other = (noising.perturbation(sample, (4, 8, 8)) for sample in (7, 7, 8))
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_options_of_the_noise_do_not_shift_each_other(bench: Bench, sdxl_folder: Path) -> None:
    offset = samples_of(bench, sdxl_folder, loss={"noise_offset": 0.1}).batch(0, range(2))
    both = samples_of(bench, sdxl_folder, loss={"noise_offset": 0.1, "multires_levels": 4}).batch(0, range(2))
    plain = samples_of(bench, sdxl_folder).batch(0, range(2))
    coarse = samples_of(bench, sdxl_folder, loss={"multires_levels": 4}).batch(0, range(2))
    assert torch.equal(both.timesteps, plain.timesteps) and torch.equal(both.latents, plain.latents)
    assert torch.allclose(both.noise - coarse.noise, offset.noise - plain.noise, atol=1e-6)


def drawn(schedule: NoiseSchedule, **settings: Any) -> np.ndarray:
    noising = Noising(Experiment(loss=LossSettings(**settings)), schedule)
    return np.array([noising.timestep(uniform, (8, 8)) for uniform in np.linspace(0, 1, 100_000, endpoint=False)])


def test_biased_timesteps_are_drawn_as_many_times_as_often(schedule: NoiseSchedule) -> None:
    later = drawn(schedule, timestep_bias="later", timestep_bias_multiplier=3.0, timestep_bias_portion=0.2)
    counts = np.bincount(later, minlength=1000)
    assert counts[:800].mean() * 3 == pytest.approx(counts[800:].mean(), rel=1e-2)
    earlier = np.bincount(drawn(schedule, timestep_bias="earlier", timestep_bias_portion=0.2), minlength=1000)
    assert earlier[:200].mean() == pytest.approx(2 * earlier[200:].mean(), rel=1e-2)
    never = drawn(schedule, timestep_bias="range", timestep_bias_range=(500, 1000), timestep_bias_multiplier=0)
    assert never.min() == 0 and never.max() == 499


def test_the_largest_draw_is_a_timestep_whatever_rounding_makes_of_the_shares(schedule: NoiseSchedule) -> None:
    for multiplier in (0.7, 1.1, 3.3):
        settings = LossSettings(timestep_bias="earlier", timestep_bias_multiplier=multiplier, timestep_bias_portion=0.3)
        assert Noising(Experiment(loss=settings), schedule).timestep(1 - 2**-53, (8, 8)) == 999


@pytest.mark.parametrize(("bias", "chosen", "next_to_it"), [("later", 999, 998), ("earlier", 0, 1)])
def test_the_smallest_portion_is_one_timestep_and_not_all(
    schedule: NoiseSchedule, bias: str, chosen: int, next_to_it: int
) -> None:
    counts = np.bincount(drawn(schedule, timestep_bias=bias, timestep_bias_portion=1e-6, timestep_bias_multiplier=50))
    assert counts[chosen] == pytest.approx(50 * counts[500], rel=0.05)
    assert counts[next_to_it] == pytest.approx(counts[500], rel=0.05)


@pytest.mark.parametrize(("bias", "other"), [("later", 0), ("earlier", 999)])
def test_the_largest_portion_is_all_timesteps_but_one(schedule: NoiseSchedule, bias: str, other: int) -> None:
    """If none of the biased timesteps is ever drawn, some other must be left."""
    never = drawn(schedule, timestep_bias=bias, timestep_bias_portion=0.9999, timestep_bias_multiplier=0)
    assert set(never) == {other}
    often = np.bincount(drawn(schedule, timestep_bias=bias, timestep_bias_portion=0.9999, timestep_bias_multiplier=5))
    assert often[500] == pytest.approx(5 * often[other], rel=0.1)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ({"snr_gamma": 5, "debiased": True}, "choose one"),
        ({"huber_c": 0.2}, "huber_c = 0.2: has no effect without loss.name=huber"),
        ({"multires_discount": 0.5}, "multires_levels"),
        ({"timestep_bias_portion": 0.5, "timestep_bias": "range", "timestep_bias_range": (0, 9)}, "earlier or later"),
        ({"timestep_bias": "range"}, "timestep_bias_range = null"),
        ({"timestep_bias": "range", "timestep_bias_range": (9, 9)}, "holds no timestep"),
        ({"timestep_bias": "range", "timestep_bias_range": (0, 1000)}, "holds all timesteps"),
        ({"timestep_bias": "range", "timestep_bias_range": (0, 1001)}, "less than or equal to 1000"),
        ({"name": "l1"}, "'mse' or 'huber'"),
    ],
)
def test_what_cannot_take_effect_is_refused(loss: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        LossSettings.model_validate(loss)
    assert said in str(raised.value)


def test_a_schedule_that_ends_in_noise_needs_velocity_and_a_sampler_that_knows_it(
    sd15_folder: Path, sd21_folder: Path
) -> None:
    from runner.families.prediction import prediction_faults

    def faults(folder: Path, **settings: Any) -> list[str]:
        model = {"family": "sd", "path": str(folder), "zero_terminal_snr": True}
        return prediction_faults(Experiment.model_validate({"model": model, **settings}))

    assert "model.prediction_type = 'epsilon'" in faults(sd15_folder)[0]
    assert faults(sd21_folder, scheduler={"name": "euler"}) == []
    assert faults(sd21_folder) == []  # DDIM is its own sampler


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "euler_ancestral", "dpmpp", "unipc"])
def test_samples_are_drawn_where_the_last_timestep_is_noise_alone(
    bench: Bench, sd21_folder: Path, sampler: str
) -> None:
    base = bench.base(bench.job(sd21_folder, model={"zero_terminal_snr": True}))
    scheduler = base.sampler(sampler)
    scheduler.set_timesteps(5)
    assert int(scheduler.timesteps[0]) == 999
    assert scheduler.config.rescale_betas_zero_snr


def test_training_and_drawing_with_zero_terminal_snr(bench: Bench, sd21_folder: Path) -> None:
    job = bench.job(
        sd21_folder,
        model={"zero_terminal_snr": True},
        scheduler={"name": "ddim"},
        validation={"prompts": ["a red circle"], "inference_steps": 2, "guidance_rescale": 0.7},
        loss={"snr_gamma": 5.0},
        steps=1,
    )
    assert bench.train(job)
    assert list(job.paths.samples_at(1).glob("*.png"))


NOISE_ALONE = {"prediction_type": "v_prediction", "zero_terminal_snr": True}
DRAWS: dict[str, dict[str, Any]] = {
    "samples": {},
    "images of a class": {
        "validation": {"prompts": []},
        "method": {"name": "dreambooth", "class_prompt": "a cat", "num_class_images": 1},
    },
    "generate": {"task": {"name": "generate"}, "prompts": "a cat"},
    "evaluate": {"task": {"name": "evaluate"}, "adapter": "trained"},
}


@pytest.mark.parametrize("draws", list(DRAWS))
def test_nothing_is_drawn_from_noise_alone_by_a_sampler_that_expects_a_signal(
    bench: Bench, sd15_folder: Path, tmp_path: Path, draws: str
) -> None:
    model = {"family": "sd", "path": str(sd15_folder), **NOISE_ALONE}  # whose own sampler is PNDM
    raw = {"name": "x", "model": model, **DRAWS[draws]}
    if "task" not in raw:
        raw["dataset"] = {"path": str(bench.images)}
    elif raw["task"]["name"] == "evaluate":
        job = bench.job(sd15_folder, model=NOISE_ALONE, steps=1)
        assert bench.train(job)
        raw["adapter"] = str(job.folder)
    with pytest.raises(SettingsError) as refused:
        Checker(tmp_path).job(raw)
    said = "scheduler = 'model': PNDMScheduler cannot start from noise alone (model.zero_terminal_snr); choose"
    assert [line[: len(said)] for line in str(refused.value).splitlines()] == [said]
    assert Checker(tmp_path).job({**raw, "scheduler": {"name": "ddim"}})


def test_a_class_whose_images_are_there_is_not_drawn(bench: Bench, sd15_folder: Path, tmp_path: Path) -> None:
    method = {"name": "dreambooth", "class_prompt": "a cat", "class_data_dir": str(write_images(tmp_path / "cats"))}
    model = {"family": "sd", "path": str(sd15_folder), **NOISE_ALONE}
    raw = {"name": "x", "model": model, "validation": {"prompts": []}, "dataset": {"path": str(bench.images)}}
    assert Checker(tmp_path).job({**raw, "method": {**method, "num_class_images": 7}})


def test_who_asks_later_is_told_that_the_sampler_expects_a_signal(sd15_folder: Path) -> None:
    studio = Studio(ModelSettings(family="sd", path=str(sd15_folder), **NOISE_ALONE), "fp32", CPU)
    wish = [Wish("a", "a cat", 0)]
    with pytest.raises(SettingsError, match="'model': PNDMScheduler cannot start from noise alone"):
        studio.draw(wish, Sampling(64, "model", 1, 1.0))
    assert studio.draw(wish, Sampling(64, "ddim", 1, 1.0))
