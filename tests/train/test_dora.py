"""DoRA in a pack equals DoRA in the paper and in peft, for linear layers and convolutions, beside plain adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.schema import LoraSettings
from runner.train.adapters import packed
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.adapters.dropout import input_mask
from runner.train.adapters.layer import Layer
from runner.train.adapters.packed import PackedAdapters
from tests.train.bench import CPU

DORA: dict[str, Any] = {"rank": 3, "alpha": 5.0, "dora": True, "targets": ".*"}
PLAIN: dict[str, Any] = {"rank": 5, "alpha": 2.0, "targets": ".*"}


def layer_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "linear": nn.Linear(6, 4),
        "linear without bias": nn.Linear(6, 4, bias=False),
        "3x3": nn.Conv2d(6, 4, 3, padding=1, stride=2),
        "1x1": nn.Conv2d(6, 4, 1),
    }
    return layers[kind].requires_grad_(False)


def input_of(layer: nn.Module, rows: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, 6, 5, 7) if isinstance(layer, nn.Conv2d) else torch.randn(rows, 7, 6)


def pack_of(layer: nn.Module, *settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> PackedAdapters:
    parts = {"unet": nn.ModuleDict({"layer": layer})}
    adapters = []
    for index, each in enumerate(settings):
        lora = LoraSettings.model_validate(each)
        adapter = Adapter(lora, find_sites(lora, parts), seed=index, device=CPU.device, components=parts)
        adapters.append(adapter)
    return PackedAdapters(parts, adapters, dtype=dtype)


def disturb(pack: PackedAdapters) -> None:
    """Weights as they might be after some training."""
    for index, adapter in enumerate(pack.adapters):
        draw = torch.Generator().manual_seed(index)
        adapter.weights += 0.3 * torch.randn(len(adapter), generator=draw)
    pack.refresh()


def product(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding)
    return F.linear(x, weight)


def by_the_paper(layer: Any, adapter: Adapter, weights: Tensor, x: Tensor, dropped: Tensor | None = None) -> Tensor:
    """The layer's output with this adapter, whose numbers are all in `weights`; slow and plain."""
    part = {kind: view for _, kind, view in adapter.parts(weights)}
    ((scale),) = adapter.scales.values()
    update = (part["lora_B.weight"].flatten(1) @ part["lora_A.weight"].flatten(1)).view(layer.weight.shape) * scale
    along = (-1, *[1] * (layer.weight.dim() - 1))
    total = layer.weight + update
    if "lora_magnitude_vector" in part:
        norm = total.flatten(1).norm(dim=1).detach()  # held constant (section 4.3)
        total = total * (part["lora_magnitude_vector"].flatten() / norm).view(along)
    bias = 0 if layer.bias is None else layer.bias.view(-1, 1, 1) if layer.weight.dim() == 4 else layer.bias
    if dropped is None:
        return product(layer, total, x) + bias
    return product(layer, layer.weight, x) + product(layer, total - layer.weight, dropped) + bias


KINDS = ["linear", "linear without bias", "3x3", "1x1"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(2, 2), (1, 3)], ids=["fused", "sliced"])
def test_values_and_gradients_are_those_of_the_paper(kind: str, lengths: tuple[int, int]) -> None:
    layer = layer_of(kind)
    pack = pack_of(layer, DORA, PLAIN)
    disturb(pack)
    x = input_of(layer, sum(lengths)).requires_grad_(True)
    with pack.using([(0, lengths[0]), (1, lengths[1])]):
        output = layer(x)
    weights = [adapter.weights.clone().requires_grad_(True) for adapter in pack.adapters]
    parts = zip(pack.adapters, weights, x.split(lengths), strict=True)
    expected = torch.cat([by_the_paper(layer, adapter, numbers, part) for adapter, numbers, part in parts])
    torch.testing.assert_close(output, expected)
    slope = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output.sin() * slope).sum().backward()
    pack.collect()
    found = torch.autograd.grad((expected.sin() * slope).sum(), [x, *weights])
    torch.testing.assert_close(x.grad, found[0])
    for adapter, gradient in zip(pack.adapters, found[1:], strict=True):
        torch.testing.assert_close(adapter.gradient, gradient)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [DORA, PLAIN], ids=["dora", "plain"])
@pytest.mark.parametrize("most_kept", [packed.MOST_KEPT_NUMBERS, 1], ids=["small model", "large model"])
def test_a_pass_that_trains_nothing_gives_the_same_whatever_else_is_in_the_pack(
    kind: str, settings: dict[str, Any], most_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MOST_KEPT_NUMBERS", most_kept)
    layer = layer_of(kind)
    x = input_of(layer, 3)  # more positions than outputs: the update is merged into the weight
    outputs = []
    for others in ([], [{**PLAIN, "rank": 11}]):
        pack = pack_of(layer, settings, *others)
        disturb(pack)
        adapter = pack.adapters[0]
        with pack.using([(0, 3)]), torch.no_grad():
            outputs.append(layer(x))
            assert torch.equal(layer(x), outputs[-1])
        torch.testing.assert_close(outputs[-1], by_the_paper(layer, adapter, adapter.weights, x))
        pack.detach()
    if settings is PLAIN:  # norms are computed over padded ranks, which affects rounding
        assert torch.equal(*outputs)
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    ("positions", "most_kept", "merges"),  # of four outputs: a large model merges where there are more positions
    [(21, packed.MOST_KEPT_NUMBERS, 2), (21, 1, 6), (2, packed.MOST_KEPT_NUMBERS, 2), (2, 1, 0)],
)
def test_merged_weights_of_small_models_last_for_the_passes_of_an_image_and_no_longer(
    positions: int, most_kept: int, merges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MOST_KEPT_NUMBERS", most_kept)
    made = []
    merge = Layer._merge
    monkeypatch.setattr(Layer, "_merge", lambda layer, index: made.append(index) or merge(layer, index))
    layer = layer_of("linear")
    pack = pack_of(layer, PLAIN, PLAIN)
    x = input_of(layer, 3).flatten(0, 1)[None, :positions]
    outputs = []
    for index in (0, 1):
        disturb(pack)
        with pack.using([(index, 1)]), torch.no_grad():
            outputs = [layer(x) for _ in range(3)]
        adapter = pack.adapters[index]
        torch.testing.assert_close(outputs[-1], by_the_paper(layer, adapter, adapter.weights, x))
    assert len(made) == merges


def test_whether_merged_weights_are_kept_does_not_depend_on_what_else_is_in_the_pack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed, "MOST_KEPT_NUMBERS", 24)
    parts = {"unet": nn.ModuleDict({"small": nn.Linear(6, 4), "large": nn.Linear(6, 5)}).requires_grad_(False)}
    adapters = []
    for targets in ("small", ".*"):
        lora = LoraSettings.model_validate({**PLAIN, "targets": targets})
        adapters.append(Adapter(lora, find_sites(lora, parts), seed=0, device=CPU.device, components=parts))
    assert PackedAdapters(parts, adapters, dtype=torch.float32).keeps_merged == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_small_updates_are_not_rounded_away_in_bf16(kind: str) -> None:
    layer = layer_of(kind).to(torch.bfloat16)
    pack = pack_of(layer, PLAIN, dtype=torch.bfloat16)
    x = input_of(layer, 3).to(torch.bfloat16)
    disturb(pack)
    pack.adapters[0].weights.mul_(0.02)  # makes the update 2500 times smaller: less than a bf16 step of the weight
    pack.refresh()
    with pack.using([(0, 3)]):
        trained = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), trained)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_dropped_from_all_that_is_changed(kind: str) -> None:
    layer = layer_of(kind)
    pack = pack_of(layer, {**DORA, "dropout": 0.4}, DORA)
    disturb(pack)
    x = input_of(layer, 4)
    with pack.using([(0, 2), (1, 2)], [(8, 9), (8, 9)]), torch.no_grad():
        output = layer(x)
    first, second = pack.adapters
    (site,) = first.sites
    dropped = torch.stack(
        [part * input_mask(first, site, sample, part) for part, sample in zip(x, (8, 9), strict=False)]
    )
    torch.testing.assert_close(output[:2], by_the_paper(layer, first, first.weights, x[:2], dropped))
    torch.testing.assert_close(output[2:], by_the_paper(layer, second, second.weights, x[2:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_without_effect(kind: str, dtype: torch.dtype) -> None:
    layer = layer_of(kind).to(dtype)
    pack = pack_of(layer, DORA, dtype=dtype)
    x = input_of(layer, 2).to(dtype)
    base = layer(x)
    with pack.using([(0, 2)]), torch.no_grad():
        adapted = layer(x)
    assert adapted.dtype == dtype
    assert torch.equal(adapted, base)
    ((magnitudes),) = [
        view for _, kind, view in pack.adapters[0].parts(pack.adapters[0].weights) if "magnitude" in kind
    ]
    norms = torch.linalg.vector_norm(layer.get_parameter("weight").float().flatten(1), dim=1)
    torch.testing.assert_close(magnitudes.flatten(), norms)
    assert not pack.adapters[0].has_effect


def test_small_changes_of_magnitudes_are_not_lost_in_bf16() -> None:
    layer = layer_of("linear").to(torch.bfloat16)
    pack = pack_of(layer, DORA, dtype=torch.bfloat16)
    x = torch.full((400, 7, 6), 1.0, dtype=torch.bfloat16) * torch.linspace(0.5, 2, 400, dtype=torch.bfloat16).view(
        -1, 1, 1
    )
    with pack.using([(0, 400)]), torch.no_grad():
        before = layer(x).float().sum()
        for _, kind, view in pack.adapters[0].parts(pack.adapters[0].weights):
            if "magnitude" in kind:
                view *= 1.001  # a third of a bf16 step at 1
        pack.refresh()
        after = layer(x).float().sum()
    assert float(after / before) != 1.0
