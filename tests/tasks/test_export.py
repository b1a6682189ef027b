"""An exported adapter means the same to other readers; an upload arrives on the Hub, with a card."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import yaml
from huggingface_hub import constants
from pydantic import BaseModel, ValidationError
from safetensors import safe_open
from safetensors.torch import load_file

from runner.artifacts.exported import NAMING_PLACES, NOT_OF_INTEREST, Exported, header_of_kohya, write_export_card
from runner.errors import Interrupted, RunnerError, SettingsError
from runner.families import find_family
from runner.jobs.job import Job
from runner.mix.write import write_diffusers
from runner.schema import Experiment
from runner.schema.tasks.export import Export
from runner.system.printable import log_to
from runner.tasks.export.check import base_model
from tests.artifacts.saved import apart, output
from tests.mix.adapters import SDXL_PREFIXES, add_kohya, random_layers, write_kohya_plainly, write_peft_plainly
from tests.mix.conftest import Parts
from tests.tasks.doing import do, with_words
from tests.tasks.hub_stand_in import Hub, Repository, serving
from tests.train.bench import Bench, family_of, pipeline_of

ALL = ["diffusers", "kohya", "kohya_alpha"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, and a token with write access. Without Xet, which uploads in another way."""
    with serving() as found:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", "hf_writes")
        yield found


@pytest.fixture(scope="module")
def trained(bench: Bench, sdxl_folder: Path) -> Job:
    """A job that drew samples during training and was taught an instance prompt."""
    job = bench.job(
        sdxl_folder,
        lora={"rank": 4, "alpha": 6.0, "text_encoder": True},
        dataset={"instance_prompt": "a photo of sks circle"},
        validation={"prompts": ["a red circle | on a table"], "inference_steps": 2},
        steps=2,
    )
    assert bench.train(job)
    return job


@pytest.mark.parametrize("name", ["sd15_folder", "sdxl_folder"])
def test_every_format_means_the_same_to_independent_readers(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(name)
    pipeline = pipeline_of(model)
    family = find_family(family_of(model))
    parts = {component: getattr(pipeline, component) for component in family.adapter_components}
    layers = random_layers(parts, rank=4, scale=0.5)
    layers |= random_layers({"unet": parts["unet"]}, rank=2, scale=1.5, targets=("to_v",))
    file = write_diffusers(tmp_path, family, layers)
    job = tmp_path / "job"
    found = do("export", job, model, adapter=str(file), formats=ALL, name="house")["export"]
    assert found["files"] == ["pytorch_lora_weights.safetensors", "house.safetensors", "house-alpha.safetensors"]
    pipeline.load_lora_weights(tmp_path)
    wanted = output(pipeline)
    again = pipeline_of(model)
    again.load_lora_weights(job / "export", weight_name="pytorch_lora_weights.safetensors")
    assert apart(output(again), wanted) < 1e-5
    for kohya in ("house.safetensors", "house-alpha.safetensors"):
        plain = pipeline_of(model)
        assert add_kohya(plain, job / "export" / kohya) == len(layers)
        assert apart(output(plain), wanted) < 1e-5
    alphas = {
        float(value) for key, value in load_file(job / "export" / "house-alpha.safetensors").items() if "alpha" in key
    }
    assert alphas == {2.0, 3.0}
    with safe_open(job / "export" / "house.safetensors", "pt") as opened:
        about = opened.metadata()
    assert about["ss_base_model_version"] == ("sd_v1" if name == "sd15_folder" else "sdxl_base_v1-0")
    assert str(tmp_path) not in str(about) and str(model) not in str(about)


@pytest.mark.parametrize(("width", "wanted"), [(768, {}), (1024, {"ss_v2": "True"})])
def test_programs_know_a_file_for_stable_diffusion_2(width: int, wanted: dict[str, str]) -> None:
    denoiser = SimpleNamespace(config=SimpleNamespace(cross_attention_dim=width))
    about = header_of_kohya(find_family("sd"), denoiser, title="x", base_model=None)
    assert {key: value for key, value in about.items() if key == "ss_v2"} == wanted


def test_files_of_others_are_exported_with_a_weight_of_their_own(
    sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path
) -> None:
    layers = random_layers(sdxl_parts, rank=4, scale=0.25)
    file = write_kohya_plainly(tmp_path / "theirs.safetensors", layers, SDXL_PREFIXES)
    do("export", tmp_path / "job", sdxl_folder, adapter=str(file), adapter_weight=0.5)
    assert "| Strength | 0.5 of what was trained |" in (tmp_path / "job" / "export" / "README.md").read_text()
    by_hand, by_diffusers = pipeline_of(sdxl_folder), pipeline_of(sdxl_folder)
    add_kohya(by_hand, file, 0.5)
    by_diffusers.load_lora_weights(tmp_path / "job" / "export", weight_name="pytorch_lora_weights.safetensors")
    assert apart(output(by_diffusers), output(by_hand)) < 1e-5
    assert (tmp_path / "job" / "export" / "theirs.safetensors").is_file()


def test_a_lower_rank_says_how_much_it_keeps(
    sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = write_diffusers(tmp_path, find_family("sdxl"), random_layers(sdxl_parts, rank=8))
    found = do("export", tmp_path / "job", sdxl_folder, adapter=str(file), rank=3, formats=["kohya"])["export"]
    assert 0.3 < found["kept_energy"] < 0.95
    assert f"rank 3: kept {found['kept_energy']:.2%} of the energy" in caplog.text
    (kohya,) = (tmp_path / "job" / "export").glob("*.safetensors")
    assert {len(tensor) for key, tensor in load_file(kohya).items() if ".lora_down." in key} == {3}
    assert f"{found['kept_energy']:.2%}" in (tmp_path / "job" / "export" / "README.md").read_text()


@pytest.mark.parametrize("name", ["sd3_folder", "flux_folder"])
def test_transformers_are_exported_under_the_names_that_comfyui_reads(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(name)
    parts = {"transformer": pipeline_of(model).transformer}
    layers = random_layers(parts, rank=2, scale=3.0, targets=("to_q", "ff.net.2"))
    file = write_diffusers(tmp_path, find_family(family_of(model)), layers)
    do("export", tmp_path / "job", model, adapter=str(file), name="house")
    for key, tensor in load_file(tmp_path / "job" / "export" / "house.safetensors").items():
        layer = layers["transformer", key.removeprefix("transformer.").rpartition(".lora_")[0]]
        assert torch.allclose(tensor, layer.down if "lora_A" in key else layer.up * 3.0)
    with pytest.raises(SettingsError, match="no program reads alpha tensors"):
        do("export", tmp_path / "other", model, adapter=str(file), formats=["kohya_alpha"])


def test_dora_is_exported_for_diffusers_alone(sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path) -> None:
    layers = random_layers(sdxl_parts, rank=4, dora=True)
    file = write_diffusers(tmp_path, find_family("sdxl"), layers)
    do("export", tmp_path / "job", sdxl_folder, adapter=str(file), formats="diffusers")
    before, after = load_file(file), load_file(tmp_path / "job" / "export" / file.name)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    for given, said in (({}, r"set formats=\[diffusers\]"), ({"formats": "diffusers", "rank": 2}, "cannot be reduced")):
        with pytest.raises(SettingsError, match=said):
            do("export", tmp_path / "other", sdxl_folder, adapter=str(file), **given)


@pytest.mark.parametrize("layers", [True, False])
def test_words_go_along(bench: Bench, sdxl_folder: Path, tmp_path: Path, layers: bool) -> None:
    job = with_words(bench, sdxl_folder, layers)
    do("export", tmp_path / "job", sdxl_folder, adapter=str(job.folder))
    exported = tmp_path / "job" / "export"
    assert (exported / "sks.safetensors").read_bytes() == job.paths.word("<sks>").read_bytes()
    assert (exported / "pytorch_lora_weights.safetensors").is_file() is layers
    card = (exported / "README.md").read_text()
    assert "copy `sks.safetensors` into the folder of embeddings" in card
    code = card.partition("```python")[2].partition("```")[0]
    code = code.replace("path/to/the/base", str(sdxl_folder)).replace("path/to/this/folder", str(exported))
    found: dict[str, Any] = {}
    exec(code, found)  # this is what people copy
    assert "<sks>" in found["pipeline"].tokenizer_2.get_vocab()
    assert bool(found["pipeline"].get_active_adapters()) is layers
    if not layers:
        with pytest.raises(SettingsError, match=r"rank = 2: has no effect on .*, which is words alone"):
            do("export", tmp_path / "other", sdxl_folder, adapter=str(job.folder), rank=2)


def test_what_goes_to_the_hub_arrives_there(
    hub: Hub, trained: Job, sdxl_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    log_to(sys.stderr, logging.INFO)  # as every command does
    given: dict[str, Any] = {
        "adapter": str(trained.folder),
        "hub": {"push": True, "repo_id": "studio/circle", "private": True, "base_model": "someone/sdxl"},
    }
    job = tmp_path / "job"
    (left := job / "export" / ".README.md.x1y2").parent.mkdir(parents=True)
    left.write_text("of a process that was killed")
    found = do("export", job, sdxl_folder, **given)
    left.unlink()
    repository = hub.repositories["studio/circle"]
    assert repository.private and len(repository.commits) == 1
    assert found["hub"]["repo_id"] == "studio/circle" and found["hub"]["url"].startswith(hub.address)
    local = {file.name: file.read_bytes() for file in (job / "export").iterdir()}
    assert repository.files == local
    title = f"{trained.settings.name}-{trained.id}"
    assert {"README.md", "loss.svg", "sample-00.png", f"{title}.safetensors"} < local.keys()
    card = repository.files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "someone/sdxl"
    assert front["instance_prompt"] == "a photo of sks circle"
    assert front["widget"] == [{"text": "a red circle | on a table", "output": {"url": "sample-00.png"}}]
    assert {"lora", "sdxl"} < set(front["tags"])
    assert "Loss at fixed noise" in card and "(loss.svg)" in card
    assert yaml.safe_load(card.split("```yaml")[1].split("```")[0])["lora"]["alpha"] == 6.0
    assert "from_pretrained('someone/sdxl')" in card
    # Done once: nothing is sent again, and no secret and no path of this machine appears anywhere.
    calls = len(hub.calls)
    do("export", job, sdxl_folder, **given)
    assert {verb for verb, _ in hub.calls[calls:]} == {"GET"}
    assert "/storage/" not in caplog.text, "addresses to write to are secrets"
    written = b"".join(file.read_bytes() for file in job.rglob("*") if file.is_file())
    for private in ("hf_writes", str(sdxl_folder), str(trained.folder)):
        assert private.encode() not in written, private


def test_a_prompt_with_dashes_is_a_prompt_on_the_card(trained: Job, sdxl_folder: Path, tmp_path: Path) -> None:
    job = replace(trained, folder=Path(shutil.copytree(trained.folder, tmp_path / "trained")))
    card = job.paths.lora / "README.md"
    prompt = "a house --- at night"
    card.write_text(card.read_text().replace("a red circle | on a table", prompt))
    do("export", tmp_path / "job", sdxl_folder, adapter=str(job.folder))
    written = (tmp_path / "job" / "export" / "README.md").read_text()
    assert f"![{prompt}](sample-00.png)" in written and "instance_prompt: a photo of sks circle" in written


def card_of(trained: Job, folder: Path, **changes: Any) -> dict[str, Any]:
    """The settings on the card of a training with other places."""
    folder.mkdir(parents=True)
    raw = trained.experiment.model_dump(mode="json")
    for section, values in changes.items():
        raw[section] |= values
    job = replace(trained, folder=folder, settings=Experiment.model_validate(raw))
    exported = Exported(folder, {}, (), {})
    card = write_export_card(exported, job, title="t", base_model=None, family="sdxl").read_text()
    found: dict[str, Any] = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    return found


def test_places_of_this_machine_are_on_no_card(trained: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a red/blue house " * 20
    dataset = {"path": "clients/acme/set.parquet"}
    said = card_of(trained, tmp_path / "file", dataset=dataset, validation={"prompts": [prompt]})
    assert said["dataset"]["path"] == "set.parquet" and said["validation"]["prompts"] == [prompt]
    # A folder that cannot be found from here looks like a Hub id; it counts as one only if that id was fetched.
    sources = {"path": None, "sources": [{"path": "acme/photos"}, {"path": "acme/more/of it"}]}
    found = card_of(trained, tmp_path / "sources", dataset=sources)["dataset"]["sources"]
    assert [source["path"] for source in found] == ["photos", "of it"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "datasets--someone--cats").mkdir(parents=True)
    assert card_of(trained, tmp_path / "hub-id", dataset={"path": "someone/cats"})["dataset"]["path"] == "someone/cats"
    known = replace(trained, identity=trained.identity | {"model": "someone/sdxl@main:"})
    assert card_of(known, tmp_path / "base", model={"path": "someone/sdxl"})["model"]["path"] == "someone/sdxl"
    assert card_of(trained, tmp_path / "folder", model={"path": "models/sdxl"})["model"]["path"] == "sdxl"


def test_every_setting_that_names_a_place_is_known() -> None:
    def places(settings: type[BaseModel]) -> Iterator[str]:
        for name, field in settings.model_fields.items():
            kinds = [field.annotation, *get_args(field.annotation)]
            for kind in [*kinds, *(inner for outer in kinds for inner in get_args(outer))]:
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    yield from places(kind) if name not in NOT_OF_INTEREST else ()
            if re.search(r"\b[Ff]older\b|\bHub id\b", field.description or "") and str in kinds:
                yield name

    assert {"path", "vae", "class_data_dir", "init_from", "clip"} <= set(places(Experiment))
    assert set(places(Experiment)) - NAMING_PLACES <= {"name"}


def test_a_folder_is_no_base_model_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "sdxl").mkdir(parents=True)
    given = {"task": {"name": "export"}, "adapter": "a", "model": {"path": "models/sdxl", "family": "sdxl"}}
    settings = Export.model_validate(given)
    assert base_model(settings) == "models/sdxl"
    monkeypatch.chdir(tmp_path)
    assert base_model(settings) is None


def test_a_repository_that_is_there_gets_another_commit(
    hub: Hub, trained: Job, sdxl_folder: Path, tmp_path: Path
) -> None:
    push = {"push": True, "repo_id": "ann/circle", "base_model": "someone/sdxl", "private": False}
    do("export", tmp_path / "one", sdxl_folder, adapter=str(trained.folder), hub=push)
    do("export", tmp_path / "two", sdxl_folder, adapter=str(trained.folder), hub=push, rank=2)
    repository = hub.repositories["ann/circle"]
    assert len(repository.commits) == 2 and not repository.private
    weights = (tmp_path / "two" / "export" / "pytorch_lora_weights.safetensors").read_bytes()
    assert repository.files["pytorch_lora_weights.safetensors"] == weights
    assert hashlib.sha256(weights).hexdigest() in hub.objects


def test_nothing_goes_to_a_public_repository_unless_that_is_said(
    hub: Hub, sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path
) -> None:
    file = write_peft_plainly(tmp_path / "a.safetensors", random_layers({"unet": sdxl_parts["unet"]}), {})
    for private in (False, True):
        hub.repositories["ann/circle"] = Repository(private=private)
        push = {"push": True, "repo_id": "ann/circle", "base_model": "someone/sdxl", "private": not private}
        with pytest.raises(SettingsError, match=f"hub.private = .*; set hub.private={str(private).lower()}"):
            do("export", tmp_path / "job", sdxl_folder, adapter=str(file), hub=push)
    assert not hub.repositories["ann/circle"].files


@pytest.mark.parametrize(
    ("token", "given", "said"),
    [
        (None, {}, "there is no token for the Hub; set HF_TOKEN"),
        ("hf_unknown", {}, r"the Hub does not know the token \(401\)"),
        ("hf_reads", {}, "the token may only read"),
        ("hf_writes", {"repo_id": "others/circle"}, r"hub\.repo_id = 'others/circle': .* take ann or studio as owner"),
        ("hf_writes", {"repo_id": "ann/cir--cle"}, r"hub\.repo_id = 'ann/cir--cle': Cannot have -- or \.\."),
        ("hf_writes", {"repo_id": "a/b/c"}, r"hub\.repo_id = 'a/b/c': .*give owner/name"),
        ("hf_writes", {"repo_id": "circle"}, "does not say whose it is"),
        ("hf_writes", {"base_model": None}, r"hub\.base_model: has no value"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_made(
    hub: Hub,
    sdxl_parts: Parts,
    sdxl_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    given: dict[str, Any],
    said: str,
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    file = write_peft_plainly(tmp_path / "a.safetensors", random_layers({"unet": sdxl_parts["unet"]}), {})
    push = {"push": True, "repo_id": "ann/circle", "base_model": "someone/sdxl", **given}
    with pytest.raises(SettingsError, match=said) as caught:
        do("export", tmp_path / "job", sdxl_folder, adapter=str(file), hub=push)
    assert token is None or token not in str(caught.value)
    assert not any((tmp_path / "job").iterdir()) and not hub.repositories


def test_a_push_that_is_refused_says_why_and_goes_on_later(
    hub: Hub, sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path
) -> None:
    file = write_peft_plainly(tmp_path / "a.safetensors", random_layers({"unet": sdxl_parts["unet"]}), {})
    push = {"push": True, "repo_id": "ann/circle", "base_model": "someone/sdxl"}

    def export(**more: Any) -> Any:
        return do("export", tmp_path / "job", sdxl_folder, adapter=str(file), hub=push, **more)

    # First, because the Hub keeps what was stored, and the same files are not sent to it again.
    hub.refused = {"/storage/": 413}
    with pytest.raises(RunnerError, match=r"ann/circle': the Hub cannot be reached or used \(.* 413\)"):
        export()
    hub.refused = {"/commit/": 403}
    with pytest.raises(
        RunnerError, match=r"hub\.repo_id = 'ann/circle': the token may not write there \(403: .*not for"
    ):
        export()
    hub.refused = {}
    with pytest.raises(Interrupted):
        export(stop=lambda: True)
    assert export()["hub"]["repo_id"] == "ann/circle"
    assert "pytorch_lora_weights.safetensors" in hub.repositories["ann/circle"].files


def test_no_hub_at_all_is_said(
    hub: Hub, sdxl_parts: Parts, sdxl_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    file = write_peft_plainly(tmp_path / "a.safetensors", random_layers({"unet": sdxl_parts["unet"]}), {})
    push = {"push": True, "repo_id": "ann/circle", "base_model": "someone/sdxl"}
    with pytest.raises(SettingsError, match=r"hub\.push = true: the Hub cannot be reached"):
        do("export", tmp_path / "job", sdxl_folder, adapter=str(file), hub=push)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "there is nothing to export"),
        ({"adapter": ["a", "b"]}, "one is exported at a time"),
        ({"adapter": "a", "formats": ["kohya", "kohya"]}, "names a format twice"),
        ({"adapter": "a", "formats": ["webui"]}, "formats"),
        ({"adapter": "a", "formats": []}, r"formats = \[\]: names no format"),
        ({"adapter": "a", "rank": 2, "keep_energy": 0.5}, "keep_energy = 0.5: has no effect"),
        ({"adapter": "a", "hub": {"push": True}}, r"repo_id: has no value"),
        ({"adapter": "a", "hub": {"repo_id": "a/b"}}, r"repo_id = 'a/b': has no effect without hub\.push=true"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    given: dict[str, Any], said: str, sdxl_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=said):
        do("export", tmp_path / "job", sdxl_folder, **given)
