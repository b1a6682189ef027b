"""A miniature of the Stable Diffusion XL pipeline: the real classes and the real wiring, a few thousand times smaller.

Takes a size and a seed, returns a diffusers pipeline with random weights that can be saved, loaded and sampled like any
other. The family's distinctive parts are kept: two text encoders, pooled embeddings and time ids. Knows nothing about
training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from runner.embedded.tokenizer import END, WORDS, make_tokenizer

NOISE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")  # noqa: C408


@dataclass(frozen=True)
class TextSize:
    """One text encoder. At least two layers: SDXL reads the hidden state before the last."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Size:
    """The size of a miniature. Each further VAE level halves the latents: three levels turn 64x64 px into 16x16."""

    text: tuple[TextSize, TextSize]
    unet_channels: tuple[int, ...]
    transformer_depth: tuple[int, ...]  # transformer blocks per UNet level
    head_width: int
    time_id_width: int
    vae_channels: tuple[int, ...]
    vae_groups: int
    sample_px: int = 64

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        return self.sample_px >> (len(self.vae_channels) - 1)


# For tests: a training step takes milliseconds.
TEST = Size(
    text=(TextSize(width=16, layers=2, heads=2), TextSize(width=32, layers=2, heads=2)),
    unet_channels=(32, 64),
    transformer_depth=(1, 1),
    head_width=16,
    time_id_width=8,
    vae_channels=(8, 16, 16),
    vae_groups=4,
)
# For demonstrations: as large as a repository may carry. One group in the VAE, because with fewer than about ten
# channels per group, the normalisation wipes out the colour of a flat surface.
EMBEDDED = Size(
    text=(TextSize(width=48, layers=2, heads=2), TextSize(width=64, layers=2, heads=2)),
    unet_channels=(48, 96, 96),
    transformer_depth=(1, 1, 1),
    head_width=24,
    time_id_width=32,
    vae_channels=(16, 32, 64),
    vae_groups=1,
)


def build_sdxl(
    size: Size = TEST,
    *,
    seed: int = 0,
    prompt_tokens: int = 77,
    prediction_type: str = "epsilon",
    words: Sequence[str] = WORDS,
) -> StableDiffusionXLPipeline:
    """An SDXL-shaped pipeline; `prompt_tokens` is the tokenizers' model_max_length, begin and end included."""
    tokenizers = [make_tokenizer(words, prompt_tokens=prompt_tokens, padding=padding) for padding in (END, "!")]
    first, second = size.text
    unet_levels = len(size.unet_channels)
    with seeded(seed):
        return StableDiffusionXLPipeline(
            vae=make_vae(size, scaling_factor=0.13025),
            text_encoder=CLIPTextModel(clip_config(first, tokenizers[0], activation="quick_gelu")),
            text_encoder_2=CLIPTextModelWithProjection(clip_config(second, tokenizers[1], activation="gelu")),
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=make_unet(
                size,
                text_width=first.width + second.width,
                down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (unet_levels - 1)),
                up_block_types=(*["CrossAttnUpBlock2D"] * (unet_levels - 1), "UpBlock2D"),
                transformer_layers_per_block=size.transformer_depth,
                attention_head_dim=head_counts(size),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=size.time_id_width,
                projection_class_embeddings_input_dim=second.width + 6 * size.time_id_width,
            ),
            scheduler=EulerDiscreteScheduler(
                **NOISE, prediction_type=prediction_type, timestep_spacing="leading", steps_offset=1
            ),
            add_watermarker=False,
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw weights from `seed`; the caller's own random state is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def head_counts(size: Size) -> tuple[int, ...]:
    """Heads per UNet level. For old checkpoints' sake, diffusers reads `attention_head_dim` as the number of heads."""
    return tuple(max(1, channels // size.head_width) for channels in size.unet_channels)


def make_vae(size: Size, *, scaling_factor: float) -> AutoencoderKL:
    """The VAE of a miniature."""
    levels = len(size.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae_channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=size.vae_groups,
        sample_size=size.sample_px,
        scaling_factor=scaling_factor,
    )


def make_unet(size: Size, *, text_width: int, **structure: Any) -> UNet2DConditionModel:
    """The UNet of a miniature; `structure` is what its family builds differently."""
    return UNet2DConditionModel(
        sample_size=size.latent_side,
        in_channels=4,
        out_channels=4,
        block_out_channels=size.unet_channels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        **structure,
    )


def clip_config(text: TextSize, tokenizer: CLIPTokenizer, *, activation: str) -> CLIPTextConfig:
    """The configuration of a CLIP text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text.width,
        intermediate_size=text.width * 4,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=text.width,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
