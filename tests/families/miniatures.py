"""Miniatures of the families for which the package has none: the real classes, with random weights.

What distinguishes each is kept: one encoder and 1x1 convolutions around its attention (SD 1.5); linear projections and
v-prediction (SD 2.1); CLIP's states padded to T5's width, joint attention whose last block drops the text (SD3), a
second attention and normalised queries (SD3.5), packed latents, single blocks, rotary positions and an embedded
guidance scale (FLUX.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from runner.embedded.miniature import NOISE, TEST, clip_config, head_counts, make_unet, make_vae, seeded
from runner.embedded.tokenizer import END, WORDS, make_tokenizer

LATENT_CHANNELS = 16
HEADS, HEAD_WIDTH = 2, 16
T5_WIDTH = 64
LONGEST_T5 = 512
PROMPT_TOKENS = 77
WORD_BEGIN = "▁"
"""How T5 writes a space."""


def build_sd15(*, seed: int = 0, prompt_tokens: int = 77) -> StableDiffusionPipeline:
    """An SD-1.5-shaped pipeline: one text encoder, the same number of attention heads on every level."""
    scheduler = PNDMScheduler(
        **NOISE, prediction_type="epsilon", set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1
    )
    tokenizer = make_tokenizer(WORDS, prompt_tokens=prompt_tokens, padding=END)
    return _build_sd(seed, tokenizer, scheduler, activation="quick_gelu", attention_head_dim=2)


def build_sd21(*, seed: int = 0, prompt_tokens: int = 77) -> StableDiffusionPipeline:
    """An SD-2.1-shaped pipeline: v-prediction, linear projections, heads of equal width, prompts padded with "!"."""
    scheduler = DDIMScheduler(
        **NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    tokenizer = make_tokenizer(WORDS, prompt_tokens=prompt_tokens, padding="!")
    heads = head_counts(TEST)
    return _build_sd(
        seed, tokenizer, scheduler, activation="gelu", attention_head_dim=heads, use_linear_projection=True
    )


def _build_sd(
    seed: int,
    tokenizer: CLIPTokenizer,
    scheduler: PNDMScheduler | DDIMScheduler,
    *,
    activation: str,
    **attention: Any,
) -> StableDiffusionPipeline:
    text, unet_levels = TEST.text[1], len(TEST.unet_channels)
    with seeded(seed):
        return StableDiffusionPipeline(
            vae=make_vae(TEST, scaling_factor=0.18215),
            text_encoder=CLIPTextModel(clip_config(text, tokenizer, activation=activation)),
            tokenizer=tokenizer,
            unet=make_unet(
                TEST,
                text_width=text.width,
                down_block_types=(*["CrossAttnDownBlock2D"] * (unet_levels - 1), "DownBlock2D"),
                up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (unet_levels - 1)),
                **attention,
            ),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def build_sd3(*, seed: int = 0) -> StableDiffusion3Pipeline:
    """An SD3-shaped pipeline: noise levels are shifted by 3."""
    return _build_sd3(seed, with_t5=True)


def build_sd35(*, seed: int = 0) -> StableDiffusion3Pipeline:
    """An SD3.5-medium-shaped pipeline without T5, as people save it to reduce memory."""
    return _build_sd3(seed, with_t5=False, dual_attention_layers=(0,), qk_norm="rms_norm")


def _build_sd3(seed: int, *, with_t5: bool, **structure: object) -> StableDiffusion3Pipeline:
    tokenizers = [make_tokenizer(WORDS, prompt_tokens=PROMPT_TOKENS, padding=padding) for padding in (END, "!")]
    t5 = make_t5_tokenizer(WORDS, prompt_tokens=LONGEST_T5) if with_t5 else None
    first, second = TEST.text
    with seeded(seed):
        return StableDiffusion3Pipeline(
            vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=CLIPTextModelWithProjection(clip_config(first, tokenizers[0], activation="quick_gelu")),
            text_encoder_2=CLIPTextModelWithProjection(clip_config(second, tokenizers[1], activation="gelu")),
            text_encoder_3=_t5(t5) if t5 else None,
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            tokenizer_3=t5,
            transformer=SD3Transformer2DModel(
                sample_size=TEST.latent_side,
                in_channels=LATENT_CHANNELS,
                out_channels=LATENT_CHANNELS,
                num_layers=2,
                attention_head_dim=HEAD_WIDTH,
                num_attention_heads=HEADS,
                joint_attention_dim=T5_WIDTH,
                caption_projection_dim=HEADS * HEAD_WIDTH,
                pooled_projection_dim=first.width + second.width,
                pos_embed_max_size=TEST.latent_side,
                **structure,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )


def build_flux(*, seed: int = 0) -> FluxPipeline:
    """A FLUX.1-dev-shaped pipeline: conditioned on a guidance scale, noise levels shifted by the image size."""
    tokenizer = make_tokenizer(WORDS, prompt_tokens=PROMPT_TOKENS, padding=END)
    t5 = make_t5_tokenizer(WORDS, prompt_tokens=LONGEST_T5)
    text = TEST.text[1]
    with seeded(seed):
        return FluxPipeline(
            vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=CLIPTextModel(clip_config(text, tokenizer, activation="quick_gelu")),
            text_encoder_2=_t5(t5),
            tokenizer=tokenizer,
            tokenizer_2=t5,
            transformer=FluxTransformer2DModel(
                in_channels=4 * LATENT_CHANNELS,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=HEAD_WIDTH,
                num_attention_heads=HEADS,
                joint_attention_dim=T5_WIDTH,
                pooled_projection_dim=text.width,
                guidance_embeds=True,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        )


def _vae(*, scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    levels = len(TEST.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=TEST.vae_channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=TEST.vae_groups,
        sample_size=TEST.sample_px,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=T5_WIDTH,
            d_kv=T5_WIDTH // 2,
            d_ff=T5_WIDTH,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def make_t5_tokenizer(words: Sequence[str], *, prompt_tokens: int) -> T5Tokenizer:
    """T5's tokenizer with `words` as one token each; anything in non-ASCII letters is unknown.

    `prompt_tokens` is its model_max_length, including the end token.
    """
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(chr(code), -10.0) for code in range(ord("!"), ord("~") + 1)]
    pieces = [*special, (WORD_BEGIN, -2.0), *letters, *((WORD_BEGIN + word, -3.0) for word in sorted(set(words)))]
    pieces = list(dict(pieces).items())
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=prompt_tokens)
