"""Train the embedded model from scratch on the drawn world: first its VAE, then its UNet and text encoders.

Takes minutes on all the machine's cores and writes an SDXL pipeline in diffusers' ordinary layout with fp16 weights,
with a contact sheet to look at beside it. README.md lists the settings and the results.

    python -m runner.embedded.pretrain --out DIR                                # both stages
    python -m runner.embedded.pretrain --out DIR --vae-minutes 0                # keeps DIR's VAE, retrains the rest
    python -m runner.embedded.pretrain --out DIR --vae-minutes 0 --keep-unet    # continues from what is in DIR
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline
from torch import Tensor, nn

from runner.embedded import draw
from runner.embedded.miniature import EMBEDDED, NOISE, build_sdxl

log = logging.getLogger("pretrain")

PROMPT_TOKENS = 24
VAE_BATCH, VAE_LEARNING_RATE, VAE_KL_WEIGHT = 12, 2e-3, 3e-4
# In the first part of its time, the VAE sees quarter pictures: four times as many.
VAE_CROP_SHARE, VAE_CROP_PX = 0.6, 32
UNET_BATCH, UNET_LEARNING_RATE = 32, 1e-3
WARM_UP_STEPS = 100
CAPTION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0
EMA_DECAY = 0.999
LOG_EVERY_STEPS = 100


class Budget:
    """Minutes on all cores, counted as CPU time, so that a busy machine does not cut the training short.

    Threads that spin while they wait are counted too: on a shared machine, set OMP_WAIT_POLICY=PASSIVE.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.started_s = time.process_time()

    @property
    def spent(self) -> float:
        """Share of the budget used so far, from 0 to slightly above 1."""
        return (time.process_time() - self.started_s) / torch.get_num_threads() / self.seconds


def train_vae(vae: AutoencoderKL, *, minutes: float, seed: int) -> None:
    """Train on whole and quarter pictures, one third world and two thirds scraps.

    Sets `scaling_factor` so that the world's latents have unit variance.
    """
    world, _ = draw.draw_world(3000, seed=seed)
    pictures = torch.cat([_pixels(world), _pixels(draw.draw_scraps(6000, seed=seed))])
    vae.train().to(memory_format=torch.channels_last)
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=VAE_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    generator = torch.Generator().manual_seed(seed)
    budget, step = Budget(minutes), 0
    while (spent := budget.spent) < 1:
        _set_learning_rate(optimizer, VAE_LEARNING_RATE * _warm_up(step) * _cosine(spent))
        batch = _vae_batch(pictures, cropped=spent < VAE_CROP_SHARE, generator=generator)
        # The last fifth in fp32: bf16 rounds colours visibly.
        with torch.autocast("cpu", torch.bfloat16, enabled=spent < 0.8):
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample
        error = F.mse_loss(decoded.float(), batch)
        loss = (
            error
            + 0.5 * F.l1_loss(decoded.float(), batch)
            + VAE_KL_WEIGHT * posterior.kl().float().mean() / posterior.mean[0].numel()
        )
        _descend(loss, parameters, optimizer)
        step += 1
        if step % LOG_EVERY_STEPS == 0:
            log.info("vae step %d, %.0f %% of the time, mean squared error %.5f", step, spent * 100, error.item())
    vae.eval().to(memory_format=torch.contiguous_format)
    vae.register_to_config(scaling_factor=round(1 / _encode(vae, _pixels(world[:2000])).std().item(), 4))


def peak_signal_to_noise(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean PSNR in dB of encoding and decoding `pictures` (n, 3, h, w) in [-1, 1]."""
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
    errors = (decoded - pictures).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / errors)).mean())


def train_unet(pipeline: StableDiffusionXLPipeline, *, minutes: float, seed: int) -> None:
    """Train the UNet and both text encoders from random weights; leaves their moving averages in the pipeline."""
    world, captions = draw.draw_world(12000, seed=seed + 1)
    latents = _encode(pipeline.vae, _pixels(world)) * pipeline.vae.config.scaling_factor
    tokens = [_tokens(tokenizer, captions) for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)]
    unet = pipeline.unet.train().to(memory_format=torch.channels_last)
    encoders = (pipeline.text_encoder.train(), pipeline.text_encoder_2.train())
    noising = DDPMScheduler(**NOISE, prediction_type=pipeline.scheduler.config.prediction_type)
    parameters = [parameter for module in (unet, *encoders) for parameter in module.parameters()]
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=UNET_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    generator = torch.Generator().manual_seed(seed)
    size_px = float(draw.CANVAS_PX)
    # Original size, crop, target size.
    time_ids = torch.tensor([size_px, size_px, 0.0, 0.0, size_px, size_px]).repeat(UNET_BATCH, 1)
    budget, step, average_loss = Budget(minutes), 0, 0.0
    while (spent := budget.spent) < 1:
        _set_learning_rate(optimizer, UNET_LEARNING_RATE * _warm_up(step) * _cosine(max(0.0, 2 * spent - 1)))
        rows = torch.randint(len(latents), (UNET_BATCH,), generator=generator)
        text, pooled = _encode_text(encoders, [ids[rows] for ids in tokens])
        # Dropped captions become zeros, not the embedding of "", as force_zeros_for_empty_prompt does when sampling.
        kept = (torch.rand(UNET_BATCH, generator=generator) >= CAPTION_DROPOUT).float()
        conditions = {"text_embeds": pooled * kept[:, None], "time_ids": time_ids}
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = torch.randint(noising.config.num_train_timesteps, (UNET_BATCH,), generator=generator)
        noisy = noising.add_noise(latents[rows], noise, timesteps).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, timesteps, text * kept[:, None, None], added_cond_kwargs=conditions).sample
        loss = _noise_loss(predicted, latents[rows], noise, timesteps, noising)
        _descend(loss, parameters, optimizer)
        step += 1
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
        average_loss += (loss.item() - average_loss) / min(step, 50)
        if step % LOG_EVERY_STEPS == 0:
            log.info("unet step %d, %.0f %% of the time, loss %.4f", step, spent * 100, average_loss)
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
    for module in (unet, *encoders):
        module.eval().to(memory_format=torch.contiguous_format)


def draw_prompts(pipeline: StableDiffusionXLPipeline) -> list[draw.Picture]:
    """Eight pictures of each shape, in every colour and on every background."""
    colours, backgrounds = list(draw.COLOURS), list(draw.BACKGROUNDS)
    pictures: list[draw.Picture] = []
    for row, shape in enumerate(draw.SHAPES):
        pairs = [(colours[(i + row) % len(colours)], backgrounds[i % len(backgrounds)]) for i in range(8)]
        prompts = [draw.caption(shape=shape, colour=colour, background=background) for colour, background in pairs]
        generator = torch.Generator().manual_seed(row)
        result = pipeline(prompts, num_inference_steps=25, guidance_scale=3.0, generator=generator, output_type="np")
        pictures += list((result.images * 255).round().astype("uint8"))
    return pictures


def _take_over(pipeline: StableDiffusionXLPipeline, folder: Path, *, parts: tuple[str, ...]) -> None:
    """Copy only the weights of a saved pipeline: the config of a loaded module carries the path it came from."""
    saved = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    for part in parts:
        getattr(pipeline, part).load_state_dict(getattr(saved, part).state_dict())
    if "vae" in parts:
        pipeline.vae.register_to_config(scaling_factor=saved.vae.config.scaling_factor)


def _vae_batch(pictures: Tensor, *, cropped: bool, generator: torch.Generator) -> Tensor:
    count = 2 * VAE_BATCH if cropped else VAE_BATCH
    batch = pictures[torch.randint(len(pictures), (count,), generator=generator)]
    if cropped:
        top, left = torch.randint(batch.shape[-1] - VAE_CROP_PX + 1, (2,), generator=generator).tolist()
        batch = batch[:, :, top : top + VAE_CROP_PX, left : left + VAE_CROP_PX]
    return batch.contiguous(memory_format=torch.channels_last)


def _noise_loss(predicted: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, noising: DDPMScheduler) -> Tensor:
    """Mean squared error against noise or velocity, weighted by min-SNR (Hang et al. 2023)."""
    alpha = noising.alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    if noising.config.prediction_type == "v_prediction":
        target, weight = noising.get_velocity(latents, noise, timesteps), snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1)
    else:
        target, weight = noise, snr.clamp(max=MIN_SNR_GAMMA) / snr
    loss: Tensor = ((predicted - target).square().mean(dim=(1, 2, 3)) * weight).mean()
    return loss


def _encode_text(encoders: tuple[nn.Module, nn.Module], tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    """SDXL's text condition: both encoders' penultimate hidden states, concatenated; the second's pooled embedding."""
    first, second = (encoder(ids, output_hidden_states=True) for encoder, ids in zip(encoders, tokens, strict=True))
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def _encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Posterior means, unscaled: (n, 4, h / 4, w / 4)."""
    with torch.no_grad():
        return torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in torch.split(pictures, 100)])


def _tokens(tokenizer: object, captions: list[str]) -> Tensor:
    ids: Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids  # type: ignore[operator]
    return ids


def _pixels(pictures: draw.Picture) -> Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _descend(loss: Tensor, parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _warm_up(step: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS)


def _cosine(progress: float) -> float:
    """Falls from 1 to 0.02 as `progress` rises from 0 to 1."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def main() -> None:
    """Read the options, run the requested stages, save."""
    parser = argparse.ArgumentParser(description="Train the embedded model from scratch.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the pipeline is saved")
    parser.add_argument(
        "--vae-minutes", type=float, default=6.0, help="minutes of all cores; 0 keeps the VAE found in --out"
    )
    parser.add_argument(
        "--unet-minutes", type=float, default=12.0, help="minutes of all cores; 0 leaves the UNet random"
    )
    parser.add_argument("--keep-unet", action="store_true", help="go on from the UNet and text encoders found in --out")
    parser.add_argument("--prediction-type", choices=("epsilon", "v_prediction"), default="v_prediction")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    torch.manual_seed(options.seed)
    pipeline = build_sdxl(
        EMBEDDED, seed=options.seed, prompt_tokens=PROMPT_TOKENS, prediction_type=options.prediction_type
    )
    if options.vae_minutes:
        train_vae(pipeline.vae, minutes=options.vae_minutes, seed=options.seed)
    else:
        _take_over(pipeline, options.out, parts=("vae",))
    if options.keep_unet:
        _take_over(pipeline, options.out, parts=("unet", "text_encoder", "text_encoder_2"))
    test_world = draw.draw_world(64, seed=options.seed + 99)[0]
    for name, pictures in (("world", test_world), ("houses", draw.draw_houses())):
        log.info("vae: PSNR of %s %.1f dB", name, peak_signal_to_noise(pipeline.vae.eval(), _pixels(pictures)))
    if options.unet_minutes:
        train_unet(pipeline, minutes=options.unet_minutes, seed=options.seed)
        pipeline.set_progress_bar_config(disable=True)
        draw.contact_sheet(draw_prompts(pipeline), columns=8).save(options.out.with_suffix(".png"))
    pipeline.to(torch.float16).save_pretrained(options.out)


if __name__ == "__main__":
    main()
