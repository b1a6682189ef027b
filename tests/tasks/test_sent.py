"""What leaves this machine with a job is what it needs: never what people and programs hide beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.image import checkout
from runner.jobs.job import Job
from runner.launchers.sagemaker import channels
from runner.schema.tasks import TASKS
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


def test_hidden_files_beside_the_code_are_neither_sent_nor_in_an_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "PACKAGE", folder)
    monkeypatch.setattr(channels, "HOME", folder)
    assert {name for name, _ in channels.code_files()} == {"runner/a.png", "runner/deeper/b.png"}
    assert set(checkout.files(folder.parent)) == {folder / "a.png", folder / "deeper" / "b.png"}
