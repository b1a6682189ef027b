"""Training equals what plain diffusers, peft and torch compute from the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from runner.jobs.job import Job
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.inputs.samples import Batch
from tests.train.bench import CPU, Bench, difference, pipeline_of, records, weights

# Measured 2e-7 to 1.2e-6: the same sums in another order.
ROUNDING = 1e-5
SETTINGS: dict[str, Any] = {
    "steps": 4,
    "lora": {"rank": 4, "alpha": 16.0},
    "batch_size": 4,
    "lr_scheduler": {"name": "cosine", "warmup_steps": 1},
    "optimizer": {"lr": 2e-3, "max_grad_norm": 0.05, "weight_decay": 0.1},
}


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TARGETS = {
    "unet": ATTENTION,
    "transformer": [*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"],
}


def encode(pipeline: Any, captions: list[str]) -> dict[str, Tensor]:
    """The captions as the pipeline itself encodes them, with gradients."""
    ids = [
        tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        for tokenizer in (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None))
        if tokenizer is not None
    ]
    if len(ids) == 1:
        return {"embeds": pipeline.text_encoder(ids[0])[0]}
    first = pipeline.text_encoder(ids[0], output_hidden_states=True)
    second = pipeline.text_encoder_2(ids[1], output_hidden_states=True)
    return {
        "embeds": torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1),
        "pooled": second[0],
    }


Prediction = tuple[Tensor, Tensor]
"""The prediction, and its target."""


def predicted_by_sd3(pipeline: Any, batch: Batch) -> Prediction:
    captions = [caption or "" for caption in batch.captions]
    embeds, _, pooled, _ = pipeline.encode_prompt(captions, captions, captions, do_classifier_free_guidance=False)
    level = (batch.timesteps / 1000).view(-1, 1, 1, 1)
    noisy = (1 - level) * batch.latents + level * batch.seen_noise
    predicted = pipeline.transformer(noisy, embeds, pooled, batch.timesteps).sample
    return predicted, batch.noise - batch.latents


def predicted_by_flux(pipeline: Any, batch: Batch) -> Prediction:
    embeds, pooled, text_ids = pipeline.encode_prompt([caption or "" for caption in batch.captions])
    level = (batch.timesteps / 1000).view(-1, 1, 1, 1)
    noisy = (1 - level) * batch.latents + level * batch.seen_noise
    count, channels, height, width = noisy.shape
    predicted = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, count, channels, height, width),
        timestep=batch.timesteps / 1000,
        guidance=torch.ones(count),
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(count, height // 2, width // 2, CPU.device, torch.float32),
    ).sample
    pixels = pipeline.vae_scale_factor
    predicted = pipeline._unpack_latents(predicted, height * pixels, width * pixels, pixels)
    return predicted, batch.noise - batch.latents


def predicted_by_unet(pipeline: Any, batch: Batch) -> Prediction:
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = schedule.add_noise(batch.latents, batch.seen_noise, batch.timesteps)
    text = encode(pipeline, [caption or "" for caption in batch.captions])
    sizes = {"text_embeds": text["pooled"], "time_ids": batch.time_ids} if "pooled" in text else None
    predicted = pipeline.unet(noisy, batch.timesteps, text["embeds"], added_cond_kwargs=sizes).sample
    target = batch.noise
    if schedule.config.prediction_type == "v_prediction":
        target = schedule.get_velocity(batch.latents, batch.noise, batch.timesteps)
    return predicted, target


PREDICTIONS = {"StableDiffusion3Pipeline": predicted_by_sd3, "FluxPipeline": predicted_by_flux}


def loss_of(pipeline: Any, batch: Batch, *, subjects: int) -> Tensor:
    """The mean over the subject's samples; with a prior, plus the weighted mean over those of the class."""
    predict = PREDICTIONS.get(type(pipeline).__name__, predicted_by_unet)
    predicted, target = predict(pipeline, batch)
    if batch.weights is None:
        return F.mse_loss(predicted, target)
    if batch.from_base:
        denoiser = pipeline.components.get("transformer") or pipeline.unet
        denoiser.disable_adapters()
        with torch.no_grad():
            by_base, _ = predict(pipeline, batch)
        denoiser.enable_adapters()
        target = torch.cat([target[:subjects], by_base[subjects:]])
    weight = float(batch.weights[-1])
    own, of_class = (F.mse_loss(predicted[part], target[part]) for part in (slice(subjects), slice(subjects, None)))
    return own + weight * of_class


def with_adapters(pipeline: Any, job: Job, start: Adapter) -> list[nn.Module]:
    """peft's own adapters on the pipeline's parts, started from the job's first weights."""
    lora = job.experiment.lora
    parts = [getattr(pipeline, name) for name in start.state()]
    for name, part in zip(start.state(), parts, strict=True):
        part.requires_grad_(False)
        targets: Any = TARGETS.get(name, ["q_proj", "k_proj", "v_proj", "out_proj"])
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha or lora.rank,
            rank_pattern=lora.rank_pattern or {},
            alpha_pattern=lora.alpha_pattern or {},
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            target_modules=lora.targets if name in TARGETS and lora.targets != "attention" else targets,
        )
        part.add_adapter(config)
        loaded = set_peft_model_state_dict(part, start.state()[name])
        assert not loaded.unexpected_keys
    return parts


def trained_by_hand(bench: Bench, job: Job) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """(weights under peft keys, losses, gradient norms before clipping)."""
    settings, base = job.experiment, bench.base(job)
    samples = bench.materials(job, base).samples
    components = base.components()
    sites = find_sites(settings.lora, components, base.family.target_presets)
    start = Adapter(settings.lora, sites, seed=0, device=CPU.device, components=components)
    pipeline = pipeline_of(Path(settings.model.path))
    parts = with_adapters(pipeline, job, start)
    named = [(name, each) for part in parts for name, each in part.named_parameters() if each.requires_grad]
    parameters = [each for _, each in named]
    chosen: Any = settings.optimizer
    groups = [
        {"params": [each for name, each in named if "lora_B" not in name], "lr": chosen.lr},
        {"params": [each for name, each in named if "lora_B" in name], "lr": chosen.lr * chosen.lora_plus_ratio},
    ]
    optimizer = torch.optim.AdamW(groups, lr=chosen.lr, eps=chosen.eps, weight_decay=chosen.weight_decay)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=settings.steps)
    for each in parameters:  # SDXL skips the first encoder's last layer: no gradient, but weight decay applies
        each.grad = torch.zeros_like(each)
    losses, norms = [], []
    for step in range(settings.steps):
        loss = loss_of(pipeline, samples.batch(step, range(settings.batch_size)), subjects=settings.batch_size)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(parameters, chosen.max_grad_norm)))
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=False)
    state = {
        f"{name}.{'' if name in TARGETS else 'text_model.'}{key.removeprefix('text_model.')}": tensor
        for name, part in zip(start.state(), parts, strict=True)
        for key, tensor in get_peft_model_state_dict(part).items()
    }
    return state, losses, norms


@pytest.mark.parametrize(
    "model", ["sdxl_folder", "sd15_folder", "sd21_folder", "sd3_folder", "sd35_folder", "flux_folder"]
)
def test_a_training_is_the_one_that_diffusers_and_peft_would_do(
    bench: Bench, model: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    job = bench.job(folder, **SETTINGS)
    assert bench.train_only(job)
    state, losses, norms = trained_by_hand(bench, job)
    assert difference(weights(job), state) < ROUNDING
    assert list(records(job, "train/loss").values()) == pytest.approx(losses, rel=1e-6)
    logged = list(records(job, "train/grad_norm").values())
    assert logged == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 0.05, "the test clips nothing"


PRIORS: dict[str, dict[str, Any]] = {
    "images": {"num_class_images": 2, "class_inference_steps": 1, "prior_loss_weight": 0.7},
    "base": {"prior": "base", "prior_loss_weight": 0.7},
}


@pytest.mark.parametrize("prior", list(PRIORS))
@pytest.mark.parametrize("model", ["sdxl_folder", "sd15_folder", "sd21_folder", "sd3_folder", "flux_folder"])
def test_dreambooth_is_the_one_that_diffusers_and_peft_would_do(
    bench: Bench, model: str, prior: str, request: pytest.FixtureRequest
) -> None:
    method = {"name": "dreambooth", "class_prompt": "a photo of a cat", **PRIORS[prior]}
    job = bench.job(request.getfixturevalue(model), **{**SETTINGS, "steps": 3, "batch_size": 2}, method=method)
    assert bench.train_only(job)
    state, losses, norms = trained_by_hand(bench, job)
    assert difference(weights(job), state) < ROUNDING
    assert list(records(job, "train/loss").values()) == pytest.approx(losses, rel=1e-6)
    assert list(records(job, "train/grad_norm").values()) == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("model", ["sdxl_folder", "sd3_folder", "flux_folder"])
def test_a_training_in_buckets_is_the_one_that_diffusers_and_peft_would_do(
    bench: Bench, model: str, request: pytest.FixtureRequest
) -> None:
    """The pipelines get the shapes, time ids and patch positions that follow from each step's bucket."""
    folder: Path = request.getfixturevalue(model)
    job = bench.job(folder, **{**SETTINGS, "batch_size": 2}, dataset={"buckets": True, "bucket_step": 16})
    assert bench.train_only(job)
    samples = bench.materials(job, bench.base(job)).samples
    assert len({samples.shape(step) for step in range(job.experiment.steps)}) > 1
    state, losses, norms = trained_by_hand(bench, job)
    assert difference(weights(job), state) < ROUNDING
    assert list(records(job, "train/loss").values()) == pytest.approx(losses, rel=1e-6)
    assert list(records(job, "train/grad_norm").values()) == pytest.approx(norms, rel=1e-5)


KINDS: dict[str, dict[str, Any]] = {
    "rsLoRA, ranks and alphas of layers": {
        "rank": 4, "alpha": 3.0, "rslora": True,
        "rank_pattern": {r"attn2\.to_[kv]": 7, r"up_blocks\..*\.attn1\.to_out\.0": 1}, "alpha_pattern": {"to_q": 9.5},
    },
    "DoRA": {"rank": 4, "alpha": 10.0, "dora": True},
    "DoRA of convolutions too": {
        "rank": 4, "alpha": 10.0, "dora": True, "rslora": True,
        "targets": r".*(attn1\.to_q|conv1|conv_shortcut|downsamplers\.0\.conv|time_emb_proj)",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_adapter_is_trained_as_peft_would(bench: Bench, sdxl_folder: Path, kind: str) -> None:
    job = bench.job(sdxl_folder, **{**SETTINGS, "lora": KINDS[kind]})
    assert bench.train_only(job)
    state, losses, norms = trained_by_hand(bench, job)
    assert difference(weights(job), state) < ROUNDING
    assert list(records(job, "train/loss").values()) == pytest.approx(losses, rel=1e-6)
    assert list(records(job, "train/grad_norm").values()) == pytest.approx(norms, rel=1e-5)


def test_up_projections_that_learn_faster_are_trained_as_torch_would(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, **{**SETTINGS, "optimizer": {**SETTINGS["optimizer"], "lora_plus_ratio": 16.0}})
    assert bench.train_only(job)
    state, losses, _ = trained_by_hand(bench, job)
    assert difference(weights(job), state) < ROUNDING
    assert list(records(job, "train/loss").values()) == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("model", ["sdxl_folder", "sd3_folder", "flux_folder"])
def test_a_perturbed_input_is_trained_on_the_noise_before(
    bench: Bench, model: str, request: pytest.FixtureRequest
) -> None:
    """The model sees more noise than it is asked to predict (arXiv 2301.11706)."""
    job = bench.job(request.getfixturevalue(model), **SETTINGS, loss={"input_perturbation": 0.5})
    batch = bench.materials(job, bench.base(job)).samples.batch(0, range(4))
    assert float((batch.seen_noise - batch.noise).std()) == pytest.approx(0.5, rel=0.1)
    assert bench.train_only(job)
    state, losses, _ = trained_by_hand(bench, job)
    assert difference(weights(job), state) < ROUNDING
    assert list(records(job, "train/loss").values()) == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("model", ["sdxl_folder", "sd3_folder", "flux_folder"])
def test_text_encoders_are_trained_as_peft_would(bench: Bench, model: str, request: pytest.FixtureRequest) -> None:
    job = bench.job(request.getfixturevalue(model), **{**SETTINGS, "lora": {"rank": 4, "text_encoder": True}})
    assert bench.train_only(job)
    state, losses, _ = trained_by_hand(bench, job)
    assert any(key.startswith("text_encoder.text_model.encoder") for key in state)
    assert difference(weights(job), state) < ROUNDING
    assert list(records(job, "train/loss").values()) == pytest.approx(losses, rel=1e-6)


def test_accumulated_parts_give_the_same_as_one_batch(bench: Bench, sdxl_folder: Path) -> None:
    dropouts = {"dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.1}
    settings = {**SETTINGS, "lora": {**SETTINGS["lora"], **dropouts}}
    whole = bench.job(sdxl_folder, **settings)
    two, three = (bench.job(sdxl_folder, **settings, accumulation=parts) for parts in (2, 3))
    assert whole.identity == two.identity == three.identity
    assert bench.train_only(whole)
    for parts in (two, three):
        assert bench.train_only(parts)
        assert difference(weights(whole), weights(parts)) < ROUNDING
        assert records(whole, "train/loss") == pytest.approx(records(parts, "train/loss"), rel=1e-6)
