"""Captions as input of the denoiser: looked up if the encoders are frozen, computed if they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from runner.families.family import Family, Text, TextStack
from runner.train.inputs.samples import EMPTY, Caption
from runner.train.place import sent

LARGEST_ON_DEVICE_BYTES = 1 << 30
"""Larger sets of embeddings stay on the host: SDXL's take 0.6 MiB per caption, and each job has its own."""


class Conditioner(Protocol):
    """Provides the embeddings of captions."""

    def text(self, captions: Sequence[Caption]) -> Text:
        """One row per caption, on the training device."""


class EncodedText:
    """Captions that were encoded before training: rows of stacked tensors."""

    def __init__(self, encoded: Mapping[str, Text], *, zeros_for_empty: bool, device: torch.device) -> None:
        self.device = device
        self.rows: dict[Caption, int] = {caption: index for index, caption in enumerate(encoded)}
        self.rows[None] = len(encoded) if zeros_for_empty else self.rows[EMPTY]
        empty = encoded[EMPTY]
        texts = [*encoded.values(), {name: torch.zeros_like(tensor) for name, tensor in empty.items()}]
        self.tensors = {name: torch.stack([text[name] for text in texts]) for name in empty}
        if sum(tensor.nbytes for tensor in self.tensors.values()) <= LARGEST_ON_DEVICE_BYTES:
            self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}

    def text(self, captions: Sequence[Caption]) -> Text:
        """The rows of these captions."""
        rows = torch.tensor([self.rows[caption] for caption in captions])
        return {
            name: sent(tensor.index_select(0, sent(rows, tensor.device)), self.device)
            for name, tensor in self.tensors.items()
        }


class StoredText:
    """Captions that were encoded before training and are read from disk at every step."""

    def __init__(self, encoded: Mapping[str, Text], *, zeros_for_empty: bool, device: torch.device) -> None:
        self.encoded, self.zeros_for_empty, self.device = encoded, zeros_for_empty, device

    def text(self, captions: Sequence[Caption]) -> Text:
        """The embeddings of these captions."""
        rows = {caption: self.encoded[caption or EMPTY] for caption in dict.fromkeys(captions)}
        if None in rows and self.zeros_for_empty:
            rows[None] = {name: torch.zeros_like(tensor) for name, tensor in rows[None].items()}
        return {
            name: sent(torch.stack([rows[caption][name] for caption in captions]), self.device)
            for name in rows[captions[0]]
        }


class LiveText:
    """Captions encoded at every step, through the text encoders' adapters."""

    def __init__(self, family: Family, stack: TextStack, captions: Sequence[str], *, device: torch.device) -> None:
        self.family, self.stack, self.device = family, stack, device
        self.rows = {caption: index for index, caption in enumerate(dict.fromkeys([*captions, EMPTY]))}
        self.ids = [ids.to(device) for ids in stack.tokenizers.ids(list(self.rows))]

    def text(self, captions: Sequence[Caption]) -> Text:
        """Encode these captions with the adapters in use."""
        rows = sent(torch.tensor([self.rows[caption or EMPTY] for caption in captions]), self.device)
        text = self.family.encode_text(self.stack, [ids.index_select(0, rows) for ids in self.ids])
        if not self.stack.zeros_for_empty or None not in captions:
            return text
        keep = sent(torch.tensor([caption is not None for caption in captions]), self.device)
        return {name: _masked(tensor, keep) for name, tensor in text.items()}


def _masked(tensor: Tensor, keep_B: Tensor) -> Tensor:
    return tensor * keep_B.view(-1, *(1 for _ in tensor.shape[1:])).to(tensor.dtype)
