"""Captions as the denoiser takes them: looked up where the encoders are frozen, computed where they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from runner.families.family import Family, Text, TextStack
from runner.train.samples import EMPTY


class Conditioner(Protocol):
    """Gives the embeddings of captions."""

    def text(self, captions: Sequence[str]) -> Text:
        """A row for each caption, on the training device."""


class EncodedText:
    """Captions that were encoded before the training: rows of stacked tensors."""

    def __init__(self, encoded: dict[str, Text], *, zeros_for_empty: bool, device: torch.device) -> None:
        self.rows = {caption: index for index, caption in enumerate(encoded)}
        names = next(iter(encoded.values())).keys()
        self.tensors = {name: torch.stack([text[name] for text in encoded.values()]).to(device) for name in names}
        if zeros_for_empty and EMPTY in self.rows:
            for tensor in self.tensors.values():
                tensor[self.rows[EMPTY]] = 0

    def text(self, captions: Sequence[str]) -> Text:
        """The rows of these captions."""
        device = next(iter(self.tensors.values())).device
        rows = torch.tensor([self.rows[caption] for caption in captions], device=device)
        return {name: tensor.index_select(0, rows) for name, tensor in self.tensors.items()}


class LiveText:
    """Captions encoded at every step, through the text encoders' adapters."""

    def __init__(self, family: Family, stack: TextStack, captions: Sequence[str], *, device: torch.device) -> None:
        self.family, self.stack, self.device = family, stack, device
        self.rows = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
        self.ids = [ids.to(device) for ids in stack.token_ids(list(self.rows))]

    def text(self, captions: Sequence[str]) -> Text:
        """Encode these captions with the adapters that are in use."""
        rows = torch.tensor([self.rows[caption] for caption in captions], device=self.device)
        text = self.family.encode_text(self.stack, [ids.index_select(0, rows) for ids in self.ids])
        if not self.stack.zeros_for_empty or EMPTY not in captions:
            return text
        keep = torch.tensor([caption != EMPTY for caption in captions], device=self.device)
        return {name: _masked(tensor, keep) for name, tensor in text.items()}


def _masked(tensor: Tensor, keep_B: Tensor) -> Tensor:
    return tensor * keep_B.view(-1, *(1 for _ in tensor.shape[1:])).to(tensor.dtype)
