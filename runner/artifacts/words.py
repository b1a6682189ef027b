"""Writes new words, one file each, for diffusers, ComfyUI and A1111; reads them back before a job is completed.

The layouts: `emb_params` for a single text encoder, `clip_l` and `clip_g` for SDXL's two; one row per vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.artifacts.verify import LARGEST_DIFFERENCE
from runner.errors import ArtifactError
from runner.families.family import Family, TextStack
from runner.paths import JobPaths, atomic_file
from runner.schema.method import NewTokens
from runner.system.tensor_file import TOKEN, order_metadata

if TYPE_CHECKING:
    from runner.train.job_run import JobRun

OLD_EOS_ID = 2
"""The id in configurations written before transformers 4.31, whatever the tokenizer's id is."""


def write_words(
    paths: JobPaths, family: Family, settings: NewTokens, words: Mapping[str, Tensor], *, step: int
) -> dict[str, Path]:
    """Write each word to its file; returns word -> file.

    Args:
        words: text encoder -> vectors of all words, `[V, D]`.
        step: optimizer steps that they were trained for.
    """
    files = {}
    for index, token in enumerate(settings.tokens):
        rows = slice(index * settings.vectors, (index + 1) * settings.vectors)
        tensors = {family.token_keys[name]: vectors[rows].contiguous() for name, vectors in words.items()}
        files[token] = paths.word(token)
        with atomic_file(files[token]) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", TOKEN: token, "step": str(step)})
            order_metadata(temporary)
    return files


def check_words(
    run: JobRun, files: Mapping[str, Path], use_rows: Callable[[int], AbstractContextManager[None]]
) -> dict[str, float]:
    """Load the files into fresh text encoders and compare their embeddings of the job's captions.

    Returns:
        The difference as a share of the norm, for the words' files together.

    Raises:
        ArtifactError: it is beyond rounding, or a file cannot be loaded.
    """
    base = run.base
    captions = [each for each in run.materials.captions if any(token in each for token in files)][:8]
    with torch.no_grad(), use_rows(len(captions)):
        trained = run.materials.conditioner.text(captions)
    stack = base.family.load_text(base.folder, base.settings.variant, base.dtype)
    for encoder in stack.encoders:
        encoder.to(base.place.device)
    pipeline: Any = base.family.pipeline(denoiser=base.denoiser, text=stack, vae=None, scheduler=base.sampler("model"))
    load_words(pipeline, base.family, stack, files)
    spoken = [pipeline.maybe_convert_prompt(captions, tokenizer) for tokenizer in stack.tokenizers.each]
    ids = [
        tokenizer(each, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        for tokenizer, each, length in zip(stack.tokenizers.each, spoken, stack.tokenizers.lengths, strict=True)
    ]
    with torch.no_grad():
        loaded = base.family.encode_text(stack, [each.to(base.place.device) for each in ids])
    worst = 0.0
    for name, tensor in trained.items():
        off = torch.linalg.vector_norm((loaded[name] - tensor).float())
        worst = max(worst, float(off / torch.linalg.vector_norm(tensor.float())))
    if not worst <= LARGEST_DIFFERENCE[base.dtype]:
        names = ", ".join(file.name for file in files.values())
        raise ArtifactError(
            f"{run.paths.lora}: loaded into diffusers, {names} give other embeddings of the captions than were "
            f"trained, by {worst:.1e} of their norm"
        )
    return {"new words": worst}


def load_words(pipeline: Any, family: Family, stack: TextStack, files: Mapping[str, Path]) -> None:
    """Teach a diffusers pipeline words from their files.

    Raises:
        ArtifactError: diffusers cannot load one.
    """
    for token, file in files.items():
        tensors = load_file(file)
        for name, encoder, tokenizer in zip(
            family.adapter_components[1:], stack.encoders, stack.tokenizers.each, strict=True
        ):
            try:
                pipeline.load_textual_inversion(
                    tensors[family.token_keys[name]],
                    token=token,
                    text_encoder=encoder,
                    tokenizer=tokenizer,
                )
            except (KeyError, ValueError, RuntimeError) as error:
                raise ArtifactError(f"{file}: diffusers cannot load it ({error})") from error
    for encoder, tokenizer in zip(stack.encoders, stack.tokenizers.each, strict=True):
        heed_end_of_text(encoder, tokenizer)


def heed_end_of_text(encoder: Any, tokenizer: Any) -> None:
    """Take the pooled state at the end of the text, where an old configuration takes it at the largest id."""
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == OLD_EOS_ID:
            module.eos_token_id = tokenizer.eos_token_id
