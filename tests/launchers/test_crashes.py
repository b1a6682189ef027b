"""Whatever dies, and however often, repeating the command gives the same results, and nothing is done twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import runner
from tests.launchers.running import Running, assert_bitwise_equal, manifests, outputs, weights

KILLS = 10
SWEEP = ["-m", "seed=1,2", "lora.rank=2,5"]


@pytest.fixture
def settings(sdxl_folder: Path) -> list[str]:
    fixed = [f"model.path={sdxl_folder}", "logger=none", "validation=loss_only", "validation.timesteps=1"]
    return [*fixed, "steps=60", "batch_size=1", "checkpoint.every=4", "optimizer.eps=1e-3"]


def by_overrides(name: str) -> dict[str, dict[str, Any]]:
    """The manifests of an experiment, by the overrides that distinguish its jobs."""
    found = {}
    for manifest in manifests(name).values():
        found[" ".join(text for text in manifest["overrides"] if text.startswith(("seed", "lora.rank")))] = manifest
    return found


def folder(name: str, job_id: str) -> Path:
    return outputs() / name / job_id


def holder(name: str, job_id: str) -> int:
    return int((folder(name, job_id) / ".lock").read_text())


def close(left: Path, right: Path) -> bool:
    one, other = weights(left), weights(right)
    largest = max(float(tensor.abs().max()) for tensor in one.values())
    return max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-5 * largest


def test_the_jobs_of_a_killed_worker_go_on_in_smaller_packs(settings: list[str]) -> None:
    undisturbed = runner(*SWEEP, *settings, "name=calm")
    assert undisturbed.code == 0, undisturbed.output

    running = Running([*SWEEP, *settings, "name=killed"])
    first = running.wait_for("killed/*/checkpoints/step-000004").parents[1]
    os.kill(int((first / ".lock").read_text()), signal.SIGKILL)
    answer = running.end()

    assert answer.code == 0, answer.output
    assert "killed by signal 9 (often: out of memory) with 4 jobs; they continue from their checkpoints, 2 at once" in (
        answer.output
    )
    calm, killed = by_overrides("calm"), by_overrides("killed")
    assert {manifest["state"] for manifest in killed.values()} == {"completed"}
    assert all(close(folder("calm", calm[key]["id"]), folder("killed", killed[key]["id"])) for key in calm)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_of_several_workers_too_it_is_known_how_one_was_killed(settings: list[str]) -> None:
    running = Running([*SWEEP, *settings, "name=two", "launcher.pack=2", "launcher.concurrency=2"])
    first = running.wait_for("two/*/checkpoints/step-000004").parents[1]
    worker = holder("two", first.name)
    deadline = time.monotonic() + 60
    while parent_of(worker) != running.process.pid:  # what it was forked from has ended, and no longer takes up memory
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    answer = running.end()

    assert answer.code == 0, answer.output
    assert "killed by signal 9 (often: out of memory) with 2 jobs; they continue from their checkpoints, 1 at once" in (
        answer.output
    )
    assert {manifest["state"] for manifest in manifests("two").values()} == {"completed"}


class Executioner(threading.Thread):
    """Kills every worker of one job, as if the job needed more memory than is available."""

    def __init__(self, name: str, key: str) -> None:
        super().__init__(daemon=True)
        self.name_of_experiment, self.key = name, key
        self.kills = 0
        self.done = threading.Event()

    def _all_have_begun(self, job_id: str) -> bool:
        """Whether all jobs taken by the same worker have started: only those are seen to have died with it."""
        pid = self._pid(job_id)
        every = by_overrides(self.name_of_experiment).values()
        return pid is not None and all(each["state"] != "pending" for each in every if self._pid(each["id"]) == pid)

    def _pid(self, job_id: str) -> int | None:
        text = (folder(self.name_of_experiment, job_id) / ".lock").read_text()
        return int(text) if text else None

    def run(self) -> None:
        while not self.done.wait(0.02):
            manifest = by_overrides(self.name_of_experiment).get(self.key)
            if manifest is not None and manifest["state"] == "running" and self._all_have_begun(manifest["id"]):
                try:
                    os.kill(holder(self.name_of_experiment, manifest["id"]), signal.SIGKILL)
                    self.kills += 1
                except (ProcessLookupError, ValueError):
                    continue
                time.sleep(0.5)


def test_a_job_that_kills_its_worker_is_found_out_and_fails_alone(settings: list[str]) -> None:
    executioner = Executioner("poison", "seed=2 lora.rank=2")
    executioner.start()
    answer = runner(*SWEEP, *settings, "name=poison")
    executioner.done.set()

    assert answer.code == 1, answer.output
    found = by_overrides("poison")
    assert {key: manifest["state"] for key, manifest in found.items()} == {
        "seed=1 lora.rank=2": "completed",
        "seed=1 lora.rank=5": "completed",
        "seed=2 lora.rank=2": "failed",
        "seed=2 lora.rank=5": "completed",
    }
    assert "killed by signal 9 (often: out of memory)" in found["seed=2 lora.rank=2"]["error"]
    assert executioner.kills == 3, "in a pack of four, of two, and alone"
    assert "1 of 4 jobs failed" in answer.output


@pytest.mark.slow
def test_killed_at_random_the_sweep_ends_as_if_nothing_had_been(settings: list[str]) -> None:
    calm = runner(*SWEEP, *settings, "name=calm", "launcher.pack=1")
    assert calm.code == 0, calm.output
    draw = random.Random(20261124)
    for number in range(KILLS):
        running = Running([*SWEEP, *settings, "name=wild", "launcher.pack=1", "launcher.concurrency=2"])
        deadline = time.monotonic() + draw.uniform(1.0, 12.0)
        while time.monotonic() < deadline and running.process.poll() is None:
            time.sleep(0.02)
        if number % 2:
            running.kill()
        else:
            for manifest in manifests("wild").values():
                if manifest["state"] == "running" and draw.random() < 0.7:
                    os.kill(holder("wild", manifest["id"]), signal.SIGKILL)
            running.kill()
    last = runner(*SWEEP, *settings, "name=wild", "launcher.pack=1", "launcher.concurrency=2")
    if last.code == 1:  # a job whose worker had only this job when it was killed counts as failed
        last = runner(*SWEEP, *settings, "name=wild", "launcher.pack=1", "launcher.concurrency=2")

    assert last.code == 0, last.output
    one, other = by_overrides("calm"), by_overrides("wild")
    assert one.keys() == other.keys()
    for key in one:
        assert_bitwise_equal(folder("calm", one[key]["id"]), folder("wild", other[key]["id"]))
        assert one[key]["objective"] == other[key]["objective"]
        assert other[key]["state"] == "completed"
    assert not list((outputs() / "wild").glob("*/checkpoints/.*"))


def test_workers_end_when_their_runner_is_gone(settings: list[str]) -> None:
    running = Running([*SWEEP, *settings, "name=orphans", "steps=100000"])
    running.wait_for("orphans/*/checkpoints/step-000004")
    job_id = next(iter(manifests("orphans")))
    pid = holder("orphans", job_id)
    running.kill()

    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
    assert {manifest["state"] for manifest in manifests("orphans").values()} == {"interrupted"}
