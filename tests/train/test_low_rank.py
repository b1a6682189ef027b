"""The fused layers give the values and gradients that autograd finds for the formula they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.train.adapters.low_rank import Geometry, LowRankConv2d, LowRankLinear

GEOMETRIES: dict[str, tuple[int, Geometry]] = {
    "3x3": (3, ((1, 1), (1, 1), (1, 1))),
    "3x3, stride 2": (3, ((2, 2), (1, 1), (1, 1))),
    "1x1": (1, ((1, 1), (0, 0), (1, 1))),
    "3x3, dilated": (3, ((1, 2), (2, 1), (2, 1))),
}


def numbers(*shape: int, wants_gradient: bool = True) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_(wants_gradient)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((output.sin() * weights).sum(), inputs))


def assert_same(fused: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(fused, plain)
    for one, other in zip(gradients(fused, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("count", [1, 3])
def test_the_fused_linear_layer(count: int) -> None:
    torch.manual_seed(0)
    x, down, up = numbers(count, 5, 6), numbers(count, 2, 6), numbers(count, 4, 2)
    weight, bias = numbers(4, 6, wants_gradient=False), numbers(4, wants_gradient=False)
    scale = torch.arange(1.0, count + 1, dtype=torch.float64).view(-1, 1, 1)

    frozen = nn.Linear(6, 4)
    frozen.weight, frozen.bias = nn.Parameter(weight), nn.Parameter(bias)

    fused = LowRankLinear.apply(x, frozen.requires_grad_(False), down, up, scale)
    plain = F.linear(x, weight, bias) + scale * (x @ down.mT @ up.mT)

    assert_same(fused, plain, [x, down, up])


@pytest.mark.parametrize("count", [1, 3])
def test_without_a_scale_and_added_to_what_is_there(count: int) -> None:
    torch.manual_seed(0)
    x, down, up = numbers(count, 5, 6), numbers(count, 2, 6), numbers(count, 4, 2)
    frozen = nn.Linear(6, 4, dtype=torch.float64).requires_grad_(False)
    before = [torch.randn_like(each) for each in (down, up)]
    into = (before[0].clone(), before[1].clone())

    def loss(output: Tensor) -> Tensor:
        return (output.sin() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()

    wanted = torch.autograd.grad(loss(frozen(x) + x @ down.mT @ up.mT), [x, down, up])
    fused = LowRankLinear.apply(x, frozen, down, up, None, into)
    torch.testing.assert_close(fused, frozen(x) + x @ down.mT @ up.mT)
    for _ in range(2):  # as with several backward passes in a step
        loss(LowRankLinear.apply(x, frozen, down, up, None, into)).backward()
    assert down.grad is None and up.grad is None, "which would be added once more"
    torch.testing.assert_close(x.grad, 2 * wanted[0])
    for added, start, gradient in zip(into, before, wanted[1:], strict=True):
        torch.testing.assert_close(added, start + 2 * gradient)


@pytest.mark.parametrize("name", list(GEOMETRIES))
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_the_fused_convolution(name: str, count: int, rows: int, scaled: bool) -> None:
    torch.manual_seed(0)
    side, geometry = GEOMETRIES[name]
    x, down, up = numbers(count * rows, 4, 7, 6), numbers(count, 2, 4, side, side), numbers(count, 5, 2)
    weight, bias = numbers(5, 4, side, side, wants_gradient=False), numbers(5, wants_gradient=False)
    scale = torch.arange(1.0, count + 1, dtype=torch.float64).view(-1, 1, 1)

    if not scaled:
        scale.fill_(1.0)
    fused = LowRankConv2d.apply(x, weight, bias, down, up, scale if scaled else None, geometry)
    updates = [
        scale[k] * F.conv2d(F.conv2d(part, down[k], None, *geometry), up[k, :, :, None, None])
        for k, part in enumerate(x.split(rows))
    ]
    plain = F.conv2d(x, weight, bias, *geometry) + torch.cat(updates)

    assert_same(fused, plain, [x, down, up])


def test_the_first_layer_needs_no_gradient_of_its_input() -> None:
    x, down, up = numbers(2, 3, 4, 4, wants_gradient=False), numbers(2, 2, 3, 3, 3), numbers(2, 5, 2)
    weight, scale = numbers(5, 3, 3, 3, wants_gradient=False), torch.ones(2, 1, 1, dtype=torch.float64)
    output = LowRankConv2d.apply(x, weight, None, down, up, scale, GEOMETRIES["3x3"][1])
    assert all(bool(each.abs().sum() > 0) for each in gradients(output, [down, up]))
