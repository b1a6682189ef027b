"""The progress of jobs, read from their folders alone, without changing anything in them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runner.job_folders import job_folders
from runner.jobs.job import Job, State, make_job, register, update_manifest
from runner.jobs.lock import lock
from runner.paths import outputs_dir
from runner.schema import Experiment
from runner.status.__main__ import main
from runner.status.experiment import ExperimentStatus, Watch
from runner.status.look import JobStatus
from runner.status.table import tables, totals
from runner.track import MetricsFile
from tests.command_line import ROOT, Answer, environment

LONG_AGO_S = 7200.0


def make(seed: int = 0, state: State = State.PENDING, *, name: str = "sweep", rank: int = 8, **fields: Any) -> Job:
    settings = {"name": name, "seed": seed, "steps": 100, "lora": {"rank": rank}}
    overrides = (f"seed={seed}", f"lora.rank={rank}", "batch_size=4")
    experiment = Experiment.model_validate(settings)
    job = make_job(experiment, model="m", dataset="d", outputs=outputs_dir(), overrides=overrides)
    register(job)
    update_manifest(job.folder, state=state, **fields)
    return job


def train(job: Job, steps: Sequence[int], *, step_s: float = 0.5, loss: float | None = None) -> None:
    """Write metrics as if each step took `step_s`, the last one just now."""
    now = time.time()
    lines = [_line(step, now - (steps[-1] - step) * step_s) for step in steps]
    if loss is not None:
        lines.insert(0, {"step": 0, "time": now - 1e4, "validation/loss": loss})
    job.paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def go_on(job: Job, step: int) -> None:
    """Append one more line of metrics, as a worker does."""
    with job.paths.metrics.open("a") as stream:
        stream.write(json.dumps(_line(step, time.time())) + "\n")


def _line(step: int, when: float) -> dict[str, Any]:
    return {"step": step, "time": when, "train/images_per_s": 8.0}


def make_old(job: Job) -> None:
    for file in (job.paths.metrics, job.paths.manifest, job.paths.log):
        if file.exists():
            os.utime(file, (time.time() - LONG_AGO_S,) * 2)


def look(*jobs: Job) -> ExperimentStatus:
    (experiment,) = Watch(lambda: [job.folder for job in jobs]).look()
    return experiment


def status(*arguments: str) -> Answer:
    command = [sys.executable, "-m", "runner.status", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout + done.stderr)


def test_a_row_tells_a_job_from_the_others_and_how_far_it_is() -> None:
    first = make(1, State.RUNNING, rank=4, device="NVIDIA L4")
    second = make(2, State.COMPLETED, rank=16, objective=0.125, steps_done=100)
    train(first, range(10, 41, 10), loss=0.25)

    with lock(first.folder):
        answer = status(str(first.folder.parent))

    assert answer.code == 0, answer.output
    title, header, one, other, total, *_ = answer.output.splitlines()
    assert title.strip() == "sweep"
    assert re.split(r"  +", header.strip()) == [
        *("job", "seed", "lora.rank", "state", "steps"),
        *("held-out loss", "images/s", "left", "last sign", "where"),
    ]
    assert one.split()[:4] == [first.id, "1", "4", "running"]
    assert "40 of 100" in one and "0.25" in one and "30 s" in one and "NVIDIA L4" in one
    assert other.split()[:4] == [second.id, "2", "16", "completed"]
    assert "100 of 100" in other and "0.125" in other
    assert total.startswith("2 jobs: 1 completed, 1 running; about 30 s left, until ")


def test_brackets_in_values_and_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, targets in enumerate((".*to_[qkv]", ".*to_q([/]|x)?")):
        experiment = Experiment.model_validate({"name": "sweep", "seed": seed, "lora": {"targets": targets}})
        overrides = (f"seed={seed}", f'lora.targets="{targets}"')
        register(make_job(experiment, model="m", dataset="d", outputs=outputs_dir(), overrides=overrides))
    folder = (outputs_dir() / "sweep").rename(outputs_dir() / "of [red] things")

    assert main(["--once", str(folder)]) == 0

    shown = capsys.readouterr().out
    assert ".*to_[qkv]" in shown and ".*to_q([/]|x)?" in shown and "of [red] things" in shown


def test_a_narrow_terminal_folds_headings_before_values() -> None:
    jobs = []
    for rank, rate in ((8, "0.0012520653814999472"), (16, "0.00010975815419380165")):
        settings = {
            "name": "sweep",
            "steps": 100,
            "lora": {"rank": rank},
            "optimizer": {"name": "adamw", "lr": float(rate)},
        }
        given = (f"lora.rank={rank}", f"optimizer.lr={rate}")
        jobs.append(
            make_job(
                Experiment.model_validate(settings), model="m", dataset="d", outputs=outputs_dir(), overrides=given
            )
        )
        register(jobs[-1])
    console = Console(width=64, record=True, file=io.StringIO())
    console.print(tables([look(*jobs)], width=64))
    _, groups, keys, one, other, total = (line.split() for line in console.export_text().splitlines()[:6])
    assert groups == ["lora.", "optimizer.", "held-out"]
    assert keys == ["job", "rank", "lr", "state", "steps", "loss", "left"]
    assert (one[1:3], other[1:3], total[:2]) == (["8", "0.001252"], ["16", "1.098e-4"], ["2", "jobs:"])


def test_of_a_long_value_there_is_what_tells_it_from_the_others() -> None:
    jobs = [make(rank, rank=rank) for rank in (1, 2)]
    for job, word in zip(jobs, ("one", "two"), strict=True):
        update_manifest(job.folder, overrides=[f"validation.prompts=[{'a very long prompt ' * 50}{word}]"])
    assert sorted(look(*jobs).cells.values()) == [["…one]"], ["…two]"]]


def test_control_codes_in_values_and_errors_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    job = make(state=State.FAILED, error="a\x1b]0;title\x07.png is damaged")
    main([str(job.folder.parent), "--once"])
    said = capsys.readouterr().out
    assert "\x1b" not in said and "a\\x1b]0;title\\x07.png is damaged" in said


def test_a_job_of_another_task_is_not_told_by_settings_that_it_does_not_have() -> None:
    trained = [make(seed, State.COMPLETED) for seed in (1, 2)]
    drawn = outputs_dir() / "sweep" / "drawn"
    drawn.mkdir()
    overrides = ["adapter=x", *(f"key{number}={number}" for number in range(6))]
    (drawn / "manifest.json").write_text(json.dumps({"id": "drawn", "task": "generate", "overrides": overrides}))
    table = look(*trained, Job("drawn", trained[0].settings, {}, drawn))
    assert table.columns == ["seed"]
    assert table.cells["drawn"] == ["–"]
    for job, key in zip(trained, ("a", "b"), strict=True):
        update_manifest(job.folder, overrides=[f"{key}{number}=1" for number in range(6)])
    assert look(*trained).cells[trained[1].id] == [" ".join(f"b{number}=1" for number in range(6))]


def test_of_many_experiments_those_that_move_are_what_a_terminal_shows() -> None:
    jobs = [make(0, State.COMPLETED, name=f"done-{number}") for number in range(9)]
    jobs += [make(0, State.RUNNING, name="under-way"), make(0, State.FAILED, name="wrong", error="no memory")]
    for job in jobs[:9]:
        make_old(job)
    looked = Watch(lambda: [job.folder for job in jobs]).look()
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(tables(looked, width=150, height=20))
    shown = console.export_text()
    assert len(shown.splitlines()) <= 20
    assert "under-way" in shown and "wrong" in shown and "done" not in shown
    assert "and 9 more experiments; --once shows all" in shown
    console.print(tables(looked, width=150))
    assert all(job.folder.parent.name in console.export_text(clear=False) for job in jobs)


def test_a_reader_that_stops_is_no_error() -> None:
    for seed in range(9):
        make(seed)
    command = [sys.executable, "-m", "runner.status", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        said = process.stderr.read()
    assert said == ""


def test_jobs_that_wait_are_followed_for_a_while() -> None:
    done, waiting = make(1, State.COMPLETED), make(2)
    assert look(done, waiting).is_active, "a worker may be about to take it"
    make_old(waiting)
    assert look(done, waiting).is_active, "the one before it has just ended"
    make_old(done)
    assert not look(done, waiting).is_active
    assert not look(done).is_active


def test_states_are_counted_and_a_failure_says_why_and_is_the_exit_code() -> None:
    jobs = [make(seed, state) for seed, state in enumerate((State.COMPLETED, State.PRUNED, State.PENDING))]
    assert status().code == 0
    failed = make(7, State.FAILED, error="the loss is nan at step 3\nand more")

    answer = status()

    assert answer.code == 1
    assert "4 jobs: 1 completed, 1 pending, 1 pruned, 1 failed" in answer.output
    assert f"{failed.id}: the loss is nan at step 3\n" in answer.output
    assert all(job.id in answer.output for job in jobs)


def test_a_running_job_that_nobody_holds_and_that_is_silent_is_dead() -> None:
    job = make(0, State.RUNNING)
    train(job, [10, 20])
    assert look(job).jobs[0].state == "running", "between its last line and the next, a lock may be free for a moment"
    make_old(job)
    with lock(job.folder):
        assert look(job).jobs[0].state == "running"

    answer = status(str(job.folder))

    assert answer.code == 1
    assert "dead" in answer.output and "2 h 00 min ago" in answer.output
    assert f"{job.id}: nobody works on it any more; run the same command again, and it goes on" in answer.output


def test_a_job_on_another_machine_whose_lock_is_not_seen_may_be_silent_for_longer() -> None:
    job = make(0, State.RUNNING, worker="4242", submission={"cluster": "slurm", "ids": ["4242"]}, device="NVIDIA L4")
    for file in (job.paths.manifest, job.paths.config):
        os.utime(file, (time.time() - 300,) * 2)
    (there,) = look(job).jobs
    assert (there.state, there.where) == ("running", "slurm 4242, NVIDIA L4")
    make_old(job)
    assert look(job).jobs[0].state == "dead"


def test_what_waits_for_a_place_says_where_and_what_has_one_is_starting() -> None:
    waiting = make(0, State.SUBMITTED, submission={"cluster": "slurm", "ids": ["7", "8"]})
    starting = make(1)
    with lock(starting.folder):
        one, other = look(waiting, starting).jobs
    assert (one.state, one.where) == ("submitted", "slurm 7 8")
    assert other.state == "starting"
    assert look(waiting).is_active


def test_the_time_left_counts_what_is_to_come_and_no_pause_between_attempts() -> None:
    running, waiting = make(0, State.RUNNING), make(1)
    train(running, [10, 20, 30, 40], step_s=2.0)
    assert look(running).jobs[0].left_s == pytest.approx(120, rel=0.01)
    assert look(running, waiting).left_s == pytest.approx(120 + 200, rel=0.01)
    assert look(waiting).left_s is None
    assert "left" not in totals(look(waiting))

    lines = running.paths.metrics.read_text().splitlines(keepends=True)
    early = [json.dumps(json.loads(line) | {"time": 1.0 + number}) + "\n" for number, line in enumerate(lines[:1])]
    running.paths.metrics.write_text("".join(early + lines[1:]))
    assert look(running).jobs[0].left_s == pytest.approx(120, rel=0.01)
    update_manifest(running.folder, state=State.INTERRUPTED)
    assert look(running, waiting).left_s is None, "nothing runs any more, however fast it was"


def test_all_is_done_when_the_slowest_is_however_fast_the_others_are() -> None:
    slow, fast = make(0, State.RUNNING), make(1, State.RUNNING)
    train(slow, [5, 10], step_s=10.0)
    train(fast, [80, 90], step_s=1.0)
    assert look(slow, fast).left_s == pytest.approx(900, rel=0.01)


def test_only_what_is_new_in_a_record_is_read_and_a_cut_record_is_read_anew() -> None:
    job = make(0, State.RUNNING)
    metrics, watch = MetricsFile(job.paths.metrics), Watch(lambda: [job.folder])

    def now() -> JobStatus:
        return watch.look()[0].jobs[0]

    assert (now().steps_done, now().value) == (0, None)
    metrics.append(0, {"validation/loss": 0.5})
    for step in range(1, 2000):
        metrics.append(step, {"train/loss": 0.1})
    assert (now().steps_done, now().value) == (1999, 0.5)
    with job.paths.metrics.open("a") as stream:
        stream.write('{"step": 2000, "validation/loss": 0.')
    assert (now().steps_done, now().value) == (1999, 0.5)
    metrics.close()
    metrics.append(2000, {"validation/loss": float("nan")})
    assert now().steps_done == 2000
    assert str(now().value) == "nan"
    metrics.truncate_after(500)
    assert (now().steps_done, now().value) == (500, 0.5)
    metrics.truncate_after(0)
    metrics.append(1, {"validation/loss": 0.4})
    for step in range(2, 700):
        metrics.append(step, {"train/loss": 0.1})
    assert (now().steps_done, now().value) == (699, 0.4), "longer than it was, and another"


def test_what_a_manifest_says_new_is_seen_on_a_file_system_whose_times_are_of_seconds() -> None:
    job = make(0, State.RUNNING)
    watch, written = Watch(lambda: [job.folder]), job.paths.manifest.stat()
    assert watch.look()[0].counts == {"running": 1}
    update_manifest(job.folder, state=State.COMPLETED)
    os.utime(job.paths.manifest, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert watch.look()[0].counts == {"completed": 1}


def test_damaged_folders_are_shown_as_far_as_they_go() -> None:
    whole, torn = make(0), make(1)
    torn.paths.manifest.write_text('{"state": "runn')
    torn.paths.metrics.write_bytes(b'\xff\xfe{"step"\n[1]\n')
    answer = status(str(whole.folder.parent))
    assert answer.code == 0
    assert "2 jobs: 1 pending, 1 unknown" in answer.output


def test_looking_writes_nothing() -> None:
    jobs = [make(seed, State.RUNNING) for seed in range(3)]
    train(jobs[0], [10, 20])
    with lock(jobs[0].folder):
        pass

    def seen() -> dict[str, tuple[int, bytes]]:
        files = sorted(path for path in outputs_dir().rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = seen()
    status("--once")
    status("--json")
    assert seen() == before


def test_the_same_as_data() -> None:
    job = make(3, State.RUNNING, rank=2)
    make(4, State.FAILED, rank=2, error="broken", name="other")
    train(job, [10, 20], loss=float("nan"))

    answer = status("--json", str(outputs_dir()))

    assert answer.code == 1
    data = json.loads(answer.output)
    assert [each["name"] for each in data["experiments"]] == ["other", "sweep"]
    (shown,) = data["experiments"][1]["jobs"]
    assert shown["overrides"]["lora.rank"] == "2"
    assert (shown["steps"], shown["steps_done"], shown["value"], shown["left_s"]) == (100, 20, None, pytest.approx(40))
    assert data["experiments"][0]["counts"] == {"failed": 1}
    assert data["experiments"][0]["jobs"][0]["error"] == "broken"


def test_jobs_stand_in_the_order_of_their_settings() -> None:
    jobs = [make(seed, rank=rank) for seed in (10, 9) for rank in (16, 4, 8)]
    shown = [(job.record.setting("seed"), job.record.setting("lora.rank")) for job in look(*jobs).jobs]
    assert shown == [(9, 4), (9, 8), (9, 16), (10, 4), (10, 8), (10, 16)]


def test_bad_folders_are_all_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = status(str(tmp_path / "empty"), str(tmp_path / "missing"))
    assert answer.code == 2
    assert f"no job in {tmp_path / 'empty'}: name outputs/<name>" in answer.output
    assert f"no folder {tmp_path / 'missing'}: name outputs/<name>" in answer.output
    assert status().code == 2, "nothing was ever run here"


def test_folders_of_every_level_lead_to_the_jobs() -> None:
    one, two = make(1), make(2, name="other")
    assert job_folders(one.folder) == [one.folder]
    assert job_folders(one.folder.parent) == [one.folder]
    assert job_folders(outputs_dir()) == [two.folder, one.folder]


def test_nothing_heavy_is_imported() -> None:
    make(1)
    script = "import sys; from runner.status.__main__ import main; main(['--once']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    modules = done.stdout.rpartition("[")[2]
    assert not [name for name in ("torch", "transformers", "hydra", "wandb", "numpy") if f"'{name}'" in modules]
