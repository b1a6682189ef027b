"""Training from an earlier adapter: it starts where that left off, what is refused, and how much of it is kept."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runner.data import read_dataset, split
from runner.errors import SettingsError
from runner.jobs.adapter_file import AdapterFile
from runner.jobs.earlier import find_earlier, layer_faults
from runner.jobs.job import Job, State, read_manifest, state_of
from runner.schema import LoraSettings, ModelSettings
from runner.train.adapters.adapter import Adapter, Site
from runner.train.start import earlier_items, kept_share, start_from
from tests.train.bench import Bench, difference, records, weights, write_images


@pytest.fixture(scope="module")
def first(bench: Bench, sdxl_folder: Path) -> Job:
    job = bench.job(sdxl_folder, lora={"rank": 4, "alpha": 8.0, "text_encoder": True}, steps=4)
    assert bench.train(job)
    return job


def second(bench: Bench, sdxl_folder: Path, start: Path, **settings: Any) -> Job:
    lora = {"rank": 4, "alpha": 8.0, "text_encoder": True, "init_from": str(start), **settings.pop("lora", {})}
    return bench.job(sdxl_folder, lora=lora, **settings)


@pytest.mark.parametrize("named", ["", "lora", "lora/pytorch_lora_weights.safetensors"])
def test_a_job_starts_where_the_earlier_one_ended(bench: Bench, sdxl_folder: Path, first: Job, named: str) -> None:
    job = second(bench, sdxl_folder, first.folder / named, steps=1, optimizer={"lr": 1e-12})
    assert bench.train(job)
    assert difference(weights(job), weights(first)) < 1e-6
    ends, starts = records(first, "validation/loss")[4], records(job, "validation/loss")[0]
    assert starts == pytest.approx(ends, rel=1e-6)


def test_what_is_kept_of_the_earlier_training_is_measured(
    bench: Bench, sdxl_folder: Path, first: Job, tmp_path: Path
) -> None:
    other = write_images(tmp_path / "other", seed=9)
    job = second(bench, sdxl_folder, first.folder, images=other, steps=5, validation={"every": 2})
    assert bench.train(job)
    kept, losses = read_manifest(job.folder)["kept_of_earlier"], records(job, "validation/earlier_loss")
    assert sorted(losses) == [0, 2, 4, 5]
    # The earlier job's first loss was without an adapter, its last one with the adapter that this job starts from.
    earlier = records(first, "validation/loss")
    assert kept["loss_of_base"] == pytest.approx(earlier[0], rel=1e-6)
    assert kept["loss_at_start"] == pytest.approx(earlier[4], rel=1e-6) == losses[0]
    assert kept["loss_at_end"] == losses[5] != losses[0]
    assert kept["share"] == pytest.approx((earlier[0] - losses[5]) / (earlier[0] - losses[0]), rel=1e-5)
    assert "Started from" in (job.paths.lora / "README.md").read_text()


def test_the_share_that_is_kept() -> None:
    assert kept_share({0: 0.4, 9: 0.4}, 0.8)["share"] == 1.0
    assert kept_share({0: 0.4, 5: 0.2, 9: 0.7}, 0.8)["share"] == pytest.approx(0.25)
    assert kept_share({0: 0.4, 9: 0.9}, 0.8)["share"] == pytest.approx(-0.25), "worse than it never having been"
    assert kept_share({0: 0.8, 9: 0.7}, 0.8)["share"] is None, "the earlier training had learned nothing"


def test_where_the_earlier_images_are_gone_the_job_trains_all_the_same(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_images(tmp_path / "images", seed=4)
    earlier = bench.job(sdxl_folder, images=images, steps=1)
    assert bench.train(earlier)
    images.rename(tmp_path / "elsewhere")
    job = bench.job(sdxl_folder, lora={"init_from": str(earlier.folder)}, steps=1)
    assert bench.train(job)
    assert "kept_of_earlier" not in read_manifest(job.folder)
    assert "is not measured" in caplog.text


def test_what_is_kept_is_measured_on_what_the_earlier_training_held_out_and_as_it_captioned_it(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_images(tmp_path / "images", seed=4)
    for file in list(write_images(tmp_path / "more", seed=5).iterdir()):
        file.rename(images / f"more-{file.name}")
    dataset = {"path": str(images), "caption_prefix": "old"}
    earlier = bench.job(sdxl_folder, images=images, dataset=dataset, validation={"held_out": 0.2})
    settings = bench.job(sdxl_folder, validation={"max_images": 2}).experiment
    _, held_out = split(read_dataset(earlier.experiment.dataset).items, held_out=0.2)
    assert len(held_out) == 3
    found = earlier_items(AdapterFile(earlier.paths.weights, earlier), settings)
    assert [(item.id, item.caption) for item in found] == [(item.id, f"old {item.caption}") for item in held_out[:2]]
    (images / "0.txt").write_text("something else")
    assert earlier_items(AdapterFile(earlier.paths.weights, earlier), settings) == ()
    assert f"{earlier.id} is not measured: its images have changed" in caplog.text


def test_the_start_is_part_of_what_a_job_is(bench: Bench, sdxl_folder: Path, first: Job, tmp_path: Path) -> None:
    copy = tmp_path / "adapter.safetensors"
    copy.write_bytes(first.paths.weights.read_bytes())
    by_folder, by_file = (second(bench, sdxl_folder, start) for start in (first.folder, copy))
    assert by_folder.id == by_file.id
    assert "init" not in first.identity and by_file.identity["init"] != first.identity
    changed = {name: tensor + 1e-3 for name, tensor in load_file(copy).items()}
    with safe_open(copy, framework="pt") as opened:
        about = opened.metadata()
    save_file(changed, copy, metadata=about)
    assert second(bench, sdxl_folder, copy).id != by_folder.id
    # A file that changes after the plan was made is noticed.
    assert not bench.train(by_file)
    assert state_of(by_file.folder) is State.FAILED
    assert "has changed since" in read_manifest(by_file.folder)["error"]


def test_a_pack_of_jobs_with_and_without_a_start_gives_what_each_gives_alone(
    bench: Bench, sdxl_folder: Path, first: Job
) -> None:
    def jobs() -> list[Job]:
        return [
            second(bench, sdxl_folder, first.folder, seed=3),
            bench.job(sdxl_folder, seed=4, lora={"rank": 2, "text_encoder": True}),
        ]

    together, alone = jobs(), jobs()
    assert bench.train(*together)
    for left, right in zip(together, alone, strict=True):
        assert bench.train(right)
        assert difference(weights(left), weights(right)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 8}, "lora.rank = 8: .* has rank 4; set lora.rank=4"),
        ({"alpha": 2.0}, "lora.alpha = 2.0: .* trained with 8; set lora.alpha=8"),
        ({"rslora": True}, "lora.rslora = true: .* trained with false; set lora.rslora=false"),
        ({"dora": True}, "lora.dora = true: .* set lora.dora=false"),
        ({"text_encoder": False}, "lora.text_encoder = false: .* trained with true; set lora.text_encoder=true"),
        ({"init_from": "/nowhere"}, "lora.init_from = '/nowhere': is not there"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(first: Job, changes: dict[str, Any], said: str) -> None:
    fitting = {"rank": 4, "alpha": 8.0, "text_encoder": True, "init_from": str(first.folder)}
    settings = LoraSettings.model_validate(fitting | changes)
    with pytest.raises(SettingsError, match="^" + said):
        find_earlier(settings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"targets": "attention_ff"}, r"lacks \d+ layers that it would have, such as down_blocks\S+ff\S+"),
        ({"blocks": ["mid_block"]}, r"has \d+ layers that this job would not have, such as down_blocks\S+"),
        ({"targets": "linear", "blocks": ["mid_block"]}, r"has \d+ .*, and lacks \d+ .* mid_block\S+proj_in"),
    ],
)
def test_an_adapter_on_other_layers_is_refused_before_anything_is_loaded(
    first: Job, sdxl_folder: Path, changes: dict[str, Any], said: str
) -> None:
    settings = LoraSettings.model_validate({"rank": 4, **changes, "init_from": str(first.folder)})
    model = ModelSettings(path=str(sdxl_folder))
    faults = layer_faults(AdapterFile(first.paths.weights, first), settings, model)
    fix = r"; set lora.targets and lora.blocks as in the earlier training \(targets = 'attention', blocks = null\)$"
    assert [bool(re.search(said + fix, fault)) for fault in faults] == [True] * bool(said), faults


def test_an_adapter_of_another_model_is_refused_before_anything_is_loaded(first: Job, sdxl_folder: Path) -> None:
    settings, earlier = LoraSettings(rank=4, init_from=str(first.folder)), AdapterFile(first.paths.weights, None)
    (fault,) = layer_faults(earlier, settings, ModelSettings())
    assert re.search(r"was trained on another model: \S+ takes \d+ inputs there, and \d+ in embedded; ", fault)


def test_an_adapter_under_names_of_peft_is_told_how_to_be_converted(sdxl_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file({"base_model.model.mid_block.to_q.lora_A.weight": torch.zeros(4, 3)}, file)
    settings = LoraSettings(rank=4, init_from=str(file))
    (fault,) = layer_faults(AdapterFile(file, None), settings, ModelSettings(path=str(sdxl_folder)))
    assert fault.endswith(f"run task=export adapter={file}, and name the folder export/ of that job")


def test_all_that_does_not_fit_an_adapter_is_told_together(first: Job) -> None:
    settings = LoraSettings(rank=8, alpha=8.0, dora=True, init_from=str(first.folder))
    with pytest.raises(SettingsError) as raised:
        find_earlier(settings)
    keys = [line.partition(" = ")[0] for line in str(raised.value).splitlines()]
    assert keys == ["lora.text_encoder", "lora.dora", "lora.rank"]

    settings = LoraSettings(rank=4, alpha=2.0, rslora=True, text_encoder=True, init_from=str(first.folder))
    with pytest.raises(SettingsError, match=r"^lora.alpha = 2.0: .*\nlora.rslora = true: "):
        find_earlier(settings)


def adapter_file(file: Path, ranks: dict[str, int], **config: Any) -> str:
    """A file with layers of these ranks, and the metadata about them."""
    said = {f"unet.{key}": value for key, value in config.items()}
    tensors = {f"unet.{name}.lora_A.weight": torch.zeros(rank, 3) for name, rank in ranks.items()}
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(said)})
    return str(file)


def test_scales_are_compared_layer_by_layer(tmp_path: Path) -> None:
    ranks = {"a.0.attn1.to_out.0": 16, "b.0.attn1.to_out.0": 16, "a.0.ff": 16, "b.0.ff": 16}
    start = adapter_file(tmp_path / "a.safetensors", ranks, lora_alpha=16, alpha_pattern={"b.0.ff": 8})
    with pytest.raises(SettingsError) as caught:
        find_earlier(LoraSettings(rank=16, init_from=start))
    assert "has the scale 0.5 in b.0.ff, and this job would have 1" in str(caught.value)
    assert str(caught.value).endswith("set lora.alpha=16 and 'lora.alpha_pattern={b.0.ff: 8}'")
    assert find_earlier(LoraSettings(rank=16, alpha_pattern={"b.0.ff": 8.0}, init_from=start)) is not None
    with pytest.raises(SettingsError, match=r"lora.alpha = 16.1: .* trained with 16"):
        find_earlier(LoraSettings(rank=16, alpha=16.1, alpha_pattern={"b.0.ff": 8.0}, init_from=start))
    # The same scales, expressed differently: alpha / sqrt(rank) instead of alpha / rank.
    assert find_earlier(LoraSettings(rank=16, alpha=4, rslora=True, alpha_pattern={"b.0.ff": 2}, init_from=start))


def test_layers_of_text_encoders_go_by_the_names_that_files_have(tmp_path: Path) -> None:
    names, start = [f"text_model.encoder.layers.{number}.q" for number in range(2)], tmp_path / "a.safetensors"
    said = {"text_encoder.lora_alpha": 16, "text_encoder.alpha_pattern": {names[1]: 8}}
    tensors = {f"text_encoder.{name}.lora_A.weight": torch.zeros(16, 3) for name in names}
    save_file(tensors, start, metadata={"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(SettingsError, match=r"set lora.alpha=16 and 'lora.alpha_pattern=\{layers.1.q: 8\}'$"):
        find_earlier(LoraSettings(rank=16, text_encoder=True, init_from=str(start)))
    patterns = {"^encoder.layers.1.q": 8.0}
    assert find_earlier(LoraSettings(rank=16, text_encoder=True, alpha_pattern=patterns, init_from=str(start)))


def test_ranks_are_compared_layer_by_layer_and_the_fix_is_the_shortest_that_fits(tmp_path: Path) -> None:
    ranks = {"a.0.attn1.to_out.0": 8, "b.0.attn1.to_out.0": 8, "a.0.ff": 4, "b.0.ff": 4, "c.0.ff": 4, "c.1.ff": 2}
    start = adapter_file(tmp_path / "a.safetensors", ranks)
    with pytest.raises(SettingsError) as caught:
        find_earlier(LoraSettings(rank=4, rank_pattern={"to_out.0": 16}, init_from=start))
    assert "has rank 2, 4, 8, in a.0.attn1.to_out.0 8; set lora.rank=4 and" in str(caught.value)
    assert str(caught.value).endswith("'lora.rank_pattern={to_out.0: 8, c.1.ff: 2}'")
    assert find_earlier(LoraSettings(rank=4, rank_pattern={"to_out.0": 8, "c.1.ff": 2}, init_from=start)) is not None


def test_an_adapter_of_every_kind_can_be_started_from(bench: Bench, sdxl_folder: Path) -> None:
    lora = {"rank": 3, "dora": True, "rslora": True, "rank_pattern": {"to_q": 5}, "text_encoder": True}
    earlier = bench.job(sdxl_folder, lora=lora, steps=2)
    assert bench.train(earlier)
    job = bench.job(
        sdxl_folder,
        lora={**lora, "init_from": str(earlier.folder)},
        steps=1,
        optimizer={"lr": 1e-12, "weight_decay": 0.0},
    )
    assert bench.train(job)
    assert difference(weights(job), weights(earlier)) < 1e-6


def test_files_that_are_none_are_refused(tmp_path: Path, bench: Bench, sdxl_folder: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(SettingsError) as raised:
            find_earlier(LoraSettings(rank=4, init_from=str(path)))
        return str(raised.value)

    text, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    text.write_text("not tensors at all, but words")
    save_file({"unet.conv_in.weight": torch.zeros(2)}, other)
    assert "cannot be read" in said(text)
    assert "holds no LoRA under peft's names" in said(other)
    for wrong in ({"alpha_pattern": [1]}, {"lora_alpha": "16"}, {"alpha_pattern": {"(": 4}}):
        adapter_file(other, {"a.0.ff": 4}, **wrong)
        assert f"{other}: its lora_adapter_metadata is damaged (" in said(other)
    adapter_file(other, {"a.0.ff": 4}, lora_alpha=None)
    assert find_earlier(LoraSettings(rank=4, init_from=str(other))) is not None, "nothing said is a scale of 1"
    assert "holds no pytorch_lora_weights.safetensors" in said(tmp_path)
    assert "that job is pending, not completed" in said(bench.job(sdxl_folder).folder)


def test_numbers_that_are_none_are_not_started_from(tmp_path: Path) -> None:
    """The first loss would not be finite either, and the learning rate would be blamed for it."""
    adapter = Adapter(LoraSettings(rank=2), [Site("unet", "a", (3,), 4)], seed=0, device=torch.device("cpu"))
    state = {f"unet.{key}": tensor for key, tensor in adapter.state()["unet"].items()}
    file = tmp_path / "a.safetensors"
    save_file(state, file)
    start_from(AdapterFile(file, None), adapter)
    save_file(state | {"unet.a.lora_B.weight": torch.full((4, 2), math.inf)}, file)
    with pytest.raises(SettingsError, match=r"a\.safetensors: unet\.a\.lora_B\.weight holds numbers that are not"):
        start_from(AdapterFile(file, None), adapter)


def test_an_adapter_of_other_layers_fails_the_job_with_the_reason(bench: Bench, sdxl_folder: Path, first: Job) -> None:
    job = second(bench, sdxl_folder, first.folder, lora={"targets": "linear"})
    assert not bench.train(job)
    assert "is on other layers than this job's" in read_manifest(job.folder)["error"]
    assert "; set lora.targets and lora.blocks as in the earlier training" in read_manifest(job.folder)["error"]
