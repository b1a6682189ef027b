"""A merged base does what the base and the adapters do together, for independent readers too."""

from __future__ import annotations

import json
import shutil
import tarfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from runner.artifacts import merged
from runner.errors import ArtifactError, Interrupted, ModelError, SettingsError
from runner.families import find_family
from runner.families.files import check_model, snapshot
from runner.jobs.adapter_file import find_adapter
from runner.jobs.job import Job
from runner.mix.write import write_diffusers, write_kohya
from runner.schema import ModelSettings
from runner.schema.tasks import TASKS
from runner.system.archive import lay_out
from runner.tasks.sent import sent_files
from tests.artifacts.saved import apart, output
from tests.families.original_layout import write_original
from tests.mix.adapters import (
    SDXL_PREFIXES,
    add_kohya,
    random_layers,
    write_kohya_of_flux,
    write_kohya_plainly,
    write_peft_plainly,
)
from tests.mix.conftest import Parts
from tests.tasks.doing import do, with_words
from tests.train.bench import Bench, family_of, pipeline_of, records

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # having several is intended
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2, "fp16": 1e-2}


@pytest.fixture
def two(sdxl_parts: Parts, tmp_path: Path) -> list[str]:
    """A kohya file with alphas on the UNet and both text encoders, and one of diffusers on the UNet."""
    first = write_kohya_plainly(
        tmp_path / "first.safetensors", random_layers(sdxl_parts, rank=4, scale=0.25), SDXL_PREFIXES
    )
    unet = {"unet": sdxl_parts["unet"]}
    second = random_layers(unet, rank=2, seed=7, scale=0.5, targets=("to_q", "conv2"))
    (folder := tmp_path / "second").mkdir()
    return [str(first), str(write_diffusers(folder, find_family("sdxl"), second))]


def beside(model: Path, files: list[str], weights: list[float]) -> Any:
    """The plain pipeline with the adapters loaded by diffusers."""
    pipeline = pipeline_of(model)
    for index, file in enumerate(files):
        pipeline.load_lora_weights(Path(file).parent, weight_name=Path(file).name, adapter_name=f"a{index}")
    pipeline.set_adapters([f"a{index}" for index in range(len(files))], weights)
    return pipeline


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_merged_folder_is_the_base_and_its_adapters(
    two: list[str], sdxl_folder: Path, tmp_path: Path, dtype: str
) -> None:
    job = tmp_path / "job"
    found = do("merge", job, sdxl_folder, adapter=two, adapter_weight=[0.8, 0.5], dtype=dtype)["merge"]
    pipeline = beside(sdxl_folder, two, [0.8, 0.5])
    wanted, bare = output(pipeline), output(pipeline_of(sdxl_folder))
    assert apart(bare, wanted) > 0.2, "the adapters do nothing"
    assert found["effect"] > 0.05
    merged = pipeline_of(job / "model").to(torch.float32)
    assert apart(output(merged), wanted) < TOLERANCE[dtype]
    stored = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for part in ("unet", "text_encoder", "text_encoder_2", "vae"):
        (file,) = (job / "model" / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(file).values()} == {stored}
    # Rounded once: fp32 sums by plain arithmetic, then the precision of the file.
    pipeline.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    fused = pipeline.unet.get_submodule(name).get_base_layer().weight.to(stored)
    mine = pipeline_of(job / "model").unet.get_submodule(name).weight
    assert apart(mine.detach().float(), fused.detach().float()) < {"fp32": 1e-6}.get(dtype, 1e-4)


def test_the_base_and_the_merged_base_are_not_in_memory_together(
    two: list[str], sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, found = list[weakref.ref[torch.nn.Module]](), list[int]()
    load = merged.Model.__init__

    def loading(model: merged.Model, *arguments: Any) -> None:
        found.append(sum(each() is not None for each in alive))
        load(model, *arguments)
        alive.append(weakref.ref(model.denoiser))

    monkeypatch.setattr(merged.Model, "__init__", loading)
    do("merge", tmp_path / "job", sdxl_folder, adapter=two[1])
    assert found == [0, 0]


def test_everything_that_the_base_had_comes_along(two: list[str], sdxl_folder: Path, tmp_path: Path) -> None:
    do("merge", tmp_path / "job", sdxl_folder, adapter=two[1])
    names = {file.relative_to(sdxl_folder).as_posix() for file in sdxl_folder.rglob("*") if file.is_file()}
    model = tmp_path / "job" / "model"
    assert {file.relative_to(model).as_posix() for file in model.rglob("*") if file.is_file()} == names
    # Parts without adapters are unchanged bit for bit if the precision is unchanged.
    for part in ("vae", "text_encoder", "text_encoder_2"):
        (old,), (new,) = (sdxl_folder / part).glob("*.safetensors"), (model / part).glob("*.safetensors")
        before, after = load_file(old), load_file(new)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert [file.name for file in (tmp_path / "job").iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["sd15_folder", "sdxl_folder"])
def test_a_kohya_file_is_merged_as_its_arithmetic_says(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(name)
    pipeline = pipeline_of(model)
    family = find_family(family_of(model))
    parts = {component: getattr(pipeline, component) for component in family.adapter_components}
    layers = random_layers(parts, rank=4, scale=0.5)
    layers |= random_layers({"unet": parts["unet"]}, rank=2, scale=1.5, targets=("to_v",))  # alphas that differ
    file = write_kohya(tmp_path / "a.safetensors", family, layers, about={}, folded=False)
    do("merge", tmp_path / "job", model, adapter=str(file), adapter_weight=0.6)
    add_kohya(pipeline, file, 0.6)
    assert apart(output(pipeline_of(tmp_path / "job" / "model")), output(pipeline)) < 1e-5


@pytest.mark.parametrize("name", ["sd15_folder", "sdxl_folder"])
def test_a_single_file_has_the_layout_of_the_original_code(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(name)
    pipeline = pipeline_of(model)
    family = find_family(family_of(model))
    layers = random_layers({"unet": pipeline.unet}, rank=4)
    adapter = str(write_diffusers(tmp_path, family, layers))
    job = tmp_path / "job"
    do("merge", job, model, adapter=adapter, output="single_file", dtype="fp16")
    assert sorted(file.name for file in job.iterdir()) == ["model-config", "model.safetensors"]
    assert not list((job / "model-config").rglob("*.safetensors")), "the weights are in the file"
    # Another writer of that layout, on the same base with the same adapter fused by diffusers.
    pipeline.load_lora_weights(tmp_path)
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    wanted = load_file(write_original(pipeline.to(torch.float16), tmp_path / "wanted.safetensors"))
    found = load_file(job / "model.safetensors")
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == torch.float16
        assert torch.allclose(found[key].float(), tensor.float(), rtol=1e-3, atol=1e-6), key
    settings = ModelSettings(
        path=str(job / "model.safetensors"), config=str(job / "model-config"), family=family_of(model)
    )
    assert check_model(settings) == []
    assert (snapshot(settings) / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_dora_is_merged_as_diffusers_applies_it(sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path) -> None:
    layers = random_layers(sdxl_parts, rank=4, scale=1.5, dora=True)
    file = write_diffusers(tmp_path, find_family("sdxl"), layers)
    do("merge", tmp_path / "job", sdxl_folder, adapter=str(file))
    wanted = output(beside(sdxl_folder, [str(file)], [1.0]))
    assert apart(output(pipeline_of(sdxl_folder)), wanted) > 0.1
    assert apart(output(pipeline_of(tmp_path / "job" / "model")), wanted) < 1e-5


@pytest.mark.parametrize("name", ["sd3_folder", "flux_folder"])
def test_transformers_are_merged_too(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model: Path = request.getfixturevalue(name)
    family = find_family(family_of(model))
    parts = {"transformer": pipeline_of(model).transformer}
    file = write_diffusers(tmp_path, family, random_layers(parts, targets=("to_q", "add_v_proj", "ff.net.2")))
    found = do("merge", tmp_path / "job", model, adapter=str(file), adapter_weight=0.5)["merge"]
    assert found["effect"] > 0.01
    assert found["output_off"] < 1e-4
    assert pipeline_of(tmp_path / "job" / "model").transformer is not None
    with pytest.raises(SettingsError, match=r"output = 'single_file'.*take output=folder"):
        do("merge", tmp_path / "other", model, adapter=str(file), output="single_file")


@pytest.mark.parametrize(
    ("before", "endings"),
    [
        ("base_model.model.", ("lora_A.weight", "lora_B.weight")),
        ("diffusion_model.", ("lora_down.weight", "lora_up.weight")),
        ("unet.", ("lora_A.default.weight", "lora_B.default.weight")),
        ("unet.", ("lora_A.weight", "lora_B.weight", "alpha")),
    ],
)
def test_names_that_diffusers_does_not_know_are_merged_too(
    before: str, endings: tuple[str, ...], sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path
) -> None:
    """The names of peft, of ComfyUI, and of trainers that store alphas beside peft's names."""
    layers = random_layers({"unet": sdxl_parts["unet"]}, targets=("to_q", "conv1"))
    tensors = {}
    for (_, name), each in layers.items():
        values = (each.down, each.up, torch.tensor(1.5))
        tensors |= {f"{before}{name}.{ending}": value for ending, value in zip(endings, values, strict=False)}
    save_file(tensors, file := tmp_path / "theirs.safetensors")
    found = do("merge", tmp_path / "job", sdxl_folder, adapter=str(file))["merge"]
    assert found["layers"] == len(layers)


def test_an_adapter_of_flux_that_diffusers_would_round_is_merged_exactly(flux_folder: Path, tmp_path: Path) -> None:
    transformer = pipeline_of(flux_folder).transformer
    file, layers = write_kohya_of_flux(tmp_path / "a.safetensors", transformer, 0.3, torch.bfloat16)
    found = do("merge", tmp_path / "job", flux_folder, adapter=str(file))["merge"]
    assert (found["layers"], found["dtype"]) == (len(layers), {"transformer": "float32"})


def test_adapters_put_together_are_one(two: list[str], sdxl_folder: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    found = do("merge", job, sdxl_folder, adapter=two, adapter_weight=[0.8, -0.5], output="adapter")["merge"]
    assert found["rank"] == 6 and "kept_energy" not in found
    one = beside(sdxl_folder, [str(job / "lora" / "pytorch_lora_weights.safetensors")], [1.0])
    assert apart(output(one), output(beside(sdxl_folder, two, [0.8, -0.5]))) < 1e-5


def test_a_lower_rank_says_how_much_it_keeps(
    two: list[str], sdxl_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    given = {"adapter": two, "output": "adapter"}
    small = do("merge", tmp_path / "small", sdxl_folder, **given, rank=1)["merge"]
    large = do("merge", tmp_path / "large", sdxl_folder, **given, rank=5)["merge"]
    kept = do("merge", tmp_path / "kept", sdxl_folder, **given, keep_energy=0.9)["merge"]
    assert 0 < small["kept_energy"] < large["kept_energy"] <= 1
    assert small["output_off"] > large["output_off"]
    assert kept["kept_energy"] >= 0.9 and 1 < kept["rank"] < 6
    assert "rank 1: kept " in caplog.text and "of the energy" in caplog.text
    tensors = load_file(tmp_path / "small" / "lora" / "pytorch_lora_weights.safetensors")
    assert {len(tensor) for key, tensor in tensors.items() if "lora_A" in key} == {1}


def test_what_is_not_the_base_and_its_adapters_is_refused(two: list[str], sdxl_folder: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    do("merge", job, sdxl_folder, adapter=two)
    (file,) = (job / "model" / "unet").glob("*.safetensors")
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("attn1.to_q.weight"))
    save_file(tensors | {key: tensors[key] * 1.001}, file, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="is not the base and the adapters"):
        do("merge", job, sdxl_folder, adapter=two)
    other = next(key for key in tensors if key.endswith("conv_in.weight"))
    save_file(tensors | {other: tensors[other] * 1.1}, file, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="differs from the base with the adapters beside it"):
        do("merge", job, sdxl_folder, adapter=two)


def test_numbers_that_fp16_does_not_have_are_refused(sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path) -> None:
    layers = random_layers({"unet": sdxl_parts["unet"]}, scale=1e6)
    file = write_diffusers(tmp_path, find_family("sdxl"), layers)
    with pytest.raises(ArtifactError, match=r"not finite in float16; take dtype=fp32"):
        do("merge", tmp_path / "job", sdxl_folder, adapter=str(file), dtype="fp16")
    assert not (tmp_path / "job" / "model").exists()


def test_an_interrupted_merge_goes_on(two: list[str], sdxl_folder: Path, tmp_path: Path) -> None:
    job, looks = tmp_path / "job", iter([False, False, True])
    with pytest.raises(Interrupted, match="stopped before the"):
        do("merge", job, sdxl_folder, adapter=two, stop=lambda: next(looks))
    assert not (job / "model").exists()
    written = {each.name: each.stat().st_mtime_ns for each in (job / ".merging").iterdir()}
    assert len(written) == 2
    do("merge", job, sdxl_folder, adapter=two)
    assert {name: (job / "model" / name).stat().st_mtime_ns for name in written} == written
    again = {file: file.stat().st_mtime_ns for file in (job / "model").rglob("*")}
    do("merge", job, sdxl_folder, adapter=two)
    assert {file: file.stat().st_mtime_ns for file in (job / "model").rglob("*")} == again


def test_what_the_base_predicts_is_in_the_merged_sampler(two: list[str], sdxl_folder: Path, tmp_path: Path) -> None:
    model = {"prediction_type": "v_prediction", "zero_terminal_snr": True}
    do("merge", tmp_path / "job", sdxl_folder, adapter=two[1], model=model)
    config = json.loads((tmp_path / "job" / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction" and config["rescale_betas_zero_snr"] is True


def test_a_merged_base_is_trained_further_from_the_folder_and_from_the_archive(
    bench: Bench, two: list[str], sdxl_folder: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job-sdxl"
    do("merge", job, sdxl_folder, adapter=two, archive=True)
    with tarfile.open(job / "model.tar.gz") as archive:
        assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in archive} == {(0, 0, "", "")}
    unpacked = lay_out(job / "model.tar.gz", tmp_path / "unpacked")
    told = "".join(file.read_text() for file in unpacked.glob("*/config.json"))
    assert "DownBlock2D" in told and str(sdxl_folder) not in told, "no folder of this machine"
    assert {file.name for file in unpacked.iterdir()} == {file.name for file in (job / "model").iterdir()}
    losses = []
    for path in (job / "model", job / "model.tar.gz"):
        further: Job = bench.job(sdxl_folder, steps=2, model={"path": str(path), "family": "sdxl"})
        assert bench.train(further)
        losses.append(records(further, "validation/loss"))
    assert losses[0] == losses[1]
    plain = bench.job(sdxl_folder, steps=2)
    assert bench.train(plain)
    assert records(plain, "validation/loss")[0] != losses[0][0], "the merged base is another one"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "there is nothing to merge"),
        ({"adapter": "a", "output": "adapter"}, "one adapter alone is one already"),
        ({"adapter": "a", "rank": 4}, "rank = 4: has no effect with output=folder"),
        ({"adapter": ["a", "b"], "output": "adapter", "dtype": "fp16"}, "dtype = 'fp16': has no effect"),
        (
            {"adapter": ["a", "b"], "output": "adapter", "rank": 4, "keep_energy": 0.5},
            "keep_energy = 0.5: has no effect",
        ),
        ({"adapter": "a", "output": "single_file", "archive": True}, "archive = true: has no effect"),
        ({"adapter": "a", "dtype": "fp8"}, "dtype"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    given: dict[str, Any], said: str, sdxl_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=said):
        do("merge", tmp_path / "job", sdxl_folder, **given)


def test_a_single_file_that_predicts_velocity_says_so(
    two: list[str], sdxl_folder: Path, sd15_folder: Path, sd15_parts: Parts, tmp_path: Path
) -> None:
    model = {"prediction_type": "v_prediction", "zero_terminal_snr": True}
    do("merge", tmp_path / "job", sdxl_folder, adapter=two[1], model=model, output="single_file", dtype="fp16")
    found = load_file(tmp_path / "job" / "model.safetensors")
    assert {"v_pred", "ztsnr"} < found.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    file = write_diffusers(tmp_path, find_family("sd"), random_layers({"unet": sd15_parts["unet"]}))
    with pytest.raises(ModelError, match="it predicts velocity, which programs cannot tell"):
        do("merge", tmp_path / "other", sd15_folder, adapter=str(file), model=model, output="single_file")


def test_a_vae_that_takes_the_place_of_the_models_own_comes_along(
    two: list[str], sdxl_folder: Path, tmp_path: Path
) -> None:
    vae = pipeline_of(sdxl_folder).vae
    vae.decoder.conv_in.weight.data *= 2
    vae.save_pretrained(tmp_path / "vae")
    do("merge", tmp_path / "job", sdxl_folder, adapter=two[1], model={"vae": str(tmp_path / "vae")}, dtype="bf16")
    found = pipeline_of(tmp_path / "job" / "model").vae.decoder.conv_in.weight
    assert torch.equal(found, vae.decoder.conv_in.weight.bfloat16().float())


def test_words_are_not_merged(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    job = with_words(bench, sdxl_folder, layers=True)
    with pytest.raises(SettingsError, match=rf"was taught words \(sks\).* name {job.paths.weights}"):
        do("merge", tmp_path / "job", sdxl_folder, adapter=str(job.folder))
    do("merge", tmp_path / "job", sdxl_folder, adapter=str(job.paths.weights))


@pytest.mark.parametrize("named", ["folder", "file"])
def test_an_adapter_is_the_same_where_it_is_sent_to(
    named: str, bench: Bench, sdxl_folder: Path, tmp_path: Path
) -> None:
    """Even if only the layers are sent of an adapter that was also taught words."""
    trained = with_words(bench, sdxl_folder, layers=True)
    given = {"folder": trained.folder, "file": trained.paths.weights}[named]
    settings = TASKS["merge"].model_validate({"task": {"name": "merge"}, "adapter": str(given)})
    ((_, place, files),) = sent_files(Job("x", settings, {}, tmp_path, ()))
    for name, file in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tmp_path / name)
    here, there = (find_adapter(str(each), key="adapter", words=True) for each in (given, tmp_path / place))
    assert bool(here.words) == (named == "folder")
    assert (there.digest, len(there.words)) == (here.digest, len(here.words))
    assert there.job is not None
    assert there.job.id == trained.id


def test_adapters_that_do_not_fit_are_refused_before_anything_starts(
    sdxl_parts: Parts, sdxl_folder: Path, sd15_parts: Parts, tmp_path: Path
) -> None:
    unet = {"unet": sdxl_parts["unet"]}
    dora = str(write_peft_plainly(tmp_path / "dora.safetensors", random_layers(unet, dora=True), {"use_dora": True}))
    plain = str(write_peft_plainly(tmp_path / "plain.safetensors", random_layers(unet), {}))
    for given, said in (
        ({"adapter": [dora, plain]}, "is a DoRA, which cannot be put together with others"),
        ({"adapter": dora, "adapter_weight": 0.5}, r"adapter_weight = 0\.5: .* is a DoRA"),
        ({"adapter": dora, "output": "adapter", "rank": 1}, "is a DoRA, which cannot be reduced"),
        ({"adapter": str(tmp_path / "nothing")}, "is not there"),
    ):
        with pytest.raises(SettingsError, match=said):
            do("merge", tmp_path / "job", sdxl_folder, **given)
    other = write_peft_plainly(tmp_path / "other.safetensors", random_layers(sd15_parts), {})
    with pytest.raises(SettingsError, match=r"is it for another kind of model|belong to no layer"):
        do("merge", tmp_path / "job", sdxl_folder, adapter=str(other))
    assert not any((tmp_path / "job").iterdir())
