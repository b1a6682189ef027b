"""K adapters over one frozen base in one forward pass: slice k of the batch goes through adapter k.

While a pack is attached, each adapted layer computes its frozen part and the low-rank updates itself. Ranks are padded
with zeros to the largest rank at that layer, which is exact: padded rows get a zero gradient. The frozen weights are
not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from runner.train.adapters.adapter import DOWN, MAGNITUDE, UP, Adapter, Site
from runner.train.adapters.dora import Magnitudes
from runner.train.adapters.layer import Layer, Slices
from runner.train.adapters.transfer import ByIndex, ByPart, Transfer

MOST_KEPT_NUMBERS = 16 * 2**20
"""If the layers that an adapter changes have no more numbers than this, its merged weights are kept while images are
drawn; on a CPU, merging anew for each pass takes a tenth of the time. 64 MiB."""


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
        # By its own layers, so that an image has the same bits whatever else is in the pack.
        self.keeps_merged = [
            sum(site.out * site.down_units for site in adapter.sites) <= MOST_KEPT_NUMBERS for adapter in adapters
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
        self.joint_gradient = torch.zeros(sum(map(len, adapters)), device=device)
        """All adapters' fp32 gradients as one vector, so that one reduction over the processes is enough."""
        for adapter, part in zip(adapters, self.joint_gradient.split([len(a) for a in adapters]), strict=True):
            part.copy_(adapter.gradient)
            adapter.gradient = part
        self._transfers = self._make_transfers()
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

    def _make_transfers(self) -> list[Transfer]:
        return self._by_part() if self.weights.device.type == "cpu" else self._by_index()

    def _by_part(self) -> list[Transfer]:
        weights = self._shares(self.weights, self.magnitudes)
        gradients = self._shares(self.gradient, self.magnitude_gradient)
        return [ByPart(*each) for each in zip(self.adapters, weights, gradients, strict=True)]

    def _by_index(self) -> list[Transfer]:
        numbered = self._shares(torch.arange(len(self.weights)), torch.arange(len(self.magnitudes)))
        weights, gradients = (self.weights, self.magnitudes), (self.gradient, self.magnitude_gradient)
        each = zip(self.adapters, numbered, strict=True)
        return [ByIndex(adapter, share, weights, gradients) for adapter, share in each]

    def _shares(self, low_rank: Tensor, magnitudes: Tensor) -> list[dict[tuple[Site, str], Tensor]]:
        """What belongs to each adapter, as views of its own shapes into vectors laid out like the pack's."""
        shares: list[dict[tuple[Site, str], Tensor]] = [{} for _ in self.adapters]
        for site, down, up in self._views(low_rank):
            for share, adapter, down_k, up_k in zip(shares, self.adapters, down, up, strict=True):
                if (rank := adapter.ranks.get(site)) is not None:
                    share[site, DOWN], share[site, UP] = down_k[:rank], up_k[:, :rank]
        for site, view_KO in self._magnitudes(magnitudes).items():
            for share, own_O, decomposed in zip(shares, view_KO, self.decomposed[site], strict=True):
                if decomposed:
                    share[site, MAGNITUDE] = own_O.view(site.shape(MAGNITUDE, 1))
        return shares

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
        self._transfers.clear()
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
            self._transfers[index].load(vector)
            for name, view in self.adapters[index].words_in(vector).items():
                self.words[index][name].copy_(view)
        for layer in self._decomposed_layers:
            layer.measure()

    @torch.no_grad()
    def collect(self) -> None:
        """Add what the backward passes accumulated to the adapters' fp32 gradients, and clear it."""
        for transfer in self._transfers:
            transfer.collect()
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
