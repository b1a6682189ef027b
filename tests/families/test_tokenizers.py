"""Captions become as many tokens as the model takes, padded in each tokenizer's way, and cuts are reported."""

from __future__ import annotations

from pathlib import Path

import torch

from runner.families import sdxl


def test_captions_that_do_not_fit_are_named(sdxl_folder: Path) -> None:
    tokenizers = sdxl.load_tokenizers(sdxl_folder)
    short, long = "a red house", "house " * tokenizers.limit

    assert tokenizers.too_long([short, long]) == [long]
    exact = " ".join(["house"] * (tokenizers.limit - 2))
    assert tokenizers.too_long([exact, exact + " house"]) == [exact + " house"]


def test_each_tokenizer_pads_to_its_limit_with_its_own_token(sdxl_folder: Path) -> None:
    tokenizers = sdxl.load_tokenizers(sdxl_folder)
    first, second = tokenizers.ids(["a red house", "house " * 200])

    assert first.shape == second.shape == (2, tokenizers.limit)
    assert first[0, -1] == tokenizers.each[0].eos_token_id
    assert second[0, -1] == tokenizers.each[1].convert_tokens_to_ids("!")
    assert torch.equal(first[:, -1], torch.full((2,), tokenizers.each[0].eos_token_id))
