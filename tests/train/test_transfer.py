"""However an adapter's numbers get into a pack and back, they are the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from runner.schema import LoraSettings
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.adapters.packed import PackedAdapters
from tests.train.bench import CPU

PARTS = {"unet": nn.ModuleDict({"first": nn.Linear(6, 4), "then": nn.Conv2d(3, 8, 3)}).requires_grad_(False)}
WORDS = {"text_encoder": torch.ones(2, 5)}
KINDS = {
    "ranks": [({"rank": 4}, None), ({"rank": 2}, None), ({"rank": 3, "rank_pattern": {"then": 1}}, None)],
    "dora": [({"rank": 2, "dora": True}, None), ({"rank": 3}, None)],
    "words": [({"rank": 2}, WORDS), ({"rank": 3, "dora": True}, WORDS)],
    "alone": [({"rank": 3}, None)],
}


def pack_of(kind: str, dtype: torch.dtype, *, by_index: bool, monkeypatch: pytest.MonkeyPatch) -> PackedAdapters:
    if by_index:  # what a GPU does
        monkeypatch.setattr(PackedAdapters, "_make_transfers", PackedAdapters._by_index)
    adapters = []
    for seed, (settings, words) in enumerate(KINDS[kind]):
        lora = LoraSettings.model_validate({**settings, "targets": "first|then"})
        sites = find_sites(lora, PARTS)
        adapters.append(Adapter(lora, sites, seed=seed, device=CPU.device, components=PARTS, words=words))
        adapters[-1].weights.normal_(generator=torch.Generator().manual_seed(seed))
    pack = PackedAdapters(PARTS, adapters, dtype=dtype)
    monkeypatch.undo()
    return pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_by_part_and_by_index_are_the_same(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    after: list[list[Tensor]] = []
    for by_index in (False, True):
        pack = pack_of(kind, dtype, by_index=by_index, monkeypatch=monkeypatch)
        loaded = [pack.weights.clone(), pack.magnitudes.clone()]
        assert loaded[0].any()
        pack.gradient.normal_(generator=torch.Generator().manual_seed(7))
        pack.magnitude_gradient.normal_(generator=torch.Generator().manual_seed(8))
        for _ in range(2):  # the second one adds to the first
            gradient = pack.gradient.clone(), pack.magnitude_gradient.clone()
            pack.collect()
            assert not pack.gradient.any() and not pack.magnitude_gradient.any()
            pack.gradient.copy_(gradient[0])
            pack.magnitude_gradient.copy_(gradient[1])
        shown = torch.randn(len(pack.adapters[0]), generator=torch.Generator().manual_seed(9))
        with pack.showing(0, shown):
            loaded.append(pack.weights.clone())
        loaded.append(pack.weights.clone())
        after.append([*loaded, pack.joint_gradient.clone()])
        pack.detach()
    assert all(torch.equal(part, index) for part, index in zip(*after, strict=True))
    assert after[0][-1].any() and not torch.equal(after[0][2], after[0][0])
    assert torch.equal(after[0][3], after[0][0])
