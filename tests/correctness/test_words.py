"""A fault of other trainers with new words, computed beside what this one does; the page is docs/correctness.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from tests.train.bench import Bench
from tests.train.test_words import WORDS


def test_the_state_of_the_text_is_not_taken_from_a_new_word(bench: Bench, sdxl_folder: Path) -> None:
    """The state of the whole text, taken from a new word

    Elsewhere: the configuration of SDXL's second text encoder gives 2 as the id of the end of the text. transformers
    then takes the state at the largest id as that of the whole text. After `tokenizer.add_tokens`, the largest id is
    that of a new word, and whatever follows it is ignored.

    Here: the encoder is given the id of a word that it knows, and that word's embedding is replaced. So the state is
    that of the end of the text, whatever the configuration says. The model card has the line that other programs need.
    """
    encoder: Any = CLIPTextModelWithProjection.from_pretrained(sdxl_folder / "text_encoder_2")
    tokenizer: Any = CLIPTokenizer.from_pretrained(sdxl_folder / "tokenizer_2")
    say_old(encoder)
    tokenizer.add_tokens(["<cat>"])
    encoder.resize_token_embeddings(len(tokenizer))
    captions = ["a <cat> beside a red circle", "a <cat> beside a blue star"]
    ids = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        elsewhere = encoder(ids).text_embeds
    assert torch.equal(elsewhere[0], elsewhere[1]), "both end at the new word"

    job = bench.job(sdxl_folder, method={**WORDS, "vectors": 1}, lora={"rank": 8})
    base = bench.base(job)
    say_old(base.text.encoders[1])
    conditioner = bench.materials(job, base).conditioner
    conditioner.__init__(  # type: ignore[misc]
        base.family, base.text, base.placed_tokens, job.experiment.method, captions, device=base.place.device
    )
    with torch.no_grad():
        here = conditioner.text(captions)["pooled"]
    assert float((here[0] - here[1]).norm() / here[0].norm()) > 1e-3


def say_old(encoder: Any) -> None:
    """As the configuration of SDXL's second encoder has it."""
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
