"""K adapters over one frozen base in one forward pass: slice k of the batch goes through adapter k.

While a pack is attached, each adapted layer computes its frozen part and the low-rank updates itself. Ranks are padded
with zeros to the largest rank at that layer, which is exact: padded rows get a zero gradient. The frozen weights are
not touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from runner.train.adapters.adapter import DOWN, MAGNITUDE, UP, WORDS, Adapter, Site
from runner.train.adapters.dora import Magnitudes
from runner.train.adapters.layer import Layer, Slices


class PackedAdapters:
    """The adapters of a pack, in compute precision, attached to the frozen components.

    Each forward pass must run inside `using`, which says how many rows of the batch belong to which adapter.
    """

    def __init__(self, components: Mapping[str, nn.Module], adapters: Sequence[Adapter], *, dtype: torch.dtype) -> None:
        self.adapters = list(adapters)
        self.drops = any(adapter.drops for adapter in adapters)
        self.slices = Slices()
        device = adapters[0].weights.device
        wanted = {(site.component, site.name): site for adapter in adapters for site in adapter.sites}
        self.sites = [
            wanted[component, name]
            for component, root in components.items()
            for name, _ in root.named_modules()
            if (component, name) in wanted
        ]
        self.ranks = [max(adapter.ranks.get(site, 0) for adapter in adapters) for site in self.sites]
        width = sum(rank * (site.down_units + site.out) for site, rank in zip(self.sites, self.ranks, strict=True))
        # Layer by layer, and adapter by adapter within a layer, so that a layer multiplies by one block of memory.
        self.weights = torch.zeros(len(adapters) * width, device=device, dtype=dtype)
        self.gradient = torch.zeros_like(self.weights)
        self.decomposed = {
            site: [MAGNITUDE in adapter.kinds and site in adapter.ranks for adapter in adapters] for site in self.sites
        }
        # Always fp32: near 1, the spacing of bf16 values is larger than what is learnt.
        self.magnitudes = torch.ones(
            len(adapters) * sum(site.out for site, each in self.decomposed.items() if any(each)), device=device
        )
        self.magnitude_gradient = torch.zeros_like(self.magnitudes)
        self.words = [self._words_of(adapter) for adapter in adapters]
        # One index for every number of every adapter makes this as large as an optimizer moment. Widening int32
        # during a copy costs nothing on a GPU, but up to a tenth of a small pack's step on a CPU.
        narrow = device.type != "cpu" and len(self.weights) <= torch.iinfo(torch.int32).max
        self._places = self._where_each_lies(device, torch.int32 if narrow else torch.int64)
        self.joint_gradient = torch.zeros(sum(map(len, adapters)), device=device)
        """All adapters' fp32 gradients as one vector, so that one reduction over the processes is enough."""
        for adapter, part in zip(adapters, self.joint_gradient.split([len(a) for a in adapters]), strict=True):
            part.copy_(adapter.gradient)
            adapter.gradient = part
        self._layers: list[tuple[nn.Module, Layer]] = []
        self._decomposed_layers: list[Layer] = []
        self._make_layers(components)
        self.refresh()
        self.attach()  # last: one that does not fit into the memory must not stay on the layers

    @staticmethod
    def _words_of(adapter: Adapter) -> dict[str, nn.Parameter]:
        """The vectors of an adapter's new words by text encoder; always fp32, since they are few and in no layer."""
        found = {name: nn.Parameter(view.clone()) for name, view in adapter.words_in(adapter.weights).items()}
        for vectors in found.values():
            vectors.grad = torch.zeros_like(vectors)
        return found

    def words_in_use(self) -> dict[str, nn.Parameter]:
        """The words of the adapter that owns the rows; no pass through the text encoders serves several adapters."""
        users = {index for index, _ in self.slices.rows}
        assert len(users) < 2, users
        return self.words[users.pop()] if users else {}

    def _views(self, vector: Tensor) -> Iterator[tuple[Site, Tensor, Tensor]]:
        count, start = len(self.adapters), 0
        for site, rank in zip(self.sites, self.ranks, strict=True):
            middle = start + count * rank * site.down_units
            end = middle + count * rank * site.out
            down = vector[start:middle].view(count, *site.shape(DOWN, rank))
            yield site, down, vector[middle:end].view(count, *site.shape(UP, rank))
            start = end

    def _magnitudes(self, vector: Tensor) -> dict[Site, Tensor]:
        """Views `[K, O]` for the layers in which some adapter has magnitudes."""
        views, start, count = {}, 0, len(self.adapters)
        for site, decomposed in self.decomposed.items():
            if any(decomposed):
                views[site] = vector[start : start + count * site.out].view(count, site.out)
                start += count * site.out
        return views

    def _where_each_lies(self, device: torch.device, dtype: torch.dtype) -> list[_Place]:
        padded = {site: (down, up) for site, down, up in self._views(torch.arange(len(self.weights)))}
        magnitudes = self._magnitudes(torch.arange(len(self.magnitudes)))
        places = []
        for row, adapter in enumerate(self.adapters):
            there = torch.empty(len(adapter), dtype=torch.int64)
            for site, kind, view in adapter.parts(there):
                if kind == WORDS:
                    continue
                if kind == MAGNITUDE:
                    view.copy_(magnitudes[site][row].view(view.shape))
                else:
                    rank, (down, up) = adapter.ranks[site], (each[row] for each in padded[site])
                    view.copy_(down[:rank] if kind == DOWN else up[:, :rank])
            if not adapter.words and MAGNITUDE not in adapter.kinds:
                places.append(_Place(there.to(device, dtype)))
                continue
            own, of_magnitudes = _numbers(adapter, DOWN, UP), _numbers(adapter, MAGNITUDE)
            to_magnitudes = (of_magnitudes.to(device), there[of_magnitudes].to(device))
            low_rank = there[own].to(device, dtype)
            places.append(_Place(low_rank, own.to(device, dtype), to_magnitudes if len(of_magnitudes) else None))
        return places

    def _make_layers(self, components: Mapping[str, nn.Module]) -> None:
        scales = [[adapter.scales.get(site, 0.0) for adapter in self.adapters] for site in self.sites]
        # Always fp32: a scale such as 0.6 is not representable in bf16.
        scale_LK11 = torch.tensor(scales, device=self.weights.device)[..., None, None]
        views = zip(self._views(self.weights), self._views(self.gradient), scale_LK11, strict=True)
        magnitude = self._magnitudes(self.magnitudes)
        magnitude_gradient = self._magnitudes(self.magnitude_gradient)
        for (site, down, up), (_, down_gradient, up_gradient), scale_K11 in views:
            module = components[site.component].get_submodule(site.name)
            magnitudes = None
            if site in magnitude:
                parameter = nn.Parameter(magnitude[site])
                parameter.grad = magnitude_gradient[site]
                magnitudes = Magnitudes(module, parameter, self.decomposed[site])
            layer = Layer(self, site, module, nn.Parameter(down), nn.Parameter(up), scale_K11, magnitudes)
            if magnitudes is not None:
                self._decomposed_layers.append(layer)
            # Autograd adds in place to an existing gradient, so it lands in the pack's single vector.
            layer.down.grad, layer.up.grad = down_gradient, up_gradient
            self._layers.append((module, layer))

    def attach(self) -> None:
        """Replace the forward passes of the layers, also after `detach(for_good=False)`."""
        for module, layer in self._layers:
            module.forward = layer.forward

    def detach(self, *, for_good: bool = True) -> None:
        """Restore the layers of the frozen components; with `for_good=False`, `attach` can be called again."""
        for module, _ in self._layers:
            del module.forward
        if for_good:  # the layers refer to their pack and would keep it in memory
            self._layers.clear()
            self._decomposed_layers.clear()

    def settle(self) -> None:
        """Keep only the copy of all weights that sampling needs; nothing can be changed or trained afterwards."""
        for _, layer in self._layers:
            layer.down.grad = layer.up.grad = None
            if layer.magnitudes is not None:
                layer.magnitudes.magnitude_KO.grad = None
        self.gradient, self.magnitude_gradient = self.gradient.new_empty(0), self.magnitude_gradient.new_empty(0)
        self.joint_gradient = self.joint_gradient.new_empty(0)
        self._places.clear()
        for adapter in self.adapters:
            adapter.weights = adapter.gradient = adapter.weights.new_empty(0)

    @contextmanager
    def using(self, rows: Sequence[tuple[int, int]], sample_ids: Sequence[Sequence[int]] = ()) -> Iterator[None]:
        """In this context, forward passes belong to adapters as `rows` says: (adapter, number of rows), in batch order.

        Args:
            sample_ids: global sample indices of each slice while training, which key the dropout; without them
                nothing is dropped.
        """
        before = self.slices
        self.slices = Slices(tuple(rows), tuple(sample_ids))
        try:
            yield
        finally:
            self.slices = before

    @contextmanager
    def showing(self, index: int, weights: Tensor) -> Iterator[None]:
        """In this context, an adapter computes with weights other than its own, such as their average."""
        self._load({index: weights})
        try:
            yield
        finally:
            self._load({index: self.adapters[index].weights})

    def refresh(self) -> None:
        """Copy every adapter's fp32 weights into the compute copies."""
        self._load({index: adapter.weights for index, adapter in enumerate(self.adapters)})

    @torch.no_grad()
    def _load(self, weights: Mapping[int, Tensor]) -> None:
        for index, vector in weights.items():
            place = self._places[index]
            if place.magnitudes is not None:
                own, there = place.magnitudes
                self.magnitudes.index_copy_(0, there, vector[own])
            low_rank = vector if place.own is None else vector.index_select(0, place.own)
            self.weights.index_copy_(0, place.low_rank.long(), low_rank.to(self.weights.dtype))
            for name, view in self.adapters[index].words_in(vector).items():
                self.words[index][name].copy_(view)
        for layer in self._decomposed_layers:
            layer.measure()

    @torch.no_grad()
    def collect(self) -> None:
        """Add what the backward passes accumulated to the adapters' fp32 gradients, and clear it."""
        for adapter, place in zip(self.adapters, self._places, strict=True):
            low_rank = self.gradient.index_select(0, place.low_rank)
            if place.own is None:
                adapter.gradient.add_(low_rank)
            else:
                adapter.gradient.index_add_(0, place.own, low_rank.float())
            if place.magnitudes is not None:
                own, there = place.magnitudes
                adapter.gradient.index_add_(0, own, self.magnitude_gradient.index_select(0, there))
        for adapter, words in zip(self.adapters, self.words, strict=True):
            for name, view in adapter.words_in(adapter.gradient).items():
                gradient = words[name].grad
                assert gradient is not None
                view.add_(gradient)
        self._clear()

    def forget(self) -> None:
        """Discard all gradients."""
        self._clear()
        self.joint_gradient.zero_()

    def _clear(self) -> None:
        self.gradient.zero_()
        self.magnitude_gradient.zero_()
        for words in self.words:
            for vectors in words.values():
                assert vectors.grad is not None
                vectors.grad.zero_()


def _numbers(adapter: Adapter, *kinds: str) -> Tensor:
    """Indices of the numbers of the given kinds in an adapter's own vector."""
    wanted = torch.zeros(len(adapter), dtype=torch.bool)
    for _, kind, view in adapter.parts(wanted):
        view.fill_(kind in kinds)
    return wanted.nonzero()[:, 0]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an adapter's numbers lie in its own vector and in the pack's padded ones."""

    low_rank: Tensor
    """Indices of its projections in the pack; int32 on a GPU where that is wide enough."""
    own: Tensor | None = None
    """Their indices in its own vector, if that holds anything else."""
    magnitudes: tuple[Tensor, Tensor] | None = None
    """Indices of its magnitudes in its own vector and in the pack."""
