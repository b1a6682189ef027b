"""Lowers an adapter's rank: the nearest update of that rank for each layer, and how much of it remains."""

from __future__ import annotations

import dataclasses

import torch

from runner.mix.layers import AdapterLayers, LowRank


@dataclasses.dataclass(frozen=True)
class Reduced:
    """The result of a reduction."""

    layers: AdapterLayers
    kept: dict[tuple[str, str], float]
    """The energy kept in each layer: the share of its update's squared Frobenius norm."""
    kept_in_all: float
    """The same share over all updates together."""

    @property
    def ranks(self) -> tuple[int, int]:
        """Least and largest rank of a layer."""
        ranks = [each.rank for each in self.layers.values()]
        return min(ranks), max(ranks)

    def described(self) -> str:
        """In words."""
        least, largest = self.ranks
        rank = f"rank {largest}" if least == largest else f"ranks {least} to {largest}"
        worst = min(self.kept, key=lambda layer: self.kept[layer])
        return f"{rank}: kept {self.kept_in_all:.2%} of the energy, least in {'.'.join(worst)} ({self.kept[worst]:.2%})"


def reduce(layers: AdapterLayers, *, rank: int | None = None, energy: float | None = None) -> Reduced:
    """The nearest adapter of a lower rank (Eckart-Young: the largest singular values), layer by layer.

    A layer already within the rank keeps its factors unchanged.

    Args:
        layers: LoRA only, without DoRA.
        energy: instead of `rank`, the share of each layer's energy to keep; each layer gets the lowest rank that keeps
            it.
    """
    assert (rank is None) != (energy is None)
    reduced: AdapterLayers = {}
    kept, total_kept, total = {}, 0.0, 0.0
    for name, each in layers.items():
        found, energies = _reduced(each, rank, energy)
        part, whole = float(energies[: found.rank].sum()), float(energies.sum())
        reduced[name], kept[name] = found, part / whole if whole else 1.0
        total_kept, total = total_kept + part, total + whole
    return Reduced(reduced, kept, total_kept / total if total else 1.0)


def _reduced(update: LowRank, rank: int | None, energy: float | None) -> tuple[LowRank, torch.Tensor]:
    """The layer's new factors, and the squared singular values of its whole update."""
    assert update.magnitude is None
    # The full matrix is not needed, only the factors' triangles: rank x rank numbers instead of outputs x inputs.
    left, left_triangle = torch.linalg.qr(update.up.flatten(1).double() * update.scale)
    right, right_triangle = torch.linalg.qr(update.down.flatten(1).double().T)
    u, values, v = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
    energies = values.square()
    target = rank if energy is None else _least_rank(energies, energy)
    assert target is not None
    if target >= update.rank:
        return update, energies
    target = min(target, len(values))
    root = values[:target].sqrt()
    up, down = left @ (u[:, :target] * root), (v[:target] * root[:, None]) @ right.T
    return (
        LowRank(
            down.float().reshape(target, *update.down.shape[1:]),
            up.float().reshape(len(up), target, *update.up.shape[2:]),
            1.0,
        ),
        energies,
    )


def _least_rank(energies: torch.Tensor, energy: float) -> int:
    if not energies.any():
        return 1
    shares = energies.cumsum(0) / energies.sum()
    # Rounding must not require ranks that hold nothing.
    return min(int((shares < energy - 1e-12).sum()) + 1, len(energies))
