"""Stopping uses the call for each kind, continues after a refusal, and reports what was not stopped, and how to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Thread

import pytest

from runner import stop
from runner.aws.account import Account
from runner.jobs.job import Job, State, make_job, register, state_of, update_manifest
from runner.jobs.lock import lock
from runner.launchers import sagemaker
from runner.launchers.cluster import Gone, NotStopped
from runner.launchers.lots import Lot
from runner.launchers.sagemaker.record import record_file
from runner.launchers.sagemaker.training_jobs import SageMakerCluster
from runner.launchers.searches import Search, note
from runner.launchers.settle import take_up_again
from runner.paths import ExperimentPaths
from runner.plan import Pack
from runner.schema import Experiment, SageMakerLauncher
from runner.search.tuning.records import TuningRecord
from runner.system.exclusive import alone
from tests.command_line import command
from tests.launchers.running import Running, manifests, outputs
from tests.sagemaker.stand_in import Image, StandIn

DENIED = "sagemaker:StopHyperParameterTuningJob"


@pytest.fixture
def settings(aws: StandIn) -> SageMakerLauncher:
    place = {"image": "i", "role": "r", "bucket": aws.bucket, "instance": "ml.m5.xlarge"}
    return SageMakerLauncher.model_validate({"name": "sagemaker", **place})


@pytest.fixture
def reached(settings: SageMakerLauncher, monkeypatch: pytest.MonkeyPatch) -> SageMakerCluster:
    """The cluster that commands ask; its client tries only once, so one refusal is enough."""
    account = Account(settings)
    account.sagemaker = account.client("sagemaker", attempts=0)
    cluster = SageMakerCluster(settings, account)
    monkeypatch.setattr("runner.launchers.sagemaker.cluster", lambda known: cluster)
    return cluster


def made(settings: SageMakerLauncher, seed: int, outputs: Path) -> Job:
    experiment = Experiment.model_validate({"seed": seed, "launcher": settings.model_dump(mode="json")})
    job = make_job(experiment, model="m", dataset="d", outputs=outputs)
    register(job)
    return job


def sent(job: Job) -> Lot:
    lot = Lot(Pack((job,), 1, 1, 1, ""), "sagemaker")
    lot.begin(lot.jobs)
    lot.add_worker("photos-1")
    return lot


def asked(aws: StandIn, kind: str) -> list[str]:
    return [request[f"{kind}Name"] for request in aws.asked(f"Stop{kind}")]


def test_training_jobs_are_stopped_without_the_right_to_stop_searches(aws: StandIn, reached: SageMakerCluster) -> None:
    aws.permissions.deny(DENIED)
    reached.cancel(["photos-1", "photos-2"])
    assert asked(aws, "TrainingJob") == ["photos-1", "photos-2"]
    assert asked(aws, "HyperParameterTuningJob") == []


def test_one_refusal_keeps_no_other_from_being_stopped(aws: StandIn, reached: SageMakerCluster) -> None:
    aws.permissions.throttle("StopTrainingJob", 2)
    with pytest.raises(NotStopped) as caught:
        reached.cancel(["photos-1", "photos-2", "photos-3"])
    assert asked(aws, "TrainingJob") == ["photos-1", "photos-2", "photos-3"]
    assert caught.value.workers == ("photos-2",)
    assert str(caught.value) == (
        "sagemaker photos-2 was not stopped: Rate exceeded; stop it in SageMaker's console, or with: aws sagemaker "
        f"stop-training-job --training-job-name photos-2 --region {reached.account.region}"
    )


def test_the_command_stops_what_it_may_and_names_the_rest(
    aws: StandIn,
    reached: SageMakerCluster,
    settings: SageMakerLauncher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    aws.permissions.deny(DENIED)
    monkeypatch.setattr(reached, "gone", lambda workers: {})
    trial, other = made(settings, 1, tmp_path), made(settings, 2, tmp_path)
    submission = {"cluster": "sagemaker", "tuning": "search-1", "ids": ["search-1-001"]}
    update_manifest(trial.folder, state=State.RUNNING, submission=submission)
    sent(other)

    with caplog.at_level("INFO"):
        code = stop.main([str(trial.folder.parent)])

    assert code == 1
    assert asked(aws, "TrainingJob") == ["photos-1"]
    said = [record.message for record in caplog.records if record.name.startswith("runner.stop")]
    assert said[0] == "asked to save and stop: sagemaker photos-1"
    assert said[-1].startswith("sagemaker search-1 was not stopped: ") and DENIED in said[-1]
    assert "stop-hyper-parameter-tuning-job --hyper-parameter-tuning-job-name search-1" in said[-1]
    assert not any("search-1" in line for line in said[:-1])


def test_a_search_is_stopped_between_two_of_its_trials_and_not_when_it_has_ended(
    aws: StandIn,
    reached: SageMakerCluster,
    settings: SageMakerLauncher,
    tmp_path: Path,
) -> None:
    first, second = made(settings, 1, tmp_path), made(settings, 2, tmp_path)
    for job, search in ((first, "search-1"), (second, "search-2")):
        submission = {"cluster": "sagemaker", "tuning": search, "ids": [f"{search}-001"]}
        update_manifest(job.folder, state=State.COMPLETED, submission=submission)
    record = record_file(first.folder.parent, "search-1")
    record.parent.mkdir()
    record.write_text("{}")

    assert stop.main([str(first.folder.parent)]) == 0
    assert asked(aws, "HyperParameterTuningJob") == ["search-2"]
    assert asked(aws, "TrainingJob") == []


def test_what_is_sent_again_while_the_results_of_its_first_worker_are_brought_is_not_closed(
    reached: SageMakerCluster, settings: SageMakerLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = made(settings, 1, tmp_path)
    lot = sent(job)

    def slowly(workers: object) -> dict[str, Gone]:
        again = Lot(lot.pack, "sagemaker")
        again.begin(again.jobs)
        again.add_worker("photos-2")
        return {"photos-1": Gone(words="was stopped", reason="cancelled")}

    monkeypatch.setattr(reached, "gone", slowly)
    sagemaker.collect([job], settings)
    assert state_of(job.folder) is State.SUBMITTED, "or a stop would not find its new worker"


def test_what_is_being_sent_again_is_not_closed_by_a_look_at_its_first_worker(
    reached: SageMakerCluster, settings: SageMakerLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = made(settings, 1, tmp_path)
    lot = sent(job)
    monkeypatch.setattr(reached, "gone", lambda _: {"photos-1": Gone(words="was stopped", reason="cancelled")})
    with alone(ExperimentPaths(job.folder.parent).turn("sagemaker"), doing="this test"):
        Lot(lot.pack, "sagemaker").begin(lot.jobs)  # its inputs are being sent, and it has no name yet
        sagemaker.collect([job], settings)
        assert state_of(job.folder) is State.SUBMITTED
    sagemaker.collect([job], settings)
    assert state_of(job.folder) is State.CANCELLED, "the command that would have sent it is gone"


def test_a_command_of_this_machine_that_is_about_to_begin_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(Experiment(), model="m", dataset="d", outputs=tmp_path)
    register(job)
    told = f"being trained by a command on this machine, where Ctrl-C saves and stops it: {job.folder}"
    for holder, is_told in ((os.getppid(), True), (2**22 + 1, False)):  # no process has the second number
        caplog.clear()
        job.paths.lock.write_text(str(holder))
        with caplog.at_level("INFO"):
            assert stop.main([str(job.folder)]) == 0
        assert (told in caplog.text, "nothing is running elsewhere" in caplog.text) == (is_told, not is_told)


def test_a_damaged_manifest_is_told_and_keeps_nobody_from_hearing_of_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, job = (make_job(Experiment(seed=seed), model="m", dataset="d", outputs=tmp_path) for seed in range(2))
    for each in (damaged, job):
        register(each)
    damaged.paths.manifest.write_text('{"state": "runn')
    with caplog.at_level("INFO"):
        assert stop.main([str(job.folder.parent)]) == 1
    assert caplog.text.count(f"{damaged.paths.manifest} is damaged") == 1
    update_manifest(job.folder, state=State.RUNNING)
    with caplog.at_level("INFO"), lock(job.folder):
        assert stop.main([str(job.folder.parent)]) == 1
    assert f"being trained by a command on this machine, where Ctrl-C saves and stops it: {job.folder}" in caplog.text


def test_what_a_command_tries_to_submit_at_this_moment_is_waited_for(
    settings: SageMakerLauncher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = made(settings, 1, tmp_path)
    folder = job.folder.parent
    caplog.set_level("INFO")
    with alone(ExperimentPaths(folder).turn("sagemaker"), doing="this test"):
        lot = Lot(Pack((job,), 1, 1, 1, ""), "sagemaker")
        lot.begin(lot.jobs)  # as when a command asks whether there is room, ...
        stopping = Thread(target=stop.main, args=([str(folder)],))
        stopping.start()
        while "waiting for another process, which is submitting jobs of dev" not in caplog.text:
            assert stopping.is_alive()
            time.sleep(0.01)
        take_up_again(lot.jobs)  # ... and learns that there is none
    stopping.join()
    assert state_of(job.folder) is State.CANCELLED
    assert "no longer queued for submission: 1 job, for which there was no room yet" in caplog.text


def test_what_waits_for_room_is_not_sent_by_the_waiting_command_after_a_stop(aws: StandIn) -> None:
    aws.quotas.set("ml.m5.xlarge", training=1, spot=1)
    image = aws.add_image(
        "lora:1", Image(("sh", "-c", "trap 'exit 0' TERM; echo ready; while sleep 0.1; do :; done"), {})
    )
    place = [f"launcher.image={image}", f"launcher.role={aws.role}", f"launcher.bucket={aws.bucket}"]
    waits = Running(
        [
            *("-m", "logger=none", "seed=1,2", "launcher=sagemaker", *place, "launcher.instance=ml.m5.xlarge"),
            *("launcher.poll_s=0.2", "launcher.concurrency=2"),
        ]
    )
    waits.wait_for_line("has no capacity right now")
    (name,) = aws.jobs
    while "ready" not in aws.printed(name):  # before that, it would miss the stop
        assert not aws.jobs[name].has_ended
        time.sleep(0.05)
    stopped = command("stop", str(outputs() / "dev"))
    answer = waits.end()

    assert stopped.code == 0, stopped.output
    assert "no longer queued for submission: 1 job, for which there was no room yet" in stopped.output
    assert answer.code == 130, answer.output
    assert [manifest["state"] for manifest in manifests().values()] == ["cancelled", "cancelled"]
    assert len(aws.jobs) == 1


def test_a_search_that_has_no_trial_yet_is_stopped_and_one_that_has_ended_is_not(
    aws: StandIn,
    reached: SageMakerCluster,
    settings: SageMakerLauncher,
    tmp_path: Path,
) -> None:
    experiment = tmp_path / "photos"
    for name in ("search-1", "search-2"):
        note(Search(name, settings, experiment), "sagemaker")
    TuningRecord(name="search-1", arn="a", status="Completed", failure_reason=None, trials={}, jobs=()).write(
        experiment
    )

    assert stop.main([str(experiment)]) == 0
    assert asked(aws, "HyperParameterTuningJob") == ["search-2"]
    assert stop.main([str(tmp_path)]) == 0, "a folder of experiments"
    assert asked(aws, "HyperParameterTuningJob") == ["search-2", "search-2"]


def test_a_search_with_trials_is_asked_once_and_by_its_name_if_it_cannot_be(
    aws: StandIn,
    reached: SageMakerCluster,
    settings: SageMakerLauncher,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trial = made(settings, 1, tmp_path)
    submission = {"cluster": "sagemaker", "tuning": "search-1", "ids": ["search-1-001"]}
    update_manifest(trial.folder, state=State.COMPLETED, submission=submission)
    note(Search("search-1", settings, trial.folder.parent), "sagemaker")
    assert stop.main([str(trial.folder.parent)]) == 0
    assert asked(aws, "HyperParameterTuningJob") == ["search-1"]

    aws.permissions.deny(DENIED)
    with caplog.at_level("INFO"):
        assert stop.main([str(trial.folder.parent)]) == 1
    assert len(asked(aws, "HyperParameterTuningJob")) == 2
    assert caplog.text.count("sagemaker search-1 was not stopped") == 1
