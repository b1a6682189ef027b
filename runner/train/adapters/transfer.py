"""Where an adapter's numbers lie in its own vector and in a pack's padded ones, and how they get there and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from runner.train.adapters.adapter import DOWN, MAGNITUDE, UP, WORDS, Adapter, Site

Parts = Mapping[tuple[Site, str], Tensor]
"""(layer, kind) -> what belongs to one adapter in the pack's vectors, as a view shaped like the adapter's own."""


class Transfer(Protocol):
    """Moves the numbers of one adapter, except those of new words, which are in no layer."""

    def load(self, own: Tensor) -> None:
        """Copy a vector laid out like the adapter's weights into the pack."""

    def collect(self) -> None:
        """Add the pack's gradients to the adapter's."""


class ByPart:
    """Copies one view after the other: on a CPU, four times as fast as by index, and no index takes up memory."""

    def __init__(self, adapter: Adapter, weights: Parts, gradients: Parts) -> None:
        self._adapter = adapter
        own = self._own(adapter.weights)
        self._weights, self._gradients = [weights[part] for part in own], [gradients[part] for part in own]
        self._of_weights = list(own.values())
        self._of_gradient = list(self._own(adapter.gradient).values())

    def _own(self, vector: Tensor) -> dict[tuple[Site, str], Tensor]:
        return {(site, kind): view for site, kind, view in self._adapter.parts(vector) if kind != WORDS}

    def load(self, own: Tensor) -> None:
        """See `Transfer`."""
        views = self._of_weights if own is self._adapter.weights else list(self._own(own).values())
        if views:  # torch refuses empty lists; an adapter may consist of new words alone
            torch._foreach_copy_(self._weights, views)

    def collect(self) -> None:
        """See `Transfer`."""
        if self._gradients:
            torch._foreach_add_(self._of_gradient, self._gradients)


class ByIndex:
    """Copies with one index for every number: a handful of operations, where launching each takes time.

    Args:
        numbered: where each number lies, counted from 0 in the vector of projections and from 0 in that of magnitudes.
        weights: the pack's vectors of projections and of magnitudes.
        gradients: the gradients of both.
    """

    def __init__(
        self, adapter: Adapter, numbered: Parts, weights: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]
    ) -> None:
        self._adapter, self._weights, self._gradients = adapter, weights, gradients
        there = torch.empty(len(adapter), dtype=torch.int64)
        for site, kind, view in adapter.parts(there):
            if kind != WORDS:
                view.copy_(numbered[site, kind])
        device = adapter.weights.device
        # One index for every number makes this as large as an optimizer moment.
        kind_of_index = torch.int32 if len(weights[0]) <= torch.iinfo(torch.int32).max else torch.int64
        self._own: Tensor | None = None  # everything
        self._of_magnitudes: tuple[Tensor, Tensor] | None = None  # in its own vector and in the pack's
        if adapter.words or MAGNITUDE in adapter.kinds:
            own, of_magnitudes = _numbers(adapter, DOWN, UP), _numbers(adapter, MAGNITUDE)
            self._own = own.to(device, kind_of_index)
            if len(of_magnitudes):
                self._of_magnitudes = of_magnitudes.to(device), there[of_magnitudes].to(device)
            there = there[own]
        self._low_rank = there.to(device, kind_of_index)

    def load(self, own: Tensor) -> None:
        """See `Transfer`."""
        low_rank, magnitudes = self._weights
        taken = own if self._own is None else own.index_select(0, self._own)
        low_rank.index_copy_(0, self._low_rank.long(), taken.to(low_rank.dtype))
        if self._of_magnitudes is not None:
            here, there = self._of_magnitudes
            magnitudes.index_copy_(0, there, own[here])

    def collect(self) -> None:
        """See `Transfer`."""
        low_rank, magnitudes = self._gradients
        gradient = self._adapter.gradient
        added = low_rank.index_select(0, self._low_rank)
        if self._own is None:
            gradient.add_(added)
        else:
            gradient.index_add_(0, self._own, added.float())
        if self._of_magnitudes is not None:
            here, there = self._of_magnitudes
            gradient.index_add_(0, here, magnitudes.index_select(0, there))


def _numbers(adapter: Adapter, *kinds: str) -> Tensor:
    """Indices of the numbers of the given kinds in an adapter's own vector."""
    wanted = torch.zeros(len(adapter), dtype=torch.bool)
    for _, kind, view in adapter.parts(wanted):
        view.fill_(kind in kinds)
    return wanted.nonzero()[:, 0]
