"""Workers in a Slurm queue run, are preempted, time out, die or are cancelled; every job is accounted for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from runner.launchers.cluster import NotStopped
from runner.launchers.slurm.clusters import QueueWatcher, SlurmCluster
from runner.schema import SlurmLauncher
from runner.status.experiment import Watch
from tests.command_line import command, runner, trained
from tests.conftest import MakeOnce
from tests.forked_command import SERVER
from tests.launchers.running import Running, assert_bitwise_equal, manifests, only_folder, outputs, weights
from tests.slurm.conftest import Slurm, job_settings

FOUR = "lora.rank=2,3,4,5"


def states(name: str = "dev") -> list[str]:
    return sorted(manifest["state"] for manifest in manifests(name).values())


def attempts(name: str = "dev") -> list[int]:
    return sorted(manifest["attempts"] for manifest in manifests(name).values())


@pytest.fixture
def uninterrupted(sdxl_folder: Path, made_once: MakeOnce) -> Path:
    """The same job, trained by the local launcher."""
    folder = made_once("slurm", lambda folder: trained(folder, *job_settings(sdxl_folder)))
    (manifest,) = folder.glob("outputs/dev/*/manifest.json")
    return manifest.parent


def test_a_job_trains_in_the_queue_and_gives_the_weights_of_a_local_one(
    settings: list[str], slurm: Slurm, uninterrupted: Path
) -> None:
    answer = runner(*settings, extra={SERVER: ""})  # this worker really starts as a process

    assert answer.code == 0, answer.output
    assert "submitted: slurm 101, for 1 job" in answer.output
    assert "validation/loss" in answer.output
    assert_bitwise_equal(only_folder(), uninterrupted)
    manifest = manifests()[only_folder().name]
    assert manifest["submission"]["ids"] == ["101"]
    assert manifest["worker"] == "101"
    assert sorted(path.name for path in (outputs() / "dev" / "slurm").iterdir()) == [
        "101_0_log.out",
        "101_submission.sh",
        Path(manifest["submission"]["queue"]).name,
        "submitting.lock",
    ]
    assert "saved and read back" in (outputs() / "dev" / "slurm" / "101_0_log.out").read_text()

    again = runner(*settings)
    assert again.code == 0
    assert "1 already done" in again.output
    assert len(slurm.jobs) == 1


def test_a_waiting_job_says_where_and_a_killed_command_is_taken_up_without_submitting_twice(
    settings: list[str], slurm: Slurm
) -> None:
    slurm.is_full(True)
    sweep = ["-m", *settings, FOUR, "launcher.pack=2", "launcher.concurrency=2"]
    running = Running(sweep)
    running.wait_for_line("submitted: slurm 102")
    (experiment,) = Watch(lambda: [path.parent for path in outputs().glob("dev/*/manifest.json")]).look()
    assert {(job.state, job.where) for job in experiment.jobs} == {("submitted", "slurm 101 102")}
    running.kill()

    again = Running(sweep)
    again.wait_for_line("already submitted: slurm 101, 102, for 4 jobs")
    slurm.is_full(False)  # not before: on a busy machine they could end before anybody asks for them
    answer = again.end()

    assert answer.code == 0, answer.output
    assert states() == ["completed"] * 4
    assert attempts() == [1] * 4
    assert len(slurm.jobs) == 2


def test_without_waiting_the_command_ends_and_the_same_command_collects(settings: list[str], slurm: Slurm) -> None:
    slurm.is_full(True)
    first = runner(*settings, "launcher.wait=false")

    assert first.code == 0, first.output
    assert "slurm 101 go on without this command" in first.output
    assert "scancel 101" in first.output
    assert states() == ["submitted"]

    slurm.is_full(False)
    slurm.wait_until(1, "COMPLETED")
    answer = runner(*settings, "launcher.wait=false")
    assert answer.code == 0, answer.output
    assert "completed   validation/loss" in answer.output
    assert len(slurm.jobs) == 1


def test_what_no_worker_has_begun_is_cancelled_by_a_stop_although_nobody_waits(
    settings: list[str], slurm: Slurm
) -> None:
    slurm.is_full(True)
    assert runner(*settings, "launcher.wait=false").code == 0
    stopped = command("stop", str(outputs() / "dev"))

    assert stopped.code == 0, stopped.output
    assert "asked to save and stop: slurm 101" in stopped.output
    assert states() == ["cancelled"]

    slurm.is_full(False)
    answer = runner(*settings)
    assert answer.code == 0, answer.output
    assert states() == ["completed"]


def test_ctrl_c_leaves_the_workers_and_says_how_to_stop_them(settings: list[str], slurm: Slurm) -> None:
    running = Running(settings)
    running.wait_for("dev/*/checkpoints/step-000005")
    os.killpg(running.process.pid, signal.SIGINT)
    answer = running.end()

    assert answer.code == 130, answer.output
    assert "slurm 101 go on without this command" in answer.output and "scancel 101" in answer.output
    assert "Traceback" not in answer.output
    slurm.wait_until(1, "COMPLETED")
    assert states() == ["completed"]


@pytest.mark.parametrize(
    "order", ["preempt", pytest.param("requeue", marks=pytest.mark.slow), pytest.param("break", marks=pytest.mark.slow)]
)
def test_another_worker_goes_on_with_what_one_that_is_taken_away_has_saved(
    order: str, settings: list[str], slurm: Slurm, uninterrupted: Path
) -> None:
    running = Running(settings)
    running.wait_for("dev/*/checkpoints/step-000010")
    slurm.jobs[0].order(order)
    answer = running.end()

    assert answer.code == 0, answer.output
    assert slurm.states[0] == ("NODE_FAIL" if order == "break" else "PREEMPTED"), "Slurm does not start it again"
    assert len(slurm.jobs) == 2
    assert attempts() == [2]
    assert_bitwise_equal(only_folder(), uninterrupted)


@pytest.mark.slow
def test_what_is_unfinished_at_the_time_limit_is_saved_before_it(
    settings: list[str], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A minute of this Slurm has 24 seconds, some of which are spent loading.
    monkeypatch.setenv("FAKE_MINUTE_S", "24")
    long = [*settings, "name=long", "steps=4000"]
    answer = runner(*long, "launcher.time_limit_min=1", "launcher.save_before_s=10", "launcher.resubmissions=0")

    assert answer.code == 130, answer.output
    assert "launcher.resubmissions = 0 is used up" in answer.output
    assert slurm.states == ["FAILED"], "it saved and ended before Slurm would have ended it"
    first = manifests("long")[only_folder("long").name]
    assert first["state"] == "interrupted" and first["attempts"] == 1
    assert 0 < first["steps_done"] < 4000


def test_a_worker_that_dies_alone_fails_its_job_with_the_reason(settings: list[str], slurm: Slurm) -> None:
    running = Running([*settings, "steps=400"])
    running.wait_for("dev/*/checkpoints/step-000005")
    slurm.jobs[0].order("exhaust")
    answer = running.end()

    assert answer.code == 1
    assert "slurm 101 ended as OUT_OF_MEMORY" in answer.output
    assert manifests()[only_folder().name]["state"] == "failed"


@pytest.mark.parametrize(
    ("state", "gone"),
    [
        ("RUNNING", None),
        ("UNKNOWN", None),
        ("COMPLETED", "ended"),
        ("OUT_OF_MEMORY", "ended"),
        ("FORGOTTEN", "ended"),
        ("CANCELLED", "cancelled"),
        ("NODE_FAIL", "taken"),
        ("PREEMPTED", "taken"),
        ("TIMEOUT", "taken"),
    ],
)
def test_slurms_words_for_the_end_of_a_job(state: str, gone: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QueueWatcher, "get_state", lambda self, job, mode="standard": state)
    found = SlurmCluster(SlurmLauncher()).gone({"7": ()})
    assert ({"7": gone} if gone else {}) == {worker: each.reason for worker, each in found.items()}


def test_what_somebody_cancels_is_not_submitted_again(settings: list[str], slurm: Slurm) -> None:
    running = Running(["-m", *settings, "steps=400", "lora.rank=2,3", "launcher.pack=1"])
    running.wait_for("dev/*/checkpoints/step-000005")
    slurm.jobs[0].order("cancel")
    answer = running.end()

    assert answer.code == 130
    assert states() == ["cancelled", "cancelled"]
    assert len(slurm.jobs) == 1
    assert {manifest["error"] for manifest in manifests().values()} == {"slurm 101 was cancelled"}


def test_a_job_that_fails_by_itself_fails_alone(settings: list[str], slurm: Slurm) -> None:
    answer = runner("-m", *settings, "logger.every=1", "optimizer.lr=1e-4,1e30")

    assert answer.code == 1
    assert states() == ["completed", "failed"]
    assert "1 of 2 jobs failed" in answer.output and "the loss is" in answer.output
    assert len(slurm.jobs) == 1


def test_a_worker_that_cannot_begin_fails_its_jobs_with_the_last_thing_it_said(
    settings: list[str], slurm: Slurm
) -> None:
    answer = runner(*settings, 'launcher.setup=["echo no such module; exit 3"]')

    assert answer.code == 1
    assert "slurm 101 ended as FAILED before this job began: no such module" in answer.output
    assert states() == ["failed"]


def test_what_sbatch_refuses_is_said_in_its_words(
    settings: list[str], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_REFUSAL", "Invalid account or account/partition combination specified")
    answer = runner(*settings)

    assert answer.code == 1
    assert "slurm has refused it: sbatch: error: Invalid account" in answer.output
    assert states() == ["failed"]


@pytest.mark.parametrize(
    "refusal",
    [
        "AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
    ],
    ids=["so many may wait", "away"],
)
def test_what_sbatch_cannot_take_now_waits_and_has_not_failed(
    refusal: str, settings: list[str], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as refused:
        refused.setenv("FAKE_REFUSAL", refusal)
        first = runner(*settings, "launcher.wait=false")
    assert first.code == 0, first.output
    assert f"slurm has no capacity right now: sbatch: error: {refusal.splitlines()[0]}" in first.output
    assert first.output.count(refusal.splitlines()[0]) == 1
    assert "1 job could not be submitted yet: the same command again does." in first.output
    assert states() == ["pending"]

    assert runner(*settings).code == 0
    assert states() == ["completed"]


def test_no_more_workers_run_at_a_time_than_asked_for(settings: list[str], slurm: Slurm) -> None:
    slurm.is_full(True)
    sweep = ["-m", *settings, "lora.rank=2,3", "resolution=64,128", "launcher.concurrency=1", "launcher.wait=false"]
    answer = runner(*sweep)

    assert answer.code == 0, answer.output
    options = [job.read()["options"] for job in slurm.jobs]
    assert [each.get("dependency") for each in options] == [None, "afterany:101"]


@pytest.mark.slow
def test_two_nodes_share_a_batch_and_give_the_weights_of_one(
    settings: list[str], slurm: Slurm, uninterrupted: Path
) -> None:
    answer = runner(*settings, "launcher.nodes=2", "name=two")

    assert answer.code == 0, answer.output
    assert manifests("two")[only_folder("two").name]["device"].startswith("2 x ")
    assert "torch.distributed.run --nnodes 2" in slurm.jobs[0].read()["script"]
    one, other = weights(uninterrupted), weights(only_folder("two"))
    difference = max(float((one[key] - other[key]).abs().max()) for key in one)
    largest = max(float(one[key].abs().max()) for key in one)
    assert difference < 1e-5 * largest, difference


def test_a_local_run_takes_over_what_only_waits(settings: list[str], slurm: Slurm) -> None:
    slurm.is_full(True)
    assert runner(*settings, "launcher.wait=false").code == 0
    answer = runner(*settings[:-2])

    assert answer.code == 0, answer.output
    assert states() == ["completed"]
    slurm.is_full(False)
    slurm.wait_until(1, "COMPLETED")
    assert attempts() == [1], "the worker found nothing left to do"


def test_one_question_answers_for_all_and_none_is_taken_for_dead_while_slurm_is_silent(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.is_full(True)
    script = tmp_path / "job.sh"
    script.write_text(
        "#SBATCH --time=5\n#SBATCH --nodes=1\n#SBATCH --signal=TERM@1\n#SBATCH --output=/dev/null\ntrue\n"
    )
    for _ in range(3):
        os.system(f"sbatch {script} > /dev/null")
    cluster = SlurmCluster(SlurmLauncher())
    assert cluster.gone(dict.fromkeys(("101", "102", "103"), ())) == {}
    assert cluster.gone(dict.fromkeys(("101", "102", "103"), ())) == {}
    assert cluster._watcher.num_calls == 1

    (slurm.folder / "down").touch()
    watcher = QueueWatcher()
    watcher.register_all(["101"])
    assert watcher.get_state("101") == "UNKNOWN"
    (slurm.folder / "down").unlink()
    slurm.jobs[0].order("cancel")
    slurm.wait_until(1, "CANCELLED")
    monkeypatch.setenv("FAKE_FORGETS", "1")
    watcher.update()
    assert watcher.get_state("101") == "CANCELLED", "squeue has forgotten it, sacct has not"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "No such file or directory: 'scancel'"),
        ("echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        ("exit 3", "scancel ended with code 3"),
        ("exec sleep 60", "timed out"),
    ],
    ids=["not here", "refused", "without a word", "hanging"],
)
def test_who_could_not_be_asked_to_end_is_named(
    script: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "bin").mkdir()
    if script is not None:
        (folder / "scancel").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("runner.launchers.slurm.clusters.COMMAND_TIMEOUT_S", 0.5)
    with pytest.raises(NotStopped, match=rf"slurm 101, 102 may go on: .*{said}.*scancel 101 102") as raised:
        SlurmCluster(SlurmLauncher()).cancel(["101", "102"])
    assert raised.value.workers == ("101", "102")


QUERIES = {
    "answers": "exit 0",
    "fails": "echo 'sacct: error: Connection refused' >&2; exit 1",
    "hangs": "exec sleep 60",
    "no accounts": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
}


@pytest.mark.parametrize(
    ("squeue", "sacct", "said"),
    [
        ("fails", "answers", "Connection refused"),
        ("answers", "fails", "Connection refused"),
        ("answers", "hangs", "sacct gave no answer within 0.2 s"),
        ("answers", "no accounts", ""),
    ],
)
def test_a_query_that_fails_for_a_while_is_said_once_and_no_worker_is_taken_for_gone(
    squeue: str,
    sacct: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def install(**scripts: str) -> None:
        for name, behaviour in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{QUERIES[behaviour]}\n")
            (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("runner.launchers.slurm.clusters.COMMAND_TIMEOUT_S", 0.2)
    install(squeue=squeue, sacct=sacct)
    cluster = SlurmCluster(SlurmLauncher())
    for _ in range(2):
        gone = cluster.gone({"101": ()})
        assert bool(gone) == (not said)
        cluster._watcher.update()
    assert [said in record.message for record in caplog.records] == [True] * bool(said)

    install(squeue="answers", sacct="answers")
    cluster._watcher.update()
    assert cluster.gone({"101": ()})["101"].words == "is no longer known to Slurm"
