"""The same workers without Slurm, through submitit's executor for a single machine: they outlive the command."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.command_line import command, runner
from tests.launchers.running import DEADLINE_S, Running, manifests, only_folder, outputs


@pytest.fixture
def settings(settings: list[str]) -> list[str]:
    return [*settings, "launcher.cluster=local"]


def logs() -> list[Path]:
    """One log for each worker that was ever started."""
    return sorted(outputs().glob("dev/background/*_0_log.out"))


def wait_until_all_are(state: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while {manifest["state"] for manifest in manifests().values()} != {state}:
        assert time.monotonic() < deadline, [manifest["state"] for manifest in manifests().values()]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_in_packs_is_done_by_two_workers(settings: list[str]) -> None:
    answer = runner("-m", *settings, "lora.rank=2,3,4,5", "launcher.pack=1", "launcher.concurrency=2")

    assert answer.code == 0, answer.output
    assert [manifest["state"] for manifest in manifests().values()] == ["completed"] * 4
    assert [manifest["attempts"] for manifest in manifests().values()] == [1] * 4
    assert len(logs()) == 2
    said = [log.read_text().count("saved and read back") for log in logs()]
    assert sum(said) == 4 and min(said) > 0, "both had a part in it"


def test_after_the_command_was_killed_its_workers_go_on_and_the_same_command_waits_for_them(
    settings: list[str],
) -> None:
    running = Running(settings)
    running.wait_for("dev/*/checkpoints/step-000005")
    running.kill()
    answer = runner(*settings)

    assert answer.code == 0, answer.output
    assert manifests()[only_folder().name]["attempts"] == 1
    assert len(logs()) == 1


@pytest.mark.slow
def test_ctrl_c_does_not_reach_them_and_the_same_command_collects(settings: list[str]) -> None:
    running = Running(settings)
    running.wait_for("dev/*/checkpoints/step-000005")
    os.killpg(running.process.pid, signal.SIGINT)  # like a terminal, to the whole group
    answer = running.end()

    assert answer.code == 130, answer.output
    assert "go on without this command" in answer.output
    wait_until_all_are("completed")
    again = runner(*settings)
    assert again.code == 0
    assert "1 already done" in again.output
    assert len(logs()) == 1


@pytest.mark.slow
def test_what_is_stopped_is_not_begun_again_by_the_command_that_waits(settings: list[str]) -> None:
    running = Running([*settings, "steps=400"])
    running.wait_for("dev/*/checkpoints/step-*")
    stopped = command("stop", str(outputs() / "dev"))
    answer = running.end()

    assert stopped.code == 0, stopped.output
    assert "asked to save and stop: background" in stopped.output
    assert answer.code == 130, answer.output
    assert [manifest["state"] for manifest in manifests().values()] == ["cancelled"]
    assert len(logs()) == 1


@pytest.mark.slow
def test_kill_saves_and_the_same_command_goes_on(settings: list[str]) -> None:
    settings = [*settings, "steps=300"]
    first = runner(*settings, "launcher.wait=false")
    assert first.code == 0, first.output
    assert manifests()[only_folder().name]["state"] == "submitted", "nobody had to wait for the worker's output"
    how = first.output.splitlines()[-1].rpartition("after each has saved: ")[2]
    deadline = time.monotonic() + DEADLINE_S
    while not list(outputs().glob("dev/*/checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    assert os.system(how) == 0
    wait_until_all_are("interrupted")

    answer = runner(*settings)
    assert answer.code == 0, answer.output
    assert manifests()[only_folder().name]["attempts"] == 2
    assert len(logs()) == 2
