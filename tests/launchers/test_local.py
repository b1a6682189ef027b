"""Jobs on this machine: done once, continued after any death, alone in their failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.command_line import runner, trained
from tests.conftest import MakeOnce
from tests.launchers.running import Running, assert_bitwise_equal, manifests, only_folder, outputs, weights

STEPS = 40


@pytest.fixture
def settings(sdxl_folder: Path) -> list[str]:
    return [f"model.path={sdxl_folder}", "logger=none", "validation.prompts=[]", f"steps={STEPS}", "lora.rank=4"]


@pytest.fixture
def uninterrupted(settings: list[str], made_once: MakeOnce) -> Path:
    (job,) = (made_once("local", lambda folder: trained(folder, *settings)) / "outputs" / "dev").glob("*/manifest.json")
    return job.parent


def test_a_run_folder_explains_itself_and_is_not_run_twice(settings: list[str]) -> None:
    arguments = [*settings, "validation.every=20", "validation.prompts=[a red house]", "validation.inference_steps=2"]
    first = runner(*arguments)

    assert first.code == 0, first.output
    folder = only_folder()
    manifest = manifests()[folder.name]
    assert manifest["state"] == "completed"
    assert manifest["objective_name"] == "validation/loss"
    assert 0 < manifest["objective"] < 10
    assert manifest["dataset"]["images"] == 29 and manifest["dataset"]["held_out"] == 3
    for name in ("config.yaml", "metrics.jsonl", "log.txt", "lora/README.md", "lora/pytorch_lora_weights.safetensors"):
        assert (folder / name).is_file(), name
    assert [path.name for path in sorted(folder.glob("samples/step-*"))] == [
        "step-000000",
        "step-000020",
        "step-000040",
    ]
    assert (folder.parent / "report.html").is_file()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/loss" in line] == [0, 20, 40]
    before = (folder / "manifest.json").read_bytes()

    again = runner(*arguments)

    assert again.code == 0
    assert "1 already done" in again.output
    assert (folder / "manifest.json").read_bytes() == before


def test_killed_at_any_step_the_same_command_ends_with_the_same_weights(
    settings: list[str], uninterrupted: Path
) -> None:
    arguments = [*settings, "checkpoint.every=1"]
    for step in (3, 20):
        running = Running(arguments)
        running.wait_for(f"dev/*/checkpoints/step-{step:06d}")
        os.kill(int((only_folder() / ".lock").read_text()), signal.SIGKILL)
        answer = running.end()
        assert answer.code == 1
        assert "killed by signal 9" in answer.output
        assert manifests()[only_folder().name]["state"] == "failed"

    assert runner(*arguments).code == 0
    assert_bitwise_equal(only_folder(), uninterrupted)
    assert manifests()[only_folder().name]["attempts"] == 3


def test_a_signal_saves_and_the_same_command_continues(settings: list[str], uninterrupted: Path) -> None:
    arguments = [*settings, "checkpoint.every=5"]
    running = Running(arguments)
    running.wait_for("dev/*/checkpoints/step-000005")
    running.process.send_signal(signal.SIGTERM)
    answer = running.end()

    assert answer.code == 130, answer.output
    manifest = manifests()[only_folder().name]
    assert manifest["state"] == "interrupted"
    assert manifest["error"] is None
    assert (only_folder() / "checkpoints" / f"step-{manifest['steps_done']:06d}").is_dir()

    answer = runner(*arguments)
    assert answer.code == 0, answer.output
    assert f"), continues after step {manifest['steps_done']}\n" in answer.output, "as the plan says"
    assert_bitwise_equal(only_folder(), uninterrupted)


def test_a_completed_job_without_its_weights_runs_again(settings: list[str], uninterrupted: Path) -> None:
    folder = outputs() / "dev" / uninterrupted.name
    shutil.copytree(uninterrupted, folder)
    before = weights(folder)
    (folder / "lora" / "pytorch_lora_weights.safetensors").unlink()

    answer = runner(*settings)

    assert answer.code == 0, answer.output
    assert "has lost its result: running it again" in answer.output
    assert all(torch.equal(before[key], tensor) for key, tensor in weights(folder).items())
    (folder / "manifest.json").write_text("{bad")
    damaged = runner(*settings)
    assert damaged.code == 2
    assert "manifest.json is damaged" in damaged.output


def test_ctrl_c_ends_cleanly_with_a_checkpoint(settings: list[str]) -> None:
    running = Running([*settings, "checkpoint.every=5"])
    running.wait_for("dev/*/checkpoints/step-000005")
    os.killpg(running.process.pid, signal.SIGINT)  # like a terminal, to the whole group
    answer = running.end()

    assert answer.code == 130, answer.output
    assert "Traceback" not in answer.output
    assert manifests()[only_folder().name]["state"] == "interrupted"


def test_two_runners_cannot_work_on_the_same_job(settings: list[str]) -> None:
    running = Running([*settings, "checkpoint.every=1"])
    running.wait_for("dev/*/checkpoints/step-000001")
    os.killpg(running.process.pid, signal.SIGSTOP)  # until the other command has seen it, however long that takes
    other = Running(["-m", *settings, "checkpoint.every=1", "seed=0,1"])
    other.wait_for_line("1 worked on by another runner")
    os.killpg(running.process.pid, signal.SIGCONT)
    first, second = running.end(), other.end()

    assert first.code == 0, first.output
    assert second.code == 0, second.output
    assert {manifest["attempts"] for manifest in manifests().values()} == {1}
    assert [manifest["state"] for manifest in manifests().values()] == ["completed", "completed"]


def test_a_runner_goes_on_with_what_another_one_has_left(settings: list[str], uninterrupted: Path) -> None:
    running = Running([*settings, "checkpoint.every=1", f"steps={STEPS}"])
    running.wait_for("dev/*/checkpoints/step-000001")
    second = Running([*settings, "checkpoint.every=1"])
    second.wait_for_line("waiting for")
    running.process.send_signal(signal.SIGTERM)
    assert running.end().code == 130
    answer = second.end()

    assert answer.code == 0, answer.output
    assert manifests()[only_folder().name]["attempts"] == 2
    assert_bitwise_equal(only_folder(), uninterrupted)


def test_one_failure_does_not_hide_or_stop_another_job(settings: list[str]) -> None:
    sweep = ["-m", *settings, "logger.every=1", "optimizer.lr=1e-4,1e30"]
    for pack in ("auto", "1"):
        answer = runner(*sweep, f"launcher.pack={pack}", "launcher.concurrency=2", f"name=pack-{pack}")

        assert answer.code == 1, answer.output
        states = {m["overrides"][-3]: m["state"] for m in manifests(f"pack-{pack}").values()}
        assert sorted(m["state"] for m in manifests(f"pack-{pack}").values()) == ["completed", "failed"], states
        assert "1 of 2 jobs failed" in answer.output
        assert "the loss is" in answer.output
        assert "Run the same command again to retry only these." in answer.output
        assert "1e30" in (outputs() / f"pack-{pack}" / "multirun.yaml").read_text(), "what was asked for"

    again = runner(*sweep, "launcher.pack=1", "launcher.concurrency=2", "name=pack-1")
    assert "1 already done" in again.output


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(settings: list[str], uninterrupted: Path, tmp_path: Path) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    extra = {"TMPDIR": str(temporary)}
    answer = runner("name=two", *settings, "launcher.processes=2", "accumulation=2", extra=extra)

    assert answer.code == 0, answer.output
    assert not list(temporary.glob("torchelastic*")), "each run would leave one"
    assert manifests("two")[only_folder("two").name]["device"].startswith("2 x ")
    one, other = weights(uninterrupted), weights(only_folder("two"))
    difference = max(float((one[key] - other[key]).abs().max()) for key in one)
    largest = max(float(one[key].abs().max()) for key in one)
    assert difference < 1e-5 * largest, difference
