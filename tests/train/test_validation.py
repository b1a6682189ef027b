"""Validation measures and draws what plain diffusers would, and leaves training unaffected."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image

from runner.data import read_dataset
from runner.data.views import held_out_crop
from runner.jobs.job import Job
from runner.train import validation
from runner.train.drawing import Picture
from runner.train.inputs.materials import Materials
from runner.train.inputs.samples import Sample
from runner.train.validation import HeldOut
from tests.train.bench import Bench, difference, records, weights

DRAWS: dict[str, Any] = {
    "prompts": ["a red circle", "a blue star on a white background"],
    "seeds": [0, 3],
    "inference_steps": 3,
    "timesteps": 2,
}


def random_states() -> list[bytes]:
    return [
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # type: ignore[union-attr]
        repr(random.getstate()).encode(),
    ]


@pytest.fixture(scope="module")
def watched(bench: Bench, sdxl_folder: Path) -> Job:
    """A job that validates after every step, with pictures."""
    job = bench.job(sdxl_folder, validation={**DRAWS, "every": 1}, lora={"dropout": 0.2, "alpha": 8.0})
    before = random_states()
    assert bench.train_only(job)
    assert random_states() == before, "training moved a global random state"
    return job


def test_validation_changes_nothing_in_the_training(bench: Bench, sdxl_folder: Path, watched: Job) -> None:
    unwatched = bench.job(sdxl_folder, lora={"dropout": 0.2, "alpha": 8.0})
    assert bench.train_only(unwatched)
    assert sorted(records(watched, "validation/loss")) == [0, 1, 2, 3]
    assert difference(weights(watched), weights(unwatched)) == 0.0
    assert records(watched, "train/loss") == records(unwatched, "train/loss")


def held_out_by_hand(job: Job, materials: Materials) -> float:
    pipeline = DiffusionPipeline.from_pretrained(job.settings.model.path)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    losses = []
    for sample in materials.held_out_samples.samples:
        text = pipeline.encode_prompt(
            sample.caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        sizes = {"text_embeds": text[2], "time_ids": torch.tensor([sample.time_ids])} if len(text) == 4 else None
        timestep = torch.tensor([sample.timestep])
        noisy = schedule.add_noise(sample.latent[None], sample.noise[None], timestep)
        with torch.no_grad():
            predicted = pipeline.unet(noisy, timestep, text[0], added_cond_kwargs=sizes).sample
        target = sample.noise[None]
        if schedule.config.prediction_type == "v_prediction":
            target = schedule.get_velocity(sample.latent[None], target, timestep)
        losses.append(F.mse_loss(predicted, target).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("model", ["sdxl_folder", "sd15_folder", "sd21_folder"])
def test_the_loss_before_training_is_that_of_the_bare_model(
    bench: Bench, model: str, request: pytest.FixtureRequest
) -> None:
    job = bench.job(request.getfixturevalue(model), steps=1, validation={"timesteps": 3, "max_images": 2})
    assert bench.train_only(job)
    by_hand = held_out_by_hand(job, bench.materials(job, bench.base(job)))
    assert records(job, "validation/loss")[0] == pytest.approx(by_hand, rel=1e-6)
    assert sorted(records(job, "validation/loss_t0166")) == [0, 1]


def test_every_sample_of_the_loss_has_noise_of_its_own_which_is_that_of_all_jobs(
    bench: Bench, sdxl_folder: Path
) -> None:
    """Otherwise jobs with different seeds would be compared on different noise, which differs more than they do."""
    job = bench.job(sdxl_folder, validation={"timesteps": 2, "max_images": 2})
    base, items = bench.base(job), read_dataset(job.experiment.dataset).items
    means = {(item.id, held_out_crop(item, job.experiment)): torch.randn(4, 8, 8) for item in items}
    posteriors = {key: (mean, torch.ones(4, 8, 8)) for key, mean in means.items()}

    def samples(seed: int) -> list[Sample]:
        return HeldOut(job.experiment.model_copy(update={"seed": seed}), items, posteriors, base).samples

    found = samples(1)
    assert len(found) == 4
    assert len({sample.noise.numpy().tobytes() for sample in found}) == 4
    assert all(torch.equal(one.noise, other.noise) for one, other in zip(found, samples(2), strict=True))
    # As the model expects them, not as the VAE returns them.
    scale = float(str(base.vae_config["scaling_factor"]))
    for sample, mean in zip(found[::2], means.values(), strict=False):
        assert torch.allclose(sample.latent, mean * scale)


def plain_pictures(job: Job, **arguments: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The same pictures from the folder of the model, the folder of the adapter and the text of the prompts."""
    pipeline = DiffusionPipeline.from_pretrained(job.settings.model.path)
    pipeline.load_lora_weights(job.paths.lora, weight_name="pytorch_lora_weights.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    pictures = {}
    for index, prompt in enumerate(DRAWS["prompts"]):
        for seed in DRAWS["seeds"]:
            image = pipeline(
                prompt,
                height=64,
                width=64,
                num_inference_steps=3,
                generator=torch.Generator("cpu").manual_seed(seed),
                **arguments,
            ).images[0]
            pictures[f"p{index:02d}-s{seed}.png"] = np.asarray(image).astype(int)
    return pictures


def drawn_pictures(job: Job) -> dict[str, np.ndarray[Any, Any]]:
    folder = job.paths.samples_at(job.experiment.steps)
    return {file.name: np.asarray(Image.open(file)).astype(int) for file in folder.glob("*.png")}


def assert_same_pictures(job: Job, **arguments: Any) -> None:
    ours, theirs = drawn_pictures(job), plain_pictures(job, **arguments)
    assert ours.keys() == theirs.keys()
    for name, picture in theirs.items():
        assert ours[name].shape == (64, 64, 3)
        # Drawn four at a time, not one by one: the sums differ, so a value may round the other way.
        assert np.abs(ours[name] - picture).max() <= 1, name
        assert (ours[name] != picture).mean() < 0.01, name
    different = list(theirs.values())
    assert not any(np.array_equal(different[0], each) for each in different[1:])


def test_pictures_are_those_that_plain_diffusers_draws(watched: Job) -> None:
    assert_same_pictures(watched)
    before = np.asarray(Image.open(watched.paths.samples_at(0) / "p00-s0.png")).astype(int)
    assert np.abs(before - drawn_pictures(watched)["p00-s0.png"]).max() > 3, "the adapter changed nothing"


def test_pictures_of_sd_are_those_that_plain_diffusers_draws(bench: Bench, sd15_folder: Path) -> None:
    job = bench.job(sd15_folder, steps=1, validation=DRAWS, lora={"text_encoder": True})
    assert bench.train_only(job)
    assert_same_pictures(job)


@pytest.mark.parametrize("negative", ["", "a green face"])
def test_a_negative_prompt_is_encoded_even_if_it_is_empty(bench: Bench, sdxl_folder: Path, negative: str) -> None:
    job = bench.job(sdxl_folder, steps=1, validation={**DRAWS, "negative_prompt": negative})
    assert bench.train_only(job)
    assert_same_pictures(job, negative_prompt=negative)


def test_pictures_with_rescaled_guidance_are_those_that_plain_diffusers_draws(bench: Bench, sdxl_folder: Path) -> None:
    guided = {"guidance_scale": 30.0, "guidance_rescale": 1.0}
    job = bench.job(sdxl_folder, steps=1, validation={**DRAWS, **guided})
    assert bench.train_only(job)
    assert_same_pictures(job, **guided)


def replaced(module: torch.nn.Module) -> bool:
    """Whether the module's `forward` is not its class's."""
    return "forward" in vars(module)


def test_the_base_is_untouched_and_free_of_adapters_after_training(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.train import admission

    bases = []

    class Remembered(admission.Base):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            bases.append(self)

    monkeypatch.setattr(admission, "Base", Remembered)
    job = bench.job(sdxl_folder, steps=2, lora={"text_encoder": True})
    assert bench.train_only(job)
    fresh = DiffusionPipeline.from_pretrained(sdxl_folder)
    for name, part in bases[0].components().items():
        plain = getattr(fresh, name).state_dict()
        state = part.state_dict()
        assert state.keys() == plain.keys()
        assert all(torch.equal(state[key], plain[key]) for key in plain)
        assert not any(map(replaced, part.modules()))
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in part.parameters())
        assert not part.training


def test_of_what_the_untrained_base_draws_for_many_jobs_the_last_is_kept(
    bench: Bench, sd15_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "VALIDATED_KEPT", 2)
    kept: list[int] = []

    def count(*_: Any) -> None:
        kept.append(sum(isinstance(each, Picture) for each in gc.get_objects()))

    gc.collect()
    count()
    once = {"inference_steps": 1, "timesteps": 1, "max_images": 1}
    jobs = [bench.job(sd15_folder, steps=1, validation={**once, "prompts": [f"a circle {n}"]}) for n in range(5)]
    assert bench.train(*jobs, at_once=1, save=count)
    assert [each - kept[0] for each in kept[1:]] == [1] * 5


def test_the_loss_before_training_is_not_that_of_the_same_images_with_other_captions(
    bench: Bench, sdxl_folder: Path
) -> None:
    """Jobs that share it share the captions as well."""
    settings: list[dict[str, Any]] = [{}, {"dataset": {"caption_prefix": "an old drawing of"}}]
    together = [bench.job(sdxl_folder, steps=1, **each) for each in settings]
    assert bench.train_only(*together)
    found = []
    for job, each in zip(together, settings, strict=True):
        alone = bench.job(sdxl_folder, steps=1, **each)
        assert bench.train_only(alone)
        found.append(records(job, "validation/loss")[0])
        assert found[-1] == pytest.approx(records(alone, "validation/loss")[0], rel=1e-6)
    assert found[0] != pytest.approx(found[1], rel=1e-5)
