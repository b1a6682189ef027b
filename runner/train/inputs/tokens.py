"""New words of a job: where they occur in its captions, and their vectors, the only trained part of the encoders.

The encoders never see an id they do not know: a known word stands in for each new one, and its embedding is replaced.
So the pooled state of SDXL's second encoder, which older models take at the largest id, stays at the same place.

# Shape suffixes: N captions, L text tokens, V vectors of a job's words, D embedding width.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from runner.families.family import Family, Text, TextStack
from runner.schema.method import NewTokens
from runner.train.inputs.samples import Caption
from runner.train.inputs.text import LiveText
from runner.train.place import sent

NOWHERE = -1
"""In the places of a caption: no new word at this position."""


@dataclasses.dataclass(frozen=True)
class Words:
    """New words from several trainings: `NewTokens` without its training settings."""

    tokens: tuple[str, ...]
    initial: tuple[str, ...]
    """For each, the known word that stands in for it."""
    lengths: tuple[int, ...]
    """How many vectors each has."""


class PlacedTokens:
    """The embeddings of some encoders, with the vectors of new words put in their places.

    Args:
        encoders: by their names in the pipeline.
    """

    def __init__(self, encoders: Mapping[str, Any]) -> None:
        self.vectors_in_use: Callable[[], Mapping[str, Tensor]] = dict
        """The vectors `[V, D]` of the job that owns the rows, by encoder; empty if no job does."""
        self._places: Mapping[str, Tensor] = {}
        for name, encoder in encoders.items():
            module: nn.Module = encoder.get_input_embeddings()
            module.forward = partial(self._embed, name, module.forward)

    @contextmanager
    def at(self, places: Mapping[str, Tensor]) -> Iterator[None]:
        """In this context, encoded text has new words where `places` `[N, L]` says, by encoder."""
        self._places = places
        try:
            yield
        finally:
            self._places = {}

    def _embed(self, name: str, frozen: Callable[[Tensor], Tensor], ids_NL: Tensor) -> Tensor:
        embedded_NLD = frozen(ids_NL)
        places_NL, vectors_VD = self._places.get(name), self.vectors_in_use().get(name)
        if places_NL is None or vectors_VD is None:
            return embedded_NLD
        given_NLD = vectors_VD[places_NL.clamp(min=0)].to(embedded_NLD.dtype)
        return torch.where((places_NL != NOWHERE)[..., None], given_NLD, embedded_NLD)


class TokenText(LiveText):
    """Captions with new words, encoded at every step."""

    def __init__(
        self,
        family: Family,
        stack: TextStack,
        placed: PlacedTokens,
        settings: NewTokens | Words,
        captions: Sequence[str],
        *,
        device: torch.device,
    ) -> None:
        super().__init__(family, stack, captions, device=device)
        names = family.adapter_components[1:]
        read = [
            _Reader(tokenizer, length, settings).read(list(self.rows))
            for tokenizer, length in zip(stack.tokenizers.each, stack.tokenizers.lengths, strict=True)
        ]
        self.placed = placed
        self.ids = [ids.to(device) for ids, _ in read]
        self.places = {name: places.to(device) for name, (_, places) in zip(names, read, strict=True)}

    def text(self, captions: Sequence[Caption]) -> Text:
        """Encode these captions with the vectors of the job that owns the rows, or the initial words if none does."""
        rows = sent(torch.tensor([self.rows[caption or ""] for caption in captions]), self.device)
        with self.placed.at({name: places.index_select(0, rows) for name, places in self.places.items()}):
            return super().text(captions)


def first_vectors(family: Family, stack: TextStack, settings: NewTokens) -> dict[str, Tensor]:
    """Initial vectors: the embeddings of the words in `method.initial`, `[V, D]` by encoder."""
    found = {}
    for name, encoder, tokenizer, length in zip(
        family.adapter_components[1:], stack.encoders, stack.tokenizers.each, stack.tokenizers.lengths, strict=True
    ):
        ids = torch.tensor(_Reader(tokenizer, length, settings).initial)
        embeddings: Any = encoder
        found[name] = embeddings.get_input_embeddings().weight.detach()[ids].float().cpu()
    return found


def as_long(caption: str, settings: NewTokens) -> str:
    """A caption with the same number of tokens but no new words: each of their vectors becomes an `a`, one token."""
    for token in settings.tokens:
        caption = caption.replace(token, f" {' '.join(['a'] * settings.vectors)} ")
    return caption


class _Reader:
    """Turns captions into ids and places, for one tokenizer."""

    def __init__(self, tokenizer: Any, length: int, settings: NewTokens | Words) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.initial: list[int] = []
        """For each vector of each word, the id that stands in for it, cycling through the initial word's tokens."""
        for word, vectors in zip(settings.initial, settings.lengths, strict=True):
            pieces = tokenizer(word, add_special_tokens=False).input_ids
            self.initial += [pieces[index % len(pieces)] for index in range(vectors)]
        ends = list(itertools.accumulate(settings.lengths))
        self.rows = {
            token: range(end - vectors, end)
            for token, end, vectors in zip(settings.tokens, ends, settings.lengths, strict=True)
        }
        """The range of each word's vectors among all vectors."""

    def read(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids, places), each `[N, L]`; captions that are too long are truncated."""
        rows = [self._one(caption) for caption in captions]
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([places for _, places in rows])

    def _one(self, caption: str) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        places: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self.rows))})", caption):
            if rows := self.rows.get(part):
                ids += self.initial[rows.start : rows.stop]
                places += rows
            elif part.strip():
                pieces = self.tokenizer(part, add_special_tokens=False, truncation=False, verbose=False).input_ids
                ids += pieces
                places += [NOWHERE] * len(pieces)
        room = self.length - 2
        ids = [self.tokenizer.bos_token_id, *ids[:room], self.tokenizer.eos_token_id]
        places = [NOWHERE, *places[:room], NOWHERE]
        padding = self.length - len(ids)
        return ids + [self.tokenizer.pad_token_id] * padding, places + [NOWHERE] * padding
