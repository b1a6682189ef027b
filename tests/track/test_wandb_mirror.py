"""The W&B mirror against wandb itself: offline logs read back, and online runs against a local server."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.track.__main__ import main
from runner.track.reach import unreachable_because, within
from runner.track.rebuild import mirror_folder, rebuild

from .wandb_jobs import CONFIG, SECRET, Settings, adapter, log_a_whole_job, open_for, samples, table_of
from .wandb_log import read_logs
from .wandb_server import WandbServer


def test_no_logger_and_disabled_do_nothing(tmp_path: Path) -> None:
    for settings in ({"name": "none"}, {"mode": "disabled"}):
        mirror = open_for(tmp_path / "job", **settings)
        mirror.log(1, {"a": 1.0})
        mirror.images(1, [(tmp_path / "missing.png", "x")])
        mirror.finish("completed", {})
        assert mirror.url is None
        assert list((tmp_path / "job").iterdir()) == []


@pytest.mark.parametrize(("said", "found"), [("disabled", None), ("dryrun", "offline"), ("run", "online")])
def test_the_usual_variable_says_the_mode_where_the_settings_do_not(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, said: str, found: str | None
) -> None:
    monkeypatch.setenv("WANDB_MODE", said)
    mirror = open_for(tmp_path / "job")
    mirror.finish("completed", {})
    assert (mirror.url is not None) == (found == "online")
    assert bool(read_logs(tmp_path / "job")) == (found is not None)


def test_offline_run_reads_back_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="runner.track")
    job = tmp_path / "job"
    mirror = open_for(job)
    assert mirror.url is None
    log_a_whole_job(mirror, job)
    mirror.finish("completed", {})

    (logged,) = read_logs(job)
    assert logged.run == {
        "id": "abc123-houses", "name": "rank 8", "group": "houses", "job_type": "train", "project": "lora",
        "tags": ["rank-8", "sd15"],
    }  # fmt: skip
    assert {key: logged.config[key] for key in CONFIG} == CONFIG
    losses = [(line["global_step"], line["train/loss"]) for line in logged.history if "train/loss" in line]
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    (captions,) = [line["samples.captions"] for line in logged.history if "samples.captions" in line]
    assert captions == ["a red house", "a blue house"]
    assert len(list(job.glob("wandb/offline-run-*/files/media/images/*.png"))) == 2
    (artifact,) = logged.artifacts
    assert (artifact["name"], artifact["type"]) == ("lora-abc123", "lora")
    assert sorted(artifact["aliases"]) == ["latest", "step-3"]
    assert artifact["metadata"] == {"rank": 8, "base": "tiny"}
    assert artifact["files"] == {"pytorch_lora_weights.safetensors": 70, "exports/kohya.safetensors": 5}
    assert (logged.summary["objective"], logged.summary["state"], logged.exit_code) == (0.25, "completed", 0)

    synced = [r.getMessage() for r in caplog.records if "wandb sync" in r.getMessage()]
    assert len(synced) == 1
    assert str(job / "wandb" / "offline-run-") in synced[0]


def test_failed_and_interrupted_jobs_are_not_finished_runs(tmp_path: Path) -> None:
    for state, code in {"failed": 1, "interrupted": 1, "pruned": 0}.items():
        open_for(tmp_path / state, job_id=state).finish(state, {})
        (logged,) = read_logs(tmp_path / state)
        assert (logged.exit_code, logged.summary["state"]) == (code, state)


def test_a_pack_of_runs_in_one_process_stays_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "named")
    mirrors = [open_for(tmp_path / str(k), job_id=f"job{k}", mode="offline") for k in range(3)]
    for step in (1, 2):
        for k, mirror in enumerate(mirrors):
            mirror.log(step, {"train/loss": 10.0 * k + step})
    for mirror in mirrors:
        mirror.finish("completed", {})
    logged = [read_logs(tmp_path / str(k))[0] for k in range(3)]
    assert [one.run["id"] for one in logged] == ["named", "job1-houses", "job2-houses"]
    assert "WANDB_RUN_ID" in caplog.text
    for k, one in enumerate(logged):
        assert [line["train/loss"] for line in one.history] == [10.0 * k + 1, 10.0 * k + 2]
    open_for(tmp_path / "0", job_id="job0", mode="offline").finish("completed", {})
    assert [one.run["id"] for one in read_logs(tmp_path / "0")] == ["named", "named"], (
        "it is free when its job has ended"
    )


def test_online_run_tells_the_server_everything(tmp_path: Path, server: WandbServer) -> None:
    job = tmp_path / "job"
    mirror = open_for(job)
    assert mirror.url == f"{server.url}/me/lora/runs/abc123-houses"
    log_a_whole_job(mirror, job)

    run = server.runs["abc123-houses"]
    assert (run["displayName"], run["groupName"], run["jobType"]) == ("rank 8", "houses", "train")
    assert run["tags"] == ["rank-8", "sd15"]
    assert run["config"]["lora"]["value"] == {"rank": 8}
    # In W&B's abbreviations: all metrics (2) are plotted over the second one (5), whose name (1) is our step.
    everything, step = run["config"]["_wandb"]["value"]["m"]
    assert (everything["2"], everything["5"], step["1"]) == ("*", 2, "global_step")
    assert [line["global_step"] for line in run["history"]] == [1, 2, 3, 3, 3]
    assert run["history"][-1]["samples"]["captions"] == ["a red house", "a blue house"]
    assert (run["summary"]["objective"], run["exit_code"]) == (0.25, 0)
    assert len([name for name in server.uploads if "media/images" in name]) == 2
    (artifact,) = [one for one in server.artifacts.values() if one["type"] == "lora"]
    assert artifact["state"] == "COMMITTED"
    assert sorted(artifact["files"]) == ["exports/kohya.safetensors", "pytorch_lora_weights.safetensors"]
    assert b"weights" * 10 in server.uploads.values()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in written
    assert SECRET.encode() not in b"".join(server.uploads.values())


def test_a_resumed_job_continues_its_run_even_from_an_earlier_step(tmp_path: Path, server: WandbServer) -> None:
    first = open_for(tmp_path / "job")
    for step in (1, 2, 3):
        first.log(step, {"train/loss": float(step)})
    first.finish("interrupted", {})
    second = open_for(tmp_path / "job")
    for step in (3, 4):
        second.log(step, {"train/loss": 10.0 + step})
    second.finish("completed", {"objective": 0.5})
    assert list(server.runs) == ["abc123-houses"]
    history = server.runs["abc123-houses"]["history"]
    assert [line["global_step"] for line in history] == [1, 2, 3, 3, 4]
    assert [line["_step"] for line in history] == [0, 1, 2, 3, 4]
    assert server.runs["abc123-houses"]["exit_code"] == 0


def test_a_job_of_two_experiments_has_a_run_in_each(tmp_path: Path, server: WandbServer) -> None:
    for experiment in ("houses", "baseline"):
        mirror = open_for(tmp_path / experiment, experiment=experiment)
        mirror.log(1, {"train/loss": 0.5})
        mirror.finish("completed", {})
    told = {name: (run["groupName"], len(run["history"])) for name, run in server.runs.items()}
    assert told == {"abc123-houses": ("houses", 1), "abc123-baseline": ("baseline", 1)}


def test_attempts_that_were_logged_offline_are_one_run_when_they_are_synced(
    tmp_path: Path, server: WandbServer
) -> None:
    for state, steps in (("interrupted", (1, 2, 3)), ("completed", (3, 4))):
        mirror = open_for(tmp_path / "job", mode="offline")
        for step in steps:
            mirror.log(step, {"train/loss": 1.0 / step})
        mirror.finish(state, {})
    logs = sorted(map(str, (tmp_path / "job").glob("wandb/offline-run-*")))
    subprocess.run([sys.executable, "-m", "wandb", "sync", *logs], cwd=tmp_path, capture_output=True, check=True)
    ((name, run),) = server.runs.items()
    assert name == "abc123-houses"
    # W&B's own step count continues; otherwise the second attempt would replace the first.
    assert [(line["_step"], line["global_step"]) for line in run["history"]] == [(0, 1), (1, 2), (2, 3), (3, 3), (4, 4)]
    assert (run["summary"]["state"], run["exit_code"]) == ("completed", 0)


def test_a_wrong_key_or_mode_never_stops_the_job(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    for mode in ("auto", "online", "sideways"):
        mirror = open_for(tmp_path / mode, mode=mode)
        mirror.log(1, {"a": 1.0})
        mirror.finish("completed", {})
        assert mirror.url is None
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 3
    assert "too-short" not in caplog.text


def test_dead_server_falls_back_to_offline(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    start = time.monotonic()
    mirror = open_for(tmp_path / "job", timeout_s=6.0)
    assert time.monotonic() - start < 6.0
    mirror.log(1, {"train/loss": 0.5})
    mirror.finish("completed", {})
    (logged,) = read_logs(tmp_path / "job")
    assert logged.history[0]["train/loss"] == 0.5
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "offline" in warnings[0]


def test_server_that_accepts_and_never_answers_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
        start = time.monotonic()
        mirror = open_for(tmp_path / "job", timeout_s=8.0)
        assert time.monotonic() - start < 8.0
    mirror.log(1, {"train/loss": 0.5})
    mirror.finish("completed", {})
    assert read_logs(tmp_path / "job")[-1].history[0]["train/loss"] == 0.5


def test_a_pack_waits_once_for_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster without internet access: jobs that start together must not wait for it one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        reasons = {unreachable_because(url, 0.2) for _ in range(4)}
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # no other connection was made
            silent.accept()
        assert reasons == {f"{url}: timed out"}
        monkeypatch.setattr("runner.track.reach.ASK_AGAIN_S", 0.0)
        assert unreachable_because(url, 0.2) == f"{url}: timed out"
        silent.accept()[0].close()


def test_what_is_no_web_server_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=greet, daemon=True).start()
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        assert unreachable_because(url, 2.0) == f"{url}: SSH-2.0-OpenSSH_9.6"


def test_server_that_denies_the_key_falls_back_to_offline(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.deny = True
    mirror = open_for(tmp_path / "job")
    mirror.log(1, {"train/loss": 0.5})
    mirror.finish("completed", {})
    logged = read_logs(tmp_path / "job")
    assert [line["train/loss"] for one in logged for line in one.history] == [0.5]
    assert "401" in caplog.text
    assert "abc123-houses-offline" in caplog.text


def test_server_that_dies_mid_run_costs_no_more_than_the_timeout(tmp_path: Path, server: WandbServer) -> None:
    job = tmp_path / "job"
    mirror = open_for(job, timeout_s=8.0)
    assert mirror.url
    mirror.log(1, {"train/loss": 0.5})
    server.stop()
    start = time.monotonic()
    for step in range(2, 50):
        mirror.log(step, {"train/loss": 1.0 / step})
    mirror.images(50, samples(job))
    logged_s = time.monotonic()
    assert logged_s - start < 1.0
    mirror.finish("completed", {"objective": 0.1})
    assert time.monotonic() - logged_s < 9.5
    assert len(read_logs(job)[0].history) == 50


def test_an_adapter_for_a_server_that_died_costs_no_more_than_the_timeout(tmp_path: Path, server: WandbServer) -> None:
    job = tmp_path / "job"
    mirror = open_for(job, timeout_s=4.0)
    mirror.log(1, {"train/loss": 0.5})
    server.stop()
    start = time.monotonic()
    mirror.adapter(adapter(job), {"rank": 4})
    assert time.monotonic() - start < 5.5
    mirror.finish("completed", {"objective": 0.1})
    assert time.monotonic() - start < 11.0
    assert len(read_logs(job)[0].history) == 1


def test_a_pack_that_ends_without_its_server_waits_once_for_it(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def noting(timeout_s: float, call: Callable[[], None]) -> None:
        waited.append(timeout_s)
        within(min(timeout_s, 2.0), call)

    monkeypatch.setattr("runner.track.mirror.within", noting)
    monkeypatch.setattr("runner.track.mirror.AGAIN_TIMEOUT_S", 1.0)
    mirrors = [open_for(tmp_path / str(number), job_id=f"job{number}") for number in range(3)]
    assert all(mirror.url for mirror in mirrors)
    for mirror in mirrors:
        mirror.log(1, {"train/loss": 0.5})
    server.stop()
    for mirror in mirrors:
        mirror.finish("completed", {"objective": 0.5})
    assert waited == [pytest.approx(20.0, abs=0.5), 1.0, 1.0]
    logged = [read_logs(tmp_path / str(number))[0] for number in range(3)]
    assert [(len(one.history), one.summary["objective"]) for one in logged] == [(1, 0.5)] * 3


def test_a_broken_mirror_says_why_once_and_goes_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = open_for(tmp_path / "job")
    for step in (1, 2, 3):
        mirror.images(step, [(tmp_path / "missing.png", "gone")])
    mirror.log(4, {"a": 1.0})
    mirror.finish("completed", {})
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "missing.png" in warnings[0]
    assert read_logs(tmp_path / "job")[0].exit_code == 0


def test_a_lost_run_is_rebuilt_from_the_folder(tmp_path: Path, server: WandbServer) -> None:
    job = tmp_path / "job"
    for step in (2, 4):
        (shots := job / "samples" / f"step-{step:06d}").mkdir(parents=True)
        samples(shots)
    (job / "samples" / "prompts.json").write_text(json.dumps({"prompts": ["a red house"]}))
    (job / "config.yaml").write_text(
        json.dumps({**CONFIG, "logger": {"project": "mine", "entity": "team", "tags": ["x"]}})
    )
    ended = {"state": "completed", "objective": 0.7, "objective_name": "evaluation/score"}
    (job / "manifest.json").write_text(json.dumps({"id": "abc123", "name": "rank 8", **ended}))
    lines = [{"step": step, "time": 1e9 + step, "train/loss": 1.0 / step} for step in (1, 2, 3)]
    (job / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step":')
    adapter(job)
    url = rebuild(job)
    ((name, run),) = server.runs.items()
    assert name.startswith("abc123-rebuilt-")
    assert url
    assert url.endswith(name)
    told = [(line["global_step"], "samples" in line) for line in run["history"]]
    assert told == [(1, False), (2, False), (2, True), (3, False), (4, True), (3, False)]
    assert {name for name in run["history"][0] if name[0] != "_"} == {"global_step", "train/loss"}
    assert table_of(server) == [
        [step, *row] for step in (2, 4) for row in (["a red house", 0, "p00-s0.png"], ["prompt 1", 0, "p01-s0.png"])
    ]
    assert (run["summary"]["objective"], run["summary"]["evaluation/score"]) == (0.7, 0.7)
    assert run["history"][2]["samples"]["captions"] == ["a red house (seed 0)", "prompt 1 (seed 0)"]
    assert (run["entity"], run["project"], run["tags"]) == ("team", "mine", ["x", "rebuilt"])
    assert [one["state"] for one in server.artifacts.values() if one["type"] == "lora"] == ["COMMITTED"]


@pytest.mark.parametrize(
    ("config", "manifest", "said"),
    [
        ("", '{"id": "abc123"}', "config.yaml is empty or damaged"),
        ("a: [", '{"id": "abc123"}', "config.yaml is not YAML"),
        ("{}", "", "manifest.json is not JSON"),
        ("{}", "[]", "manifest.json is empty or damaged"),
        ("{}", "{}", "manifest.json names no job"),
    ],
)
def test_a_folder_that_cannot_be_read_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, manifest: str, said: str
) -> None:
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "manifest.json").write_text(manifest)
    assert main([str(tmp_path), "--mode", "offline"]) == 1
    assert f"error: {tmp_path}/{said}" in capsys.readouterr().err
    assert mirror_folder(Settings(), tmp_path) is None


def test_a_task_is_told_from_the_trainings_of_its_group(tmp_path: Path, server: WandbServer) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({**CONFIG, "task": {"name": "evaluate"}}))
    (tmp_path / "manifest.json").write_text(json.dumps({"id": "abc123", "state": "completed"}))
    assert mirror_folder(Settings(), tmp_path) == f"{server.url}/me/lora/runs/abc123-houses"
    assert server.runs["abc123-houses"]["jobType"] == "evaluate"


def test_importing_the_room_does_not_import_wandb() -> None:
    code = "import sys, runner.track; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
