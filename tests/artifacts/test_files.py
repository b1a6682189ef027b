"""A finished job's files equal what was trained, for diffusers and all other readers, or else the job has failed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from runner.artifacts.files import write_kohya
from runner.artifacts.verify import check_behaviour, check_kohya, check_tensors
from runner.errors import ArtifactError
from runner.families import find_family
from runner.jobs.job import Job, read_manifest
from runner.schema import LoraSettings
from runner.train.adapters.adapter import DOWN, UP
from tests.artifacts.saved import ATTENTION_AND_CONVOLUTION, DIFFUSERS, apart, as_trained, header, output, rewritten
from tests.train.bench import Bench


def kohya_file(job: Job) -> Path:
    (file,) = [each for each in job.paths.lora.glob("*.safetensors") if each.name != DIFFUSERS]
    return file


@pytest.fixture(scope="module")
def sdxl(bench: Bench, sdxl_folder: Path) -> Job:
    lora = {"rank": 4, "alpha": 16.0, "targets": ATTENTION_AND_CONVOLUTION, "text_encoder": True, "dropout": 0.1}
    job = bench.job(sdxl_folder, lora=lora, optimizer={"eps": 1e-8}, steps=2)
    assert bench.train(job)
    return job


@pytest.fixture(scope="module")
def sd15(bench: Bench, sd15_folder: Path) -> Job:
    lora = {"rank": 4, "alpha": 16.0, "targets": "linear", "text_encoder": True}
    job = bench.job(sd15_folder, lora=lora, optimizer={"eps": 1e-8}, steps=2)
    assert bench.train(job)
    return job


@pytest.fixture(scope="module")
def mixed(bench: Bench, sdxl_folder: Path) -> Job:
    """A different rank, alpha and scale in each layer."""
    patterns = {
        "rank_pattern": {r"attn2\.to_q": 7, "conv1": 1},
        "alpha_pattern": {"to_v": 5.0, r"mid_block\..*to_q": 0.5},
    }
    lora = {"rank": 4, "alpha": 16.0, "rslora": True, "targets": ATTENTION_AND_CONVOLUTION, **patterns}
    patterns["rank_pattern"]["k_proj"], patterns["alpha_pattern"]["out_proj"] = 2, 8.0
    job = bench.job(sdxl_folder, lora={**lora, "text_encoder": True}, optimizer={"eps": 1e-8}, steps=2)
    assert bench.train(job)
    return job


@pytest.fixture(params=["sdxl", "sd15", "mixed"])
def job(request: pytest.FixtureRequest) -> Job:
    trained: Job = request.getfixturevalue(request.param)
    return trained


def parts_of(pipeline: Any) -> dict[str, Any]:
    """kohya's prefix -> (module, the prefix that transformers 5.6 removed from the names of its layers)."""
    if hasattr(pipeline, "text_encoder_2"):
        return {"lora_unet": pipeline.unet, "lora_te1": pipeline.text_encoder, "lora_te2": pipeline.text_encoder_2}
    return {"lora_unet": pipeline.unet, "lora_te": pipeline.text_encoder}


def merge_kohya(pipeline: Any, file: Path) -> int:
    """Add up @ down * alpha / rank to the weights of a plain pipeline; returns the number of merged layers.

    Knows only the layout: every tensor must find its layer by its name.
    """
    tensors, merged = load_file(file), 0
    for prefix, part in parts_of(pipeline).items():
        for path, module in part.named_modules():
            published = path if prefix == "lora_unet" or path.startswith("text_model.") else f"text_model.{path}"
            name = f"{prefix}_{published.replace('.', '_')}"
            up = tensors.pop(f"{name}.lora_up.weight", None)
            if up is None:
                continue
            down, alpha = tensors.pop(f"{name}.lora_down.weight"), tensors.pop(f"{name}.alpha")
            update = (up.flatten(1) @ down.flatten(1)).view(module.weight.shape) * float(alpha) / down.shape[0]
            module.weight.data += update
            merged += 1
    assert not tensors, f"no layer for {min(tensors)}"
    return merged


def test_both_files_mean_the_same_to_independent_readers(job: Job) -> None:
    model = job.settings.model.path
    bare = output(DiffusionPipeline.from_pretrained(model))
    by_diffusers = DiffusionPipeline.from_pretrained(model)
    by_diffusers.load_lora_weights(job.paths.lora, weight_name=DIFFUSERS)
    wanted = output(by_diffusers)
    merged = DiffusionPipeline.from_pretrained(model)
    layers = merge_kohya(merged, kohya_file(job))
    assert layers == len(load_file(job.paths.lora / DIFFUSERS)) // 2
    assert apart(bare, wanted) > 1e-3, "the adapter does nothing"
    # Measured 5e-7: the same products in another order.
    assert apart(output(merged), wanted) < 1e-5


def test_the_file_says_rank_alpha_and_scale_of_every_layer(mixed: Job) -> None:
    settings = mixed.experiment.lora
    unet = DiffusionPipeline.from_pretrained(mixed.experiment.model.path).unet
    tensors = load_file(mixed.paths.lora / DIFFUSERS)
    about = json.loads(header(mixed.paths.lora / DIFFUSERS)["lora_adapter_metadata"])
    config = {key.removeprefix("unet."): value for key, value in about.items() if key.startswith("unet.")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a pattern that matches no layer
        unet.add_adapter(LoraConfig(**config))
    scales = set()
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            rank = 7 if name.endswith("attn2.to_q") else 1 if name.endswith("conv1") else 4
            assert module.r["default"] == rank == len(tensors[f"unet.{name}.lora_A.weight"])
            assert module.scaling["default"] == pytest.approx(settings.scale_of(name))
            scales.add(module.scaling["default"])
    assert sorted(scales) == pytest.approx([0.5 / 7**0.5, 0.25, 2.5, 16 / 7**0.5, 8.0, 16.0])


def test_loading_it_twice_gives_the_same_picture(sdxl: Job) -> None:
    # diffusers leaves what it adds in training mode: dropout in the file would be active while drawing.
    pipeline = DiffusionPipeline.from_pretrained(sdxl.experiment.model.path)
    pipeline.load_lora_weights(sdxl.paths.lora, weight_name=DIFFUSERS)
    assert torch.equal(output(pipeline), output(pipeline))


def test_every_kind_of_layer_is_in_the_file(sdxl: Job) -> None:
    keys = load_file(sdxl.paths.lora / DIFFUSERS)
    for part in ("to_q", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "downsamplers.0.conv"):
        assert any(f".{part}.lora_A.weight" in key for key in keys), part
    assert any(tensor.shape[2:] == (3, 3) for tensor in keys.values())


def test_keys_of_text_encoders_have_the_names_they_have_always_had(job: Job) -> None:
    keys = [key for key in load_file(job.paths.lora / DIFFUSERS) if key.startswith("text_encoder")]
    assert keys
    assert all(key.split(".")[1] == "text_model" for key in keys)
    names = [key for key in load_file(kohya_file(job)) if key.startswith("lora_te")]
    assert names
    assert all("_text_model_encoder_layers_" in name for name in names)


def test_the_header_says_rank_alpha_and_what_it_is_for(sdxl: Job, sd15: Job) -> None:
    about = json.loads(header(sdxl.paths.lora / DIFFUSERS)["lora_adapter_metadata"])
    assert (about["unet.r"], about["unet.lora_alpha"]) == (4, 16.0)
    assert about["text_encoder_2.lora_alpha"] == 16.0
    for job, version in ((sdxl, "sdxl_base_v1-0"), (sd15, "sd_v1")):
        found = header(kohya_file(job))
        assert found["ss_base_model_version"] == version
        assert found["ss_network_module"] == "networks.lora"
        # Readers that ignore the alpha tensors must get the same result: alpha is the rank, the rest is in lora_up.
        assert found["ss_network_dim"] == "4"
        assert float(found["ss_network_alpha"]) == 4.0
        # As sd-scripts and A1111 compute it if a file does not contain it; Civitai calls it AutoV3.
        content = kohya_file(job).read_bytes()
        behind_header = content[8 + int.from_bytes(content[:8], "little") :]
        assert found["sshs_model_hash"] == hashlib.sha256(behind_header).hexdigest()


def test_a_file_that_people_give_away_names_no_folder_of_theirs(sdxl: Job, sdxl_folder: Path) -> None:
    assert header(kohya_file(sdxl))["ss_sd_model_name"] == sdxl_folder.name
    for file in sdxl.paths.lora.glob("*.safetensors"):
        assert str(sdxl_folder) not in str(header(file))


def test_the_card_says_what_the_adapter_was_made_from(sdxl: Job) -> None:
    card = (sdxl.paths.lora / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == sdxl.experiment.model.path
    assert {"lora", "diffusers", "text-to-image"} <= set(front["tags"])
    assert sdxl.identity["model"] in card
    assert sdxl.identity["dataset"] in card
    assert "alpha: 16.0" in card
    assert kohya_file(sdxl).name in card


# --- a file that is not what was trained is refused ---


@pytest.fixture(scope="module")
def trained(bench: Bench, sdxl: Job) -> tuple[Any, Any, dict[str, dict[str, Tensor]], Any, Any]:
    return as_trained(bench, sdxl)


def _change_alpha_in_header(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    about = json.loads(metadata["lora_adapter_metadata"])
    metadata["lora_adapter_metadata"] = json.dumps({**about, "unet.lora_alpha": 4.0})


def _drop_header(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del metadata["lora_adapter_metadata"]


def _swap_two(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    first, second = [key for key in tensors if re.search(r"attn1.to_q.lora_(A|down)", key)][:2]
    tensors[first], tensors[second] = tensors[second], tensors[first]


def _last_bit(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    key = max(tensors)
    tensors[key] = torch.nextafter(tensors[key], torch.tensor(9.0))


def _drop_layer(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    layer = min(tensors).rpartition(".lora")[0] or min(tensors).rpartition(".alpha")[0]
    for key in [key for key in tensors if key.startswith(layer)]:
        del tensors[key]


def _double_one_alpha(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    key = next(key for key in tensors if key.endswith(".alpha"))
    tensors[key] = tensors[key] * 2


def all_ones(layer: str) -> float:
    return 1.0


def check(file: Path, kind: str, job: Job, trained: Any) -> None:
    base, conditioner, layers, batch, use_rows = trained
    if kind == "diffusers":
        check_tensors(file, layers)
        scale_of = job.experiment.lora.scale_of
    else:
        check_kohya(file, find_family("sdxl"), layers, job.experiment.lora.scale_of)
        scale_of = all_ones
    check_behaviour({kind: (file, scale_of)}, layers, base, conditioner, batch, use_rows)


@pytest.mark.parametrize("kind", ["diffusers", "kohya"])
def test_the_files_that_were_written_pass(sdxl: Job, trained: Any, kind: str) -> None:
    file = sdxl.paths.lora / DIFFUSERS if kind == "diffusers" else kohya_file(sdxl)
    check(file, kind, sdxl, trained)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("diffusers", _change_alpha_in_header),
        ("diffusers", _drop_header),
        ("diffusers", _swap_two),
        ("diffusers", _last_bit),
        ("diffusers", _drop_layer),
        ("kohya", _swap_two),
        ("kohya", _drop_layer),
        ("kohya", _double_one_alpha),
    ],
)
def test_a_file_that_is_not_what_was_trained_is_refused(
    sdxl: Job, trained: Any, tmp_path: Path, kind: str, change: Callable[..., None]
) -> None:
    source = sdxl.paths.lora / DIFFUSERS if kind == "diffusers" else kohya_file(sdxl)
    file = Path(shutil.copy(source, tmp_path))
    rewritten(change)(file)
    with pytest.raises(ArtifactError, match=file.name):
        check(file, kind, sdxl, trained)


def test_a_large_layer_is_checked_without_making_its_update(tmp_path: Path) -> None:
    family, name, wide = find_family("sdxl"), "mid_block.attentions.0.proj_in", 2048
    layers = {"unet": {f"{name}.{DOWN}": torch.randn(2, wide), f"{name}.{UP}": torch.randn(wide, 2)}}
    file = write_kohya(tmp_path / "large.safetensors", family, layers, LoraSettings(rank=2, alpha=6.0), about={})
    with _Largest() as largest:
        check_kohya(file, family, layers, lambda _: 3.0)
    assert largest.numbers < wide * wide / 100


@pytest.mark.parametrize(("changed", "said"), [("lora_up.weight", "is not what was trained"), ("", "was not trained")])
def test_what_is_no_number_or_was_not_trained_is_found_in_the_file_for_others(
    changed: str, said: str, tmp_path: Path
) -> None:
    family, name = find_family("sdxl"), "mid_block.attentions.0.proj_in"
    layers = {"unet": {f"{name}.{DOWN}": torch.randn(2, 8), f"{name}.{UP}": torch.randn(8, 2)}}
    file = write_kohya(tmp_path / "small.safetensors", family, layers, LoraSettings(rank=2, alpha=6.0), about={})
    check_kohya(file, family, layers, lambda _: 3.0)
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith(changed)) if changed else "lora_unet_another.alpha"
    save_file(tensors | {key: torch.full_like(tensors.get(key, torch.ones(1)), float("nan"))}, file)
    with pytest.raises(ArtifactError, match=said):
        check_kohya(file, family, layers, lambda _: 3.0)


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor made within it."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_lost_scale_shows_even_after_a_short_training(
    bench: Bench, sdxl_folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After a step with a small learning rate, the output hardly changes: it alone would not reveal a lost alpha.
    from runner.artifacts import finish

    def without_header(*arguments: Any) -> Path:
        file = write_diffusers(*arguments)
        rewritten(_drop_header)(file)
        return file

    write_diffusers = finish.write_diffusers
    monkeypatch.setattr(finish, "write_diffusers", without_header)
    settings = {"lora": {"rank": 4, "alpha": 16.0}, "optimizer": {"lr": 1e-6}, "steps": 1, "precision": precision}
    job = bench.job(sdxl_folder, **settings)
    assert not bench.train(job)
    assert "diffusers scales" in read_manifest(job.folder)["error"]


def test_a_file_that_diffusers_cannot_load_fails_its_job_alone(
    bench: Bench, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.artifacts import finish

    write_kohya = finish.write_kohya

    def torn(file: Path, family: Any, layers: Any, settings: Any, *, about: Any) -> Path:
        written = write_kohya(file, family, layers, settings, about=about)
        if settings.rank == 3:
            written.write_bytes(written.read_bytes()[:1000])
        return written

    monkeypatch.setattr(finish, "write_kohya", torn)
    bad, good = bench.job(sdxl_folder, steps=1, lora={"rank": 3}), bench.job(sdxl_folder, steps=2)
    assert not bench.train(bad, good)
    states = [read_manifest(job.folder)["state"] for job in (bad, good)]
    assert states == ["failed", "completed"]
