"""CLIP's and T5's tokenizers with a vocabulary made here.

Takes a list of words, gives a `CLIPTokenizer` that knows each of them as one token and spells everything else in bytes,
so that any text can be encoded. Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

from runner.embedded.draw import BACKGROUNDS, COLOURS, SHAPES

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_BEGIN = "▁"
"""How T5 writes a space."""
# What the captions of the drawn world are made of, and concepts to teach, on which the embedded model is not trained.
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


def make_t5_tokenizer(words: Sequence[str], *, prompt_tokens: int) -> T5Tokenizer:
    """T5's tokenizer with `words` as one token each, and what is spelt in other letters than ASCII's unknown.

    `prompt_tokens` is its model_max_length, the end included.
    """
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(chr(code), -10.0) for code in range(ord("!"), ord("~") + 1)]
    pieces = [*special, (WORD_BEGIN, -2.0), *letters, *((WORD_BEGIN + word, -3.0) for word in sorted(set(words)))]
    pieces = list(dict(pieces).items())
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=prompt_tokens)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first and then by alphabet, until each word is a single token."""
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
