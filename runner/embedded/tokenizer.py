"""CLIP's tokenizer with a vocabulary made here.

Takes a list of words, returns a `CLIPTokenizer` that encodes each of them as one token and spells everything else in
bytes, so that any text can be encoded. Knows nothing about models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from runner.embedded.draw import BACKGROUNDS, COLOURS, SHAPES

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# The words in the captions of the drawn world, and concepts to teach, on which the embedded model is not trained.
WORLD_WORDS = ("a", "an", "on", "background", *COLOURS, *BACKGROUNDS, *SHAPES)
CONCEPT_WORDS = tuple("house face tree flower robot roof door sks style photo picture drawing of in the".split())  # noqa: SIM905
WORDS: tuple[str, ...] = (*WORLD_WORDS, *CONCEPT_WORDS)


def make_tokenizer(words: Sequence[str], *, prompt_tokens: int, padding: str) -> CLIPTokenizer:
    """A tokenizer with `words` (lower-case letters) as one token each.

    `prompt_tokens` is its model_max_length, begin and end included; `padding` is a token of the vocabulary.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(words)
    # As in CLIP's own vocabulary, "!" gets id 0. No duplicates: two merges may end in the same piece.
    pieces = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges), BEGIN, END])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=prompt_tokens, pad_token=padding)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, by frequency and then alphabetically, until each word is a single token."""
    splits = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in splits for pair in pairwise(parts)):
        pair = min(pairs, key=lambda candidate: (-pairs[candidate], candidate))
        merges.append(pair)
        splits = [_merge(parts, pair) for parts in splits]
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    index = 0
    while index < len(parts):
        found = tuple(parts[index : index + 2]) == pair
        merged.append("".join(pair) if found else parts[index])
        index += 2 if found else 1
    return merged
