"""The numbers of the forward process, and which models are accepted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from runner.errors import ModelError
from runner.families.loading import decode_latents, load_sampler, load_vae, scale_latents
from runner.families.noise import NoiseSchedule, load_noise_schedule
from runner.families.prediction import check_noise
from runner.schema import ModelSettings

TIMESTEPS = torch.tensor([0, 100, 400, 999])


def schedule_of(folder: Path, prediction: str | None = None, zero: bool | None = None) -> NoiseSchedule:
    settings = {"prediction_type": prediction, "zero_terminal_snr": zero}
    return load_noise_schedule(folder, ModelSettings.model_validate(settings))


def changed(folder: Path, target: Path, part: str, **values: object) -> Path:
    """A copy of a model with changed values in the configuration of one of its parts."""
    shutil.copytree(folder, target)
    (file,) = (target / part).glob("*config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return target


def test_the_signal_to_noise_ratio_is_that_of_stable_diffusion(sdxl_folder: Path) -> None:
    snr = schedule_of(sdxl_folder).snr(TIMESTEPS)
    assert snr.tolist() == pytest.approx([1175.44, 8.454, 0.7376, 0.00468], rel=1e-3)


@pytest.mark.parametrize(
    ("prediction", "weights"),
    [
        ("epsilon", [0.00425, 0.5914, 1.0, 1.0]),
        ("v_prediction", [0.00425, 0.5289, 0.4245, 0.00466]),
        ("sample", [5.0, 5.0, 0.7376, 0.00468]),
    ],
)
def test_min_snr_weights_fit_what_is_predicted(sdxl_folder: Path, prediction: str, weights: list[float]) -> None:
    schedule = schedule_of(sdxl_folder, prediction)
    assert schedule.min_snr_weight(TIMESTEPS, 5.0).tolist() == pytest.approx(weights, rel=2e-3)


def test_weights_mean_the_same_whatever_is_predicted(sdxl_folder: Path) -> None:
    """One deviation of the image, expressed as an error of the noise, the velocity and the image."""
    by_kind = {kind: schedule_of(sdxl_folder, kind) for kind in ("epsilon", "v_prediction", "sample")}
    draw = torch.Generator().manual_seed(0)
    image, noise, off = (torch.randn(4, 1, 2, 2, generator=draw) for _ in range(3))
    alpha = by_kind["sample"].alphas_cumprod_T[TIMESTEPS].view(-1, 1, 1, 1)
    wrong_noise = noise - (alpha / (1 - alpha)).sqrt() * off  # for the same noisy latents
    found = {}
    for kind, schedule in by_kind.items():
        right = schedule.target(image, noise, TIMESTEPS)
        error = (schedule.target(image + off, wrong_noise, TIMESTEPS) - right).square().flatten(1).mean(1)
        found[kind] = {
            "min-SNR": error * schedule.min_snr_weight(TIMESTEPS, 5.0),
            "debiased": error * schedule.debiased_weight(TIMESTEPS),
        }
    for name in ("min-SNR", "debiased"):
        for kind in ("epsilon", "v_prediction"):
            assert torch.allclose(found[kind][name], found["sample"][name], rtol=1e-3), (kind, name)


def test_debiased_weights_are_one_over_the_root_of_the_ratio(sdxl_folder: Path) -> None:
    weights = schedule_of(sdxl_folder).debiased_weight(TIMESTEPS)
    # The ratio is capped at 1000; it is 1175 at the first timestep.
    assert weights.tolist() == pytest.approx([1000**-0.5, 8.454**-0.5, 0.7376**-0.5, 0.00468**-0.5], rel=2e-3)


def test_velocity_is_read_from_the_model(sd21_folder: Path, sd15_folder: Path) -> None:
    assert schedule_of(sd21_folder).prediction.kind == "v_prediction"
    assert schedule_of(sd15_folder).prediction.kind == "epsilon"


def test_a_schedule_that_ends_in_pure_noise_is_refused_where_noise_is_predicted(
    sdxl_folder: Path, tmp_path: Path
) -> None:
    model = changed(sdxl_folder, tmp_path / "model", "scheduler", rescale_betas_zero_snr=True)
    with pytest.raises(ModelError, match=r"model\.prediction_type"):
        schedule_of(model)
    with pytest.raises(ModelError, match=r"model\.prediction_type"):
        schedule_of(sdxl_folder, "epsilon", zero=True)
    assert float(schedule_of(model, zero=False).snr(torch.tensor([999]))) > 0.0


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_where_the_last_timestep_is_noise_alone_no_weight_is_infinite(sdxl_folder: Path, kind: str) -> None:
    schedule = schedule_of(sdxl_folder, kind, zero=True)
    every = torch.arange(1000)
    assert float(schedule.snr(torch.tensor([999]))) == 0.0
    assert torch.isfinite(schedule.min_snr_weight(every, 5.0)).all()
    assert torch.isfinite(schedule.debiased_weight(every)).all()


def test_other_predictions_are_refused(sdxl_folder: Path, tmp_path: Path) -> None:
    model = changed(sdxl_folder, tmp_path / "model", "scheduler", prediction_type="score")
    with pytest.raises(ModelError, match="'score'"):
        schedule_of(model)


@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_models_of_another_noise_are_refused(sdxl_folder: Path, tmp_path: Path, scheduler: str) -> None:
    folder = changed(sdxl_folder, tmp_path / "model", "scheduler", _class_name=scheduler)
    with pytest.raises(ModelError, match=f"its scheduler, {scheduler}, is not one of noise in steps of beta"):
        check_noise(folder, ModelSettings.model_validate({}))


def test_a_scheduler_that_does_not_say_its_noise_is_refused(sdxl_folder: Path, tmp_path: Path) -> None:
    folder = changed(sdxl_folder, tmp_path / "model", "scheduler")
    file = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in settings.items() if key != "beta_start"}))
    with pytest.raises(ModelError, match="is not one of noise in steps of beta"):
        check_noise(folder, ModelSettings.model_validate({}))


@pytest.mark.parametrize("name", ["ddpm", "ddim", "lcm", "tcd"])
def test_latents_are_never_clipped(sdxl_folder: Path, tmp_path: Path, name: str) -> None:
    folder = changed(sdxl_folder, tmp_path / "model", "scheduler", clip_sample=True)
    assert not load_sampler(folder, name, schedule_of(folder).prediction).config.clip_sample


def test_latents_are_normalised_as_the_vae_says() -> None:
    raw = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    plain = scale_latents({"scaling_factor": 0.13025}, raw)
    assert torch.allclose(plain, raw * 0.13025)
    shifted = scale_latents({"scaling_factor": 1.5305, "shift_factor": 0.0609}, raw)
    assert torch.allclose(shifted, (raw - 0.0609) * 1.5305)
    mean, deviation = [1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 2.0, 4.0]
    by_channel = scale_latents({"scaling_factor": 0.5, "latents_mean": mean, "latents_std": deviation}, raw)
    assert torch.allclose(by_channel[1, 2], (raw[1, 2] - 3.0) * 0.5 / 2.0)
    one = scale_latents({"scaling_factor": 0.5, "latents_mean": mean, "latents_std": deviation}, raw[1])
    assert torch.equal(one, by_channel[1])


@pytest.mark.parametrize(
    "statistics", [{}, {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}]
)
@torch.no_grad()
def test_decoding_undoes_the_normalisation(sdxl_folder: Path, tmp_path: Path, statistics: dict[str, object]) -> None:
    model = changed(sdxl_folder, tmp_path / "model", "vae", **statistics)
    vae = load_vae(model, None, None, torch.device("cpu"))
    raw = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    images = decode_latents(vae, scale_latents(vae.config, raw))
    assert images.shape == (2, 3, 32, 48)
    wanted = (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(images, wanted, atol=1e-5)


def test_a_model_that_is_none_is_named(tmp_path: Path, sdxl_folder: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(sdxl_folder, model)
    (model / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"model\.path.*AutoencoderKL"):
        load_vae(model, None, None, torch.device("cpu"))
