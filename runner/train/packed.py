"""K adapters over one frozen base in one forward pass: slice k of the batch goes through adapter k.

Each adapted layer computes its frozen part and the low-rank updates in its place while a pack is attached. Ranks
are padded with zeros to the pack's largest, which is exact: padded rows get a zero gradient. The frozen weights
themselves are not touched.

# Shape suffixes: K adapters, N rows of the batch, T tokens, I O layer inputs and outputs, R padded rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.train.adapter import Adapter, Site
from runner.train.low_rank import Geometry, LowRankConv2d, LowRankLinear
from runner.train.randomness import torch_seed


class PackedAdapters:
    """The adapters of a pack, in compute precision, attached to the frozen components.

    `rows` must name, before each forward pass, how many rows of the batch belong to which adapter.
    """

    def __init__(self, components: Mapping[str, nn.Module], adapters: Sequence[Adapter], *, dtype: torch.dtype) -> None:
        self.adapters = list(adapters)
        self.rank = max(adapter.rank for adapter in adapters)
        self.scales = [adapter.scale for adapter in adapters]
        self.rows: tuple[tuple[int, int], ...] = ()
        self.sample_ids: tuple[Sequence[int], ...] = ()
        self.alike: slice | None = None
        """The adapters in use, where they are neighbours with as many rows each."""
        device = adapters[0].weights.device
        self.scale_K11 = torch.tensor(self.scales, device=device, dtype=dtype).view(-1, 1, 1)
        wanted = {(site.component, site.name): site for adapter in adapters for site in adapter.sites}
        sites = [
            wanted[component, name]
            for component, root in components.items()
            for name, _ in root.named_modules()
            if (component, name) in wanted
        ]
        width = sum(self.rank * (site.down_units + site.out) for site in sites)
        # Layer by layer, and within a layer adapter by adapter: what a layer multiplies by is one block of memory.
        self.weights = torch.zeros(len(adapters) * width, device=device, dtype=dtype)
        self.gradient = torch.zeros_like(self.weights)
        self._places = self._where_each_lies(sites, device)
        self._joint_gradient = torch.zeros(sum(map(len, adapters)), device=device)
        for adapter, part in zip(adapters, self._joint_gradient.split([len(a) for a in adapters]), strict=True):
            part.copy_(adapter.gradient)
            adapter.gradient = part
        self.drops = any(adapter.dropout for adapter in adapters)
        self._modules: list[nn.Module] = []
        self._attach(components, sites)
        self.refresh()

    def _views(self, vector: Tensor, sites: Sequence[Site]) -> Iterator[tuple[Site, Tensor, Tensor]]:
        count, start = len(self.adapters), 0
        for site in sites:
            middle = start + count * self.rank * site.down_units
            end = middle + count * self.rank * site.out
            down = vector[start:middle].view(count, *site.down_shape(self.rank))
            yield site, down, vector[middle:end].view(count, *site.up_shape(self.rank))
            start = end

    def _where_each_lies(self, sites: Sequence[Site], device: torch.device) -> list[Tensor]:
        """For each adapter, where every number of its own vector lies in the pack's padded one."""
        numbers = torch.arange(len(self.weights))
        padded = {(site.component, site.name): (down, up) for site, down, up in self._views(numbers, sites)}
        places = []
        for row, adapter in enumerate(self.adapters):
            parts = []
            for site in adapter.sites:
                down, up = (each[row] for each in padded[site.component, site.name])
                parts += [down[: adapter.rank].reshape(-1), up[:, : adapter.rank].reshape(-1)]
            places.append(torch.cat(parts).to(device))
        return places

    def _attach(self, components: Mapping[str, nn.Module], sites: Sequence[Site]) -> None:
        gradients = self._views(self.gradient, sites)
        for (site, down, up), (_, down_gradient, up_gradient) in zip(
            self._views(self.weights, sites), gradients, strict=True
        ):
            module = components[site.component].get_submodule(site.name)
            layer = _Layer(self, site, module, nn.Parameter(down), nn.Parameter(up))
            # Autograd adds in place to a gradient that is there already: it lands in the pack's one vector.
            layer.down.grad, layer.up.grad = down_gradient, up_gradient
            self._modules.append(layer.module)
            layer.module.forward = layer.forward

    def detach(self) -> None:
        """Let go of the layers; the frozen components are as they were."""
        for module in self._modules:
            del module.forward
        self._modules.clear()

    @contextmanager
    def using(self, rows: Sequence[tuple[int, int]], sample_ids: Sequence[Sequence[int]] = ()) -> Iterator[None]:
        """Within it, forward passes belong to adapters as `rows` says: (adapter, number of rows), in batch order.

        Args:
            sample_ids: global sample indices of each slice while training, to which dropout is keyed; none given
                means that nothing is dropped.
        """
        before = self.rows, self.sample_ids, self.alike
        self.rows, self.sample_ids, self.alike = tuple(rows), tuple(sample_ids), _alike(rows)
        try:
            yield
        finally:
            self.rows, self.sample_ids, self.alike = before

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy every adapter's fp32 weights into the compute copies."""
        for adapter, places in zip(self.adapters, self._places, strict=True):
            self.weights.index_copy_(0, places, adapter.weights.to(self.weights.dtype))

    @torch.no_grad()
    def collect(self) -> None:
        """Add what the backward passes left to the adapters' fp32 gradients, and clear it."""
        for adapter, places in zip(self.adapters, self._places, strict=True):
            adapter.gradient.add_(self.gradient.index_select(0, places))
        self.gradient.zero_()

    @property
    def joint_gradient(self) -> Tensor:
        """All adapters' fp32 gradients as one vector, for a single reduction over the processes."""
        return self._joint_gradient


class _Layer:
    """The adapters of one frozen layer."""

    def __init__(
        self, pack: PackedAdapters, site: Site, module: nn.Module, down: nn.Parameter, up: nn.Parameter
    ) -> None:
        self.pack, self.site, self.module, self.down, self.up = pack, site, module, down, up
        self.frozen = module.forward  # the class's own, bound; the instance's is replaced by `forward`

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the updates of the adapters whose rows these are."""
        rows = self.pack.rows
        if not rows:
            return self.frozen(x)  # type: ignore[no-any-return]
        drops = self.pack.drops and bool(self.pack.sample_ids)
        if not drops and self.pack.alike is not None:
            return self._fused(x, self.pack.alike)
        return self._sliced(self._dropped(x) if drops else x, self.frozen(x))

    def _fused(self, x: Tensor, adapters: slice) -> Tensor:
        """Every adapter has as many rows."""
        weight, bias = self.module.weight, self.module.bias
        down: Tensor = self.down
        up: Tensor = self.up
        scale = self.pack.scale_K11
        if adapters.stop - adapters.start < len(scale):
            down, up, scale = down[adapters], up[adapters], scale[adapters]
        if isinstance(self.module, nn.Conv2d):
            geometry = _geometry(self.module)
            return LowRankConv2d.apply(x, weight, bias, down, up.flatten(2), scale, geometry)  # type: ignore[no-any-return]
        x_KMI = x.reshape(len(scale), -1, x.shape[-1])
        output_KMO = LowRankLinear.apply(x_KMI, weight, bias, down, up, scale)
        return output_KMO.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    def _sliced(self, x: Tensor, output: Tensor) -> Tensor:
        """Adapters have rows in any number, or inputs are dropped."""
        lengths = [length for _, length in self.pack.rows]
        downs, ups = self._each(self.down), self._each(self.up)
        parts = []
        for (row, _), x_k, y_k in zip(self.pack.rows, x.split(lengths), output.split(lengths), strict=True):
            parts.append(torch.add(y_k, self._update(x_k, downs[row], ups[row]), alpha=self.pack.scales[row]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _update(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        if isinstance(self.module, nn.Conv2d):
            return F.conv2d(F.conv2d(x, down, None, *_geometry(self.module)), up)
        return F.linear(F.linear(x, down), up)

    def _each(self, stacked: Tensor) -> Sequence[Tensor]:
        # For one adapter a view: unbinding would copy the gradient once more.
        return [stacked.squeeze(0)] if stacked.shape[0] == 1 else stacked.unbind(0)

    def _dropped(self, x: Tensor) -> Tensor:
        pack = self.pack
        masks = []
        for (row, _), ids in zip(pack.rows, pack.sample_ids, strict=True):
            adapter = pack.adapters[row]
            masks += [self._mask(adapter, index, x) for index in ids]
        return x * torch.stack(masks)

    def _mask(self, adapter: Adapter, sample: int, x: Tensor) -> Tensor:
        if not adapter.dropout:
            return torch.ones_like(x[0])
        seed = torch_seed(adapter.seed, "dropout", self.site.component, self.site.name, sample)
        draw = torch.rand(x.shape[1:], generator=torch.Generator(x.device).manual_seed(seed), device=x.device)
        return (draw >= adapter.dropout).to(x.dtype) / (1 - adapter.dropout)


def _geometry(module: nn.Conv2d) -> Geometry:
    stride, padding, dilation = module.stride, module.padding, module.dilation
    assert not isinstance(padding, str), padding
    return (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1])


def _alike(rows: Sequence[tuple[int, int]]) -> slice | None:
    if not rows:
        return None
    first = rows[0][0]
    neighbours = [row for row, _ in rows] == list(range(first, first + len(rows)))
    return slice(first, first + len(rows)) if neighbours and len({length for _, length in rows}) == 1 else None
