"""Faults of other trainers while they train, computed beside what this one does; the page is docs/correctness.md."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from torch import nn

from runner.errors import ModelError
from runner.families.noise import load_noise_schedule
from runner.schema import ModelSettings
from tests.train.bench import Bench, records, weights
from tests.train.test_prior import of_images
from tests.train.test_samples import samples_of

STEPS = 8


def parameter() -> nn.Parameter:
    weight = nn.Parameter(torch.ones(4))
    weight.grad = torch.full((4,), 10.0)
    return weight


def test_gradients_are_clipped(bench: Bench, sdxl_folder: Path) -> None:
    """Gradient clipping that does nothing

    Elsewhere: `train_text_to_image_lora.py` of diffusers keeps the trained parameters in a `filter(...)`. The optimizer
    exhausts it, so `clip_grad_norm_` gets no parameters: it returns 0 and clips nothing.

    Here: the norm over all weights of a job is clipped, and its value before clipping is recorded as `train/grad_norm`.
    """
    weight = parameter()
    trained = filter(lambda each: each.requires_grad, [weight])
    torch.optim.AdamW(trained)
    assert float(nn.utils.clip_grad_norm_(trained, 1.0)) == 0.0
    assert weight.grad is not None and weight.grad.norm() == 20.0

    loose, tight = (
        bench.job(sdxl_folder, steps=1, optimizer={"lr": 1e-2, "weight_decay": 0.0, "max_grad_norm": limit})
        for limit in (0.0, 1e-3)
    )
    assert bench.train(loose, tight)
    assert records(loose, "train/grad_norm")[1] == pytest.approx(records(tight, "train/grad_norm")[1], rel=1e-5)
    assert records(tight, "train/grad_norm")[1] > 1e-3
    moved = [sum(float(t.abs().sum()) for key, t in weights(job).items() if "lora_B" in key) for job in (loose, tight)]
    assert moved[1] < 0.2 * moved[0]


def test_the_learning_rate_follows_its_curve(bench: Bench, sdxl_folder: Path) -> None:
    """A learning-rate schedule of another length than the training

    Elsewhere: `train_text_to_image_lora_sdxl.py` of diffusers makes a schedule of `max_train_steps *
    gradient_accumulation_steps` steps, and accelerate steps it once for each optimizer step and process. With 4
    accumulation steps, a cosine ends at 0.854 of its peak. With 8 processes and no accumulation, it advances eight
    times too fast and oscillates four times.

    Here: the schedule is as long as the training, and advances once for each optimizer step.
    """
    optimizer = torch.optim.AdamW([parameter()], lr=1.0)
    elsewhere = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=100 * 4)
    optimizer.step()
    for _ in range(100):
        elsewhere.step()
    assert elsewhere.get_last_lr()[0] == pytest.approx(0.854, abs=1e-3)
    eight = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=100)
    rates = []
    for _ in range(100):
        for _process in range(8):
            eight.step()
        rates.append(eight.get_last_lr()[0])
    lows = sum(left > here <= right for left, here, right in zip(rates, rates[1:], rates[2:], strict=False))
    assert lows == 4

    settings = {"steps": STEPS, "batch_size": 4, "lr_scheduler": {"name": "cosine"}, "optimizer": {"lr": 1.0e-3}}
    whole, parts = (bench.job(sdxl_folder, **settings, accumulation=count) for count in (1, 4))
    assert bench.train(whole, parts)
    for job in (whole, parts):
        for step, rate in records(job, "train/lr").items():
            assert rate == pytest.approx(1e-3 * (1 + math.cos(math.pi * (step - 1) / STEPS)) / 2, rel=1e-6)


def test_min_snr_weights_of_a_velocity_model(sd21_folder: Path) -> None:
    """Min-SNR weights that weigh nothing

    Elsewhere: `train_dreambooth_lora_sdxl.py` of diffusers uses min(SNR, gamma) / SNR + 1 if velocity is predicted.
    That is between 1 and 2 everywhere: hardly a weight.

    Here: min(SNR, gamma) / (SNR + 1) is used, which is the same objective as the paper's (arXiv 2303.09556) for noise.
    """
    schedule = load_noise_schedule(sd21_folder, ModelSettings(family="sd"))
    assert schedule.prediction.kind == "v_prediction"
    timesteps = torch.tensor([0, 100, 400, 999])
    snr = schedule.snr(timesteps)
    elsewhere = snr.clamp(max=5.0) / snr + 1
    assert elsewhere.min() > 1.004 and elsewhere.max() == 2.0
    here = schedule.min_snr_weight(timesteps, 5.0)
    assert here.tolist() == pytest.approx([0.0043, 0.5289, 0.4245, 0.0047], abs=1e-4)


def test_each_latent_is_that_of_its_caption(bench: Bench, sdxl_folder: Path) -> None:
    """Cached latents that belong to another image

    Elsewhere: `train_dreambooth_lora_sd3.py` and `..._flux.py` of diffusers fill a cache in the order of a shuffled
    loader and read it by step number, while the loader is reshuffled. Nearly every caption trains with the latent of
    another image (diffusers #14430).

    Here: encodings are looked up by the content of the image and its crop. The test compares the latent with the one
    that the VAE gives for the caption's image.
    """
    loader = torch.utils.data.DataLoader(
        range(32),  # type: ignore[arg-type]
        batch_size=1,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    cache = [int(image) for image in loader]
    assert sum(cache[step] != int(image) for step, image in enumerate(loader)) >= 29

    samples = samples_of(bench, sdxl_folder, batch_size=7)
    means = {item.caption: [mean for (image, _), (mean, _) in samples.posteriors.items() if image == item.id]
             for item in samples.items}  # fmt: skip
    scale = float(str(samples.vae_config["scaling_factor"]))
    for epoch in range(3):
        batch = samples.batch(epoch, range(7))
        for latent, caption in zip(batch.latents, batch.captions, strict=True):
            distance = {
                name: min(float((latent - scale * mean).norm()) for mean in each) for name, each in means.items()
            }
            assert min(distance, key=lambda name: distance[name]) == caption


def test_weights_in_half_precision_move(bench: Bench, sdxl_folder: Path) -> None:
    """bf16 weights that never move

    Elsewhere: peft gives an adapter the precision of its base: `unet.to(torch.bfloat16); unet.add_adapter(...)` makes
    bf16 LoRA weights, and diffusers casts them up for fp16 only. A step smaller than half the distance to the next bf16
    number is lost: in lora_A, at rank 4 and a learning rate of 1e-4, most numbers never change.

    Here: weights and optimizer are fp32 whatever the base is, and the computation uses bf16 copies: every number moves.
    """
    unet = UNet2DConditionModel.from_pretrained(sdxl_folder, subfolder="unet").to(torch.bfloat16)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q"], init_lora_weights="gaussian"))
    assert {each.dtype for each in unet.parameters() if each.requires_grad} == {torch.bfloat16}

    torch.manual_seed(0)
    slope = torch.randn(4000)
    start = torch.randn(4000) / 4
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = nn.Parameter(start.clone().to(dtype))
        optimizer = torch.optim.AdamW([weight], lr=1e-4, weight_decay=0.0)
        for _ in range(200):
            weight.grad = (slope + torch.randn(4000)).to(dtype)
            optimizer.step()
        moved[dtype] = float((weight.detach() != start.to(dtype)).float().mean())
    assert moved[torch.bfloat16] < 0.3 and moved[torch.float32] == 1.0

    one, more = (bench.job(sdxl_folder, steps=n, precision="bf16", optimizer={"lr": 1e-4, "eps": 1e-8}) for n in (3, 4))
    assert bench.train(one, more)
    downs = [torch.cat([t.flatten() for key, t in weights(job).items() if "lora_A" in key]) for job in (one, more)]
    assert all(down.dtype == torch.float32 for down in downs)
    assert float((downs[0] != downs[1]).float().mean()) > 0.99


def test_sizes_reach_the_model_as_they_are(bench: Bench, sdxl_folder: Path) -> None:
    """Image sizes rounded to bf16

    Elsewhere: `train_text_to_image_lora_sdxl.py` of diffusers casts SDXL's size conditioning to the precision of the
    weights. bf16 represents all whole numbers only up to 256: 1365 becomes 1368, 511 becomes 512.

    Here: the size stays fp32 all the way to the UNet, which embeds it in fp32.
    """
    sizes = torch.tensor([257.0, 511.0, 1365.0, 1443.0, 3000.0])
    assert sizes.to(torch.bfloat16).float().tolist() == [256.0, 512.0, 1368.0, 1440.0, 3008.0]

    job = bench.job(sdxl_folder, precision="bf16")
    base = bench.base(job)
    seen: list[torch.Tensor] = []
    denoiser: nn.Module = base.denoiser
    denoiser.get_submodule("add_time_proj").register_forward_hook(lambda _module, given, _out: seen.append(given[0]))
    text = bench.materials(job, base).conditioner.text([None])
    given = torch.tensor([[1365.0, 511.0, 257.0, 0.0, 1443.0, 3000.0]])
    with torch.no_grad():
        base.family.predict(denoiser, torch.zeros(1, 4, 8, 8), torch.tensor([5]), text, given)
    assert torch.equal(seen[0].flatten().float(), given.flatten())


def test_a_prior_with_min_snr_weights(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    """Min-SNR weights and prior preservation together

    Elsewhere: `train_dreambooth_lora_sdxl.py` of diffusers splits the predictions into those of the subject and those
    of the class, but not the weights: B losses are multiplied by 2 B weights. If B is 2 or more, that is an error;
    if it is 1, the loss of the subject is silently weighted by the mean of both weights.

    Here: each sample is weighted by its own timestep. (`test_prior.py` computes the loss of a step by hand.)
    """
    losses, both = torch.rand(2), torch.rand(4)
    with pytest.raises(RuntimeError):
        losses * both
    assert (losses[:1] * both[:2]).shape == (2,)
    assert float((losses[:1] * both[:2]).mean()) == pytest.approx(float(losses[0] * both[:2].mean()))

    from tests.train.bench import write_images

    method = of_images(write_images(tmp_path / "class", seed=2))
    for batch_size in (1, 2):
        job = bench.job(sdxl_folder, steps=1, batch_size=batch_size, method=method, loss={"snr_gamma": 5.0})
        assert bench.train(job)
        assert math.isfinite(records(job, "train/loss")[1])


def test_a_schedule_that_ends_in_noise(sdxl_folder: Path) -> None:
    """Zero terminal SNR where noise is predicted

    Elsewhere: with a schedule rescaled to end in pure noise, the SNR of the last timestep is 0. Min-SNR weights for
    predicted noise are then 0 / 0, that is NaN, and no training recovers from that.

    Here: this is refused before anything starts. If velocity or the image is predicted, all weights are finite.
    """
    schedule = DDPMScheduler.from_pretrained(sdxl_folder, subfolder="scheduler", rescale_betas_zero_snr=True)
    alpha = schedule.alphas_cumprod[-1]
    snr = alpha / (1 - alpha)
    assert torch.isnan(snr.clamp(max=5.0) / snr)

    with pytest.raises(ModelError, match=r"set model\.prediction_type=v_prediction"):
        load_noise_schedule(sdxl_folder, ModelSettings(zero_terminal_snr=True))
    velocity = load_noise_schedule(sdxl_folder, ModelSettings(zero_terminal_snr=True, prediction_type="v_prediction"))
    assert torch.isfinite(velocity.min_snr_weight(torch.arange(1000), 5.0)).all()


def test_what_a_process_draws_is_not_lost_on_resume(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    """State of the first process alone

    Elsewhere: diffusers' scripts call `accelerator.save_state` on the main process only. It writes one
    `random_states_0.pkl`. After a resume, every other process continues with different random numbers, and accelerate
    logs this at a level that is not shown.

    Here: there is no random state to save: what a process draws is a function of the seed and the sample's number.
    """
    accelerator = Accelerator(cpu=True)
    accelerator.save_state(str(tmp_path / "state"))
    assert [file.name for file in (tmp_path / "state").glob("random_states_*")] == ["random_states_0.pkl"]

    from runner.train.place import Place

    settings = {"batch_size": 6, "dataset": {"crop": "random", "caption_dropout": 0.5}}
    before, after = (samples_of(bench, sdxl_folder, **settings) for _ in range(2))
    before.batch(4, range(6))  # the steps before the interruption
    for rank in range(2):
        share = Place(torch.device("cpu"), rank, 2).share(6)
        straight, resumed = before.batch(5, share), after.batch(5, share)
        assert torch.equal(straight.noise, resumed.noise) and straight.captions == resumed.captions
    assert F.mse_loss(before.batch(5, range(3)).noise, before.batch(5, range(3, 6)).noise) > 0
