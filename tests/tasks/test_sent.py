"""What leaves this machine with a job is what it needs, never what people and programs hide beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner.image import checkout
from runner.jobs.adapter_file import find_adapter
from runner.jobs.job import Job
from runner.launchers.sagemaker import channels
from runner.schema.tasks import TASKS
from runner.system.tensor_file import PEFT_CONFIG
from runner.tasks.sent import sent_files

HIDDEN = (".env", ".git/config", "deeper/.env")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / ".mine" / "runner"
    for name in ("a.png", "deeper/b.png", *HIDDEN):
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text("secret" if name in HIDDEN else "")
    return found


def test_hidden_files_beside_images_are_not_sent(folder: Path, tmp_path: Path) -> None:
    features = {"inception": str(folder / "a.png")}
    settings = TASKS["evaluate"].model_validate(
        {"task": {"name": "evaluate"}, "real": str(folder), "features": features, "prompts": ["a house"]}
    )
    sent = {key: files for key, _, files in sent_files(Job("x", settings, {}, tmp_path, ()))}
    assert set(sent["real"]) == {"real/runner/a.png", "real/runner/deeper/b.png"}


@pytest.mark.parametrize(("here", "real"), [(".", "."), ("deeper", "..")])
def test_a_folder_is_sent_by_its_name_however_it_is_named(
    here: str, real: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / here)
    features = {"inception": str(folder / "a.png")}
    settings = TASKS["evaluate"].model_validate(
        {"task": {"name": "evaluate"}, "real": real, "features": features, "prompts": ["a house"]}
    )
    (_, named, files), _ = sent_files(Job("x", settings, {}, tmp_path, ()))
    assert named == "real/runner" and "real/runner/a.png" in files


def test_what_peft_says_of_an_adapter_goes_with_it_and_counts_as_it(tmp_path: Path) -> None:
    """Its scales are stored nowhere else."""
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / PEFT_CONFIG
    settings = TASKS["generate"].model_validate({"task": {"name": "generate"}, "adapter": str(file), "prompts": ["a"]})
    for name, beside in (("base_model.model.a.lora_A.weight", {config}), ("unet.a.lora_A.weight", set[Path]())):
        save_file({name: torch.zeros(2, 3)}, file)
        digests = set()
        for alpha in (4, 8):
            config.write_text(json.dumps({"lora_alpha": alpha}))
            ((_, there, sent),) = sent_files(Job("x", settings, {}, tmp_path, ()))
            assert (sent[there], set(sent.values())) == (file, {file, *beside})
            digests.add(find_adapter(str(file), key="adapter").digest)
        assert len(digests) == 1 + len(beside)


def test_hidden_files_beside_the_code_are_neither_sent_nor_in_an_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "PACKAGE", folder)
    monkeypatch.setattr(channels, "HOME", folder)
    assert {name for name, _ in channels.code_files()} == {"runner/a.png", "runner/deeper/b.png"}
    assert set(checkout.files(folder.parent)) == {folder / "a.png", folder / "deeper" / "b.png"}
