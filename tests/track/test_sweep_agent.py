"""W&B's own sweep agent starts the project's command line, and the job is logged to the run that it waits for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from runner.check import Checker
from runner.jobs.job import State, register, update_manifest
from runner.jobs.lock import lock
from runner.launch.door import launch
from runner.paths import outputs_dir
from runner.track import report_to_agent
from tests.command.test_composition import raw
from tests.command_line import ROOT
from tests.weights import weights_of

from .wandb_jobs import CONFIG, Settings, adapter, open_for, samples
from .wandb_server import WandbServer

# Reduces the sweep of docs/results.md to the smallest possible training.
LEAST = (
    "steps=2",
    "lr_scheduler=constant",
    "lr_scheduler.warmup_steps=0",
    "validation.prompts=[a red house]",
    "validation.inference_steps=1",
)


def documented_sweep() -> dict[str, Any]:
    """The sweep.yaml in the documents."""
    (text,) = re.findall(r"```yaml\n(# sweep.yaml.*?)```", (ROOT / "docs" / "results.md").read_text(), re.DOTALL)
    sweep = yaml.safe_load(text)
    assert isinstance(sweep, dict)
    return sweep


def test_a_run_of_the_agent_is_the_run_of_the_job(tmp_path: Path, server: WandbServer) -> None:
    drawn = {"lora.rank": {"value": 8}, "optimizer.lr": {"value": 0.0003}}
    start = {"type": "run", "run_id": "drawn-by-the-server", "program": "unused.py", "args": drawn}
    sweep = documented_sweep()
    assert set(sweep["parameters"]) == set(drawn)
    sweep["command"] += LEAST
    server.sweep = {"config": yaml.safe_dump(sweep), "commands": [[start]]}
    agent = [sys.executable, "-m", "wandb", "agent", "--count", "1", "me/photos/sweep1"]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "RUNNER_OUTPUTS": str(tmp_path / "outputs"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(agent, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=True)

    assert "python -m runner recipe=demo name=tuned lora.rank=8 optimizer.lr=0.0003" in done.stderr
    assert "Ignoring" not in done.stderr, "nothing that the agent decides is said against it"
    assert list(server.runs) == ["drawn-by-the-server"], done.stderr
    run = server.runs["drawn-by-the-server"]
    (job,) = [path for path in (tmp_path / "outputs" / "tuned").iterdir() if path.is_dir()]
    manifest = json.loads((job / "manifest.json").read_text())
    assert (run["sweep"], run["project"], run["groupName"]) == ("sweep1", "photos", "tuned")
    assert run["config"]["lora.rank"]["value"] == run["config"]["lora"]["value"]["rank"] == 8
    assert run["config"]["optimizer"]["value"]["lr"] == 0.0003
    assert run["config"]["steps"]["value"] == 2
    assert run["summary"]["validation/loss"] == run["summary"]["objective"] == manifest["objective"]
    assert [line["global_step"] for line in run["history"] if "validation/loss" in line] == [0, 2]
    assert (run["summary"]["state"], run["exit_code"]) == ("completed", 0)
    assert manifest["wandb_url"] == f"{server.url}/me/photos/runs/drawn-by-the-server"


@pytest.fixture
def in_a_sweep(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> WandbServer:
    """A server, and the environment that the agent above gives its processes."""
    for name, value in {"SWEEP_ID": "sweep1", "RUN_ID": "drawn", "ENTITY": "me", "PROJECT": "photos"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    return server


def test_a_job_that_was_done_before_is_reported_and_not_trained_again(
    tmp_path: Path, in_a_sweep: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job"
    shots = job / "samples" / "step-000002"
    shots.mkdir(parents=True)
    samples(shots)
    adapter(job)
    (job / "config.yaml").write_text(json.dumps({**CONFIG, "logger": {"name": "none"}}))
    (job / "manifest.json").write_text(
        json.dumps({"id": "abc", "overrides": ["lora.rank=8"], "state": "completed", "objective": 0.2, "steps_done": 2})
    )
    (job / "metrics.jsonl").write_text('{"step": 2, "time": 1.0, "validation/loss": 0.2}\n')
    # On a busy machine, opening may take longer than usual.
    assert report_to_agent(Settings(timeout_s=60), job) == f"{in_a_sweep.url}/me/photos/runs/drawn"
    run = in_a_sweep.runs["drawn"]
    assert (run["sweep"], run["project"], run["displayName"]) == ("sweep1", "photos", "lora.rank=8")
    assert (run["summary"]["validation/loss"], run["summary"]["steps_done"]) == (0.2, 2)
    assert run["exit_code"] == 0
    assert report_to_agent(Settings(), tmp_path / "nothing") is None
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert report_to_agent(Settings(), job) is None
    assert list(in_a_sweep.runs) == ["drawn"]


def test_a_job_that_another_agent_trains_at_this_moment_is_reported_when_it_is_done(
    in_a_sweep: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "second")
    config = raw("model=embedded")
    job = Checker(outputs_dir()).job(config, ())
    register(job, State.RUNNING)
    with ExitStack() as other:
        other.enter_context(lock(job.folder))

        def finish(_seconds: float) -> None:
            job.paths.metrics.write_text('{"step": 2, "time": 1.0, "validation/loss": 0.2}\n')
            job.paths.weights.parent.mkdir()
            job.paths.weights.write_bytes(weights_of())
            update_manifest(job.folder, state=State.COMPLETED, objective=0.2, objective_name="validation/loss")
            other.close()

        monkeypatch.setattr("runner.launch.door.time.sleep", finish)
        launch([(config, ())])
    run = in_a_sweep.runs["second"]
    assert (run["summary"]["validation/loss"], run["exit_code"]) == (0.2, 0)


def test_only_one_job_of_a_process_is_the_run_of_the_agent(
    tmp_path: Path, in_a_sweep: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "shared")
    mirrors = [open_for(tmp_path / name, job_id=name) for name in ("first", "second")]
    for loss, mirror in enumerate(mirrors):
        mirror.log(1, {"train/loss": float(loss)})
        mirror.finish("completed", {"objective": float(loss)})
    again = open_for(tmp_path / "third", job_id="third")
    assert (mirrors[1].url, again.url) == (None, None)
    assert list(in_a_sweep.runs) == ["shared"]
    assert in_a_sweep.runs["shared"]["summary"]["objective"] == 0.0
    assert "second is not mirrored: the sweep agent's run shared belongs to first" in caplog.text


def test_what_a_sweep_stops_is_not_started_again(
    tmp_path: Path, in_a_sweep: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "stopped")
    open_for(tmp_path / "job").finish("interrupted", {})
    wandb.teardown()  # a process reads its environment once
    monkeypatch.delenv("WANDB_SWEEP_ID")
    monkeypatch.setenv("WANDB_RUN_ID", "reclaimed")
    open_for(tmp_path / "job").finish("interrupted", {})
    assert {name: run["preempting"] for name, run in in_a_sweep.runs.items()} == {"stopped": False, "reclaimed": True}


def test_a_sweep_without_its_server_still_trains(
    tmp_path: Path, in_a_sweep: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "alone")
    in_a_sweep.stop()
    mirror = open_for(tmp_path / "job", timeout_s=4.0)
    mirror.log(1, {"train/loss": 0.5})
    mirror.finish("completed", {"objective": 0.5})
    assert mirror.url is None
