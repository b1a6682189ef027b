"""One frozen layer with the adapters of a pack: its forward pass while they are attached.

# Shape suffixes: K adapters, N rows of the batch, M rows times tokens of one adapter, I O layer inputs and outputs,
# R padded rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.train.adapters.adapter import Site
from runner.train.adapters.dora import Magnitudes
from runner.train.adapters.dropout import input_mask, rank_masks
from runner.train.adapters.low_rank import Geometry, LowRankConv2d, LowRankLinear

if TYPE_CHECKING:
    from runner.train.adapters.packed import PackedAdapters


@dataclasses.dataclass(frozen=True)
class Slices:
    """Which rows of a forward pass belong to which adapter."""

    rows: tuple[tuple[int, int], ...] = ()
    """(adapter, number of rows), in batch order."""
    sample_ids: tuple[Sequence[int], ...] = ()
    """Global sample indices of each slice, which key the dropout; empty if nothing is dropped."""
    merged: dict[Layer, Tensor] = dataclasses.field(default_factory=dict, compare=False)
    """Weights with the updates of a small adapter merged into them, for all passes of these rows."""

    @cached_property
    def alike(self) -> slice | None:
        """The adapters in use, if they are adjacent and have the same number of rows."""
        if not self.rows:
            return None
        first = self.rows[0][0]
        neighbours = [row for row, _ in self.rows] == list(range(first, first + len(self.rows)))
        same = len({length for _, length in self.rows}) == 1
        return slice(first, first + len(self.rows)) if neighbours and same else None


class Layer:
    """The adapters of one frozen layer."""

    def __init__(
        self,
        pack: PackedAdapters,
        site: Site,
        module: nn.Module,
        down: nn.Parameter,
        up: nn.Parameter,
        scale_K11: Tensor,
        magnitudes: Magnitudes | None,
    ) -> None:
        self.pack, self.site, self.module, self.magnitudes = pack, site, module, magnitudes
        self.down, self.up, self.scale_K11 = down, up, scale_K11
        self.scales = [adapter.scales.get(site, 0.0) for adapter in pack.adapters]
        self.is_unscaled = all(scale == 1.0 for scale in self.scales)
        self.frozen = module.forward  # bound to the class; `forward` replaces the instance's own

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, including the updates of the adapters that own these rows."""
        slices = self.pack.slices
        if not slices.rows:
            return self.frozen(x)  # type: ignore[no-any-return]
        drops = self.pack.drops and bool(slices.sample_ids)
        if len(slices.rows) == 1 and not drops and self._is_cheaper_merged(x, slices.rows[0][0]):
            return self._merged(x, slices.rows[0][0])
        if not drops and slices.alike is not None:
            return self._fused(x, slices.alike)
        return self._sliced(x, self.frozen(x), drops=drops)

    def _is_cheaper_merged(self, x: Tensor, index: int) -> bool:
        """Whether it takes less to compute with a merged weight than to update the output.

        Only without gradients and only in fp32: in half precision, rounding would lose most of the update.
        """
        if torch.is_grad_enabled() or self.down.dtype != torch.float32:
            return False
        channels = 1 if isinstance(self.module, nn.Conv2d) else -1
        rows = x.numel() // x.shape[channels]
        return self.pack.keeps_merged[index] or rows > self.site.out

    def _merged(self, x: Tensor, index: int) -> Tensor:
        """The output with the update merged into the weight."""
        if self.site not in self.pack.adapters[index].ranks:
            return self.frozen(x)  # type: ignore[no-any-return]
        kept = self.pack.slices.merged
        weight = kept[self] if self in kept else self._merge(index)
        if self.pack.keeps_merged[index]:
            kept[self] = weight
        bias: Any = self.module.bias
        if isinstance(self.module, nn.Conv2d):
            return F.conv2d(x, weight, bias, *geometry_of(self.module))
        return F.linear(x, weight, bias)

    def _merge(self, index: int) -> Tensor:
        weight: Any = self.module.weight
        rank = self.pack.adapters[index].ranks[self.site]
        down_RI, up_OR = self.down[index, :rank].flatten(1), self.up[index, :, :rank].flatten(1)
        merged_OI = torch.addmm(weight.flatten(1), up_OR, down_RI, alpha=self.scales[index])
        factors = None if self.magnitudes is None else self.magnitudes.factors(slice(index, index + 1))
        if factors is not None:
            merged_OI *= factors.mT
        return merged_OI.view_as(weight)

    def measure(self) -> None:
        """Recompute the norms of DoRA after the weights have changed."""
        if self.magnitudes is not None:
            self.magnitudes.measure(self.down, self.up, self.scale_K11)

    def _fused(self, x: Tensor, adapters: slice) -> Tensor:
        """For adapters with the same number of rows each."""
        factors = None if self.magnitudes is None else self.magnitudes.factors(adapters)
        output = self._low_rank(x, adapters)
        if factors is None:
            return output
        # Written as a difference, it is exactly zero before anything is trained, in any precision.
        base = self._without_bias(output).unflatten(0, (len(factors), -1))
        change = base * self._along_channels(factors - 1, base)
        changed: Tensor = output + change.flatten(0, 1)
        return changed.to(output.dtype)

    def _along_channels(self, values: Tensor, output: Tensor) -> Tensor:
        """Values per output channel, `[O]` or `[K, O]`, reshaped to broadcast against an output."""
        before = output.dim() - values.dim()
        after = 2 if isinstance(self.module, nn.Conv2d) else 0
        return values.view(*values.shape[:-1], *[1] * (before - after), values.shape[-1], *[1] * after)

    def _low_rank(self, x: Tensor, adapters: slice) -> Tensor:
        down: Tensor = self.down
        up: Tensor = self.up
        scale = None if self.is_unscaled else self.scale_K11
        count = adapters.stop - adapters.start
        if count < len(self.scales):
            down, up = down[adapters], up[adapters]
            scale = None if scale is None else scale[adapters]
        if isinstance(self.module, nn.Conv2d):
            weight, bias, geometry = self.module.weight, self.module.bias, geometry_of(self.module)
            return LowRankConv2d.apply(x, weight, bias, down, up.flatten(2), scale, geometry)  # type: ignore[no-any-return]
        x_KMI = x.reshape(count, -1, x.shape[-1])
        output_KMO = LowRankLinear.apply(x_KMI, self.module, down, up, scale, self._gradients(adapters))
        return output_KMO.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    def _gradients(self, adapters: slice) -> tuple[Tensor, Tensor] | None:
        """Where the gradients of these adapters accumulate; None where nothing is trained."""
        down, up = self.down.grad, self.up.grad
        if down is None or up is None or not torch.is_grad_enabled():
            return None
        return (down, up) if len(self.scales) == adapters.stop - adapters.start else (down[adapters], up[adapters])

    def _sliced(self, x: Tensor, output: Tensor, *, drops: bool) -> Tensor:
        """For adapters with any number of rows each, or with dropout."""
        rows, ids = self.pack.slices.rows, self.pack.slices.sample_ids
        lengths = [length for _, length in rows]
        downs, ups = self._each(self.down), self._each(self.up)
        dropped = self._dropped(x) if drops else x
        parts = []
        for k, (d_k, y_k) in enumerate(zip(dropped.split(lengths), output.split(lengths), strict=True)):
            row = rows[k][0]
            masks = rank_masks(self.pack.adapters[row], self.site, ids[k], x) if drops else None
            update = self._update(d_k, downs[row], ups[row], masks)
            factors = None if self.magnitudes is None else self.magnitudes.factors(slice(row, row + 1))
            if factors is None:
                parts.append(torch.add(y_k, update, alpha=self.scales[row]))
                continue
            # As in peft: dropout applies to everything the magnitudes change, but not to the base layer's output.
            factor = self._along_channels(factors[0], y_k)
            drops_inputs = drops and self.pack.adapters[row].dropout
            base = self._without_bias(self.frozen(d_k) if drops_inputs else y_k)
            change = (factor - 1) * base + factor * self.scales[row] * update
            parts.append((y_k + change).to(y_k.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _update(self, x: Tensor, down: Tensor, up: Tensor, masks: Tensor | None) -> Tensor:
        if isinstance(self.module, nn.Conv2d):
            return F.conv2d(_masked(F.conv2d(x, down, None, *geometry_of(self.module)), masks, 1), up)
        return F.linear(_masked(F.linear(x, down), masks, x.dim() - 1), up)

    def _without_bias(self, output: Tensor) -> Tensor:
        bias: Any = self.module.bias
        return output if bias is None else output - self._along_channels(bias, output)

    def _each(self, stacked: Tensor) -> Sequence[Tensor]:
        # For one adapter, a view: unbinding would copy the gradient once more.
        return [stacked.squeeze(0)] if stacked.shape[0] == 1 else stacked.unbind(0)

    def _dropped(self, x: Tensor) -> Tensor:
        adapters, slices = self.pack.adapters, self.pack.slices
        if not any(adapters[row].dropout for row, _ in slices.rows):
            return x
        masks = [
            input_mask(adapters[row], self.site, sample, x[0])
            for (row, _), samples in zip(slices.rows, slices.sample_ids, strict=True)
            for sample in samples
        ]
        return x * torch.stack(masks)


def _masked(hidden: Tensor, masks_NR: Tensor | None, dim: int) -> Tensor:
    """The down-projection's output, with its ranks along `dim`, after masking the dropped ranks."""
    if masks_NR is None:
        return hidden
    shape = [1] * hidden.dim()
    shape[0], shape[dim] = len(masks_NR), hidden.shape[dim]
    return hidden * F.pad(masks_NR, (0, hidden.shape[dim] - masks_NR.shape[1])).view(shape)


def geometry_of(module: nn.Conv2d) -> Geometry:
    """Stride, padding and dilation of a convolution."""
    stride, padding, dilation = module.stride, module.padding, module.dilation
    assert not isinstance(padding, str), padding
    return (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1])
