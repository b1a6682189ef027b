"""What could be freed is only shown; what is confirmed is freed, but never what somebody needs."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.aws.names import Places
from runner.aws.sent import is_sent, send, send_folder
from runner.aws.storage import Storage
from runner.cache.encodings import caption_cache, posterior_cache
from runner.clean.__main__ import find, free, main
from runner.clean.jobs import readable
from runner.clean.thing import Thing
from runner.embedded import MODEL_DIR
from runner.families.stored import laid_out
from runner.jobs.job import Job, State, make_job, register, update_manifest
from runner.jobs.lock import lock
from runner.paths import ExperimentPaths, cache_dir
from runner.schema import Experiment
from tests.command_line import command, environment
from tests.sagemaker.stand_in import StandIn
from tests.train.bench import Bench, bench
from tests.weights import weights_of

__all__ = ["bench"]

KEPT = ("manifest.json", "config.yaml", "metrics.jsonl", "log.txt", "lora/pytorch_lora_weights.safetensors")


def job(tmp_path: Path, state: State, seed: int = 0, *, name: str = "x", **settings: Any) -> Job:
    """A job whose folder contains everything that a training leaves."""
    experiment = Experiment.model_validate({"name": name, "seed": seed, **settings})
    made = make_job(experiment, model="m" * 40, dataset="d" * 40, outputs=tmp_path / "outputs")
    register(made)
    update_manifest(made.folder, state=state)
    for file in KEPT[2:]:
        (made.folder / file).parent.mkdir(exist_ok=True)
        (made.folder / file).write_bytes(weights_of(1000) if file.endswith(".safetensors") else b"0" * 1000)
    for step in (0, 10, 20, 30):
        folder = made.paths.samples_at(step)
        folder.mkdir(parents=True)
        (folder / "p00-s0.png").write_bytes(b"1" * 500)
        checkpoint = made.paths.checkpoint_at(step)
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.safetensors").write_bytes(b"2" * 5000)
    return made


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def things(tmp_path: Path, *, only: Sequence[str] | None = None) -> list[Thing]:
    jobs, whole = readable(sorted((tmp_path / "outputs").glob("*/*")))
    return find(jobs, whole=whole, only=only)


def clean(tmp_path: Path, *more: str) -> int:
    return main([str(tmp_path / "outputs" / "x"), *more])


def test_looking_removes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, state in enumerate((State.COMPLETED, State.FAILED, State.CANCELLED, State.RUNNING)):
        job(tmp_path, state, seed)
    before = files(tmp_path / "outputs")
    assert clean(tmp_path) == 0
    said = capsys.readouterr().out
    assert "checkpoints of completed jobs, which nobody continues, 20 kB" in said
    assert ": failed" in said and ": cancelled" in said and "under an hour" in said
    assert "Nothing was removed. To remove: --yes --only checkpoints,samples,jobs" in said
    assert files(tmp_path / "outputs") == before


def test_of_a_completed_job_all_that_counts_stays(tmp_path: Path) -> None:
    done = job(tmp_path, State.COMPLETED)
    shutil.rmtree(done.paths.samples_at(20))
    assert [each.what.rpartition(": ")[2] for each in things(tmp_path, only=["samples"])] == ["images of 1 step"]
    assert clean(tmp_path, "--yes", "--only", "checkpoints,samples,jobs,unfinished") == 0
    assert set(KEPT) <= files(done.folder)
    assert {folder.name for folder in done.paths.samples.iterdir()} == {"step-000000", "step-000030"}
    assert not done.paths.checkpoints.exists()
    assert clean(tmp_path, "--yes", "--only", "checkpoints") == 0, "a second time there is nothing to do"


def test_only_what_is_named_is_removed(tmp_path: Path) -> None:
    done, failed = job(tmp_path, State.COMPLETED), job(tmp_path, State.FAILED, 1)
    clean(tmp_path, "--yes", "--only", "samples")
    assert done.paths.checkpoints.is_dir() and failed.folder.is_dir()
    clean(tmp_path, "--yes", "--only", "jobs")
    assert done.paths.checkpoints.is_dir() and not failed.folder.exists()


@pytest.mark.parametrize("state", [State.RUNNING, State.SUBMITTED, State.PENDING, State.INTERRUPTED, State.PRUNED])
def test_jobs_that_are_not_over_keep_everything(tmp_path: Path, state: State) -> None:
    made = job(tmp_path, state)
    before = files(made.folder)
    assert things(tmp_path) == []
    clean(tmp_path, "--yes", "--only", "checkpoints,samples,jobs")
    assert files(made.folder) == before
    named = things(tmp_path, only=["unfinished"])
    assert len(named) == (state in (State.PENDING, State.INTERRUPTED))


def test_a_job_that_is_held_is_left_alone_whatever_it_says(tmp_path: Path) -> None:
    made, beside = job(tmp_path, State.COMPLETED), job(tmp_path, State.PENDING, 1)
    with lock(made.folder):
        assert things(tmp_path, only=["checkpoints", "samples", "unfinished"]) == []
    found = things(tmp_path, only=["checkpoints", "unfinished"])
    assert len(found) == 2
    with lock(made.folder), lock(beside.folder):
        for thing in found:
            assert thing.remove is not None
            with pytest.raises(Exception, match="is being worked on by process"):
                thing.remove()
    assert made.paths.checkpoints.is_dir() and beside.folder.is_dir()


def test_a_job_that_has_changed_since_the_look_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = job(tmp_path, State.FAILED)
    (found,) = things(tmp_path, only=["jobs"])
    update_manifest(made.folder, state=State.RUNNING)
    assert not free([found])
    assert "another state than before" in caplog.text and made.folder.is_dir()


def test_a_completed_job_whose_result_is_lost_keeps_its_checkpoints(tmp_path: Path) -> None:
    made = job(tmp_path, State.COMPLETED)
    made.paths.weights.unlink()
    assert things(tmp_path) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    made, outside = job(tmp_path, State.COMPLETED), tmp_path / "outside"
    shutil.move(made.paths.checkpoints, outside)
    made.paths.checkpoints.symlink_to(outside)
    (made.paths.samples_at(10) / "link").symlink_to(outside)
    clean(tmp_path, "--yes", "--only", "checkpoints,samples")
    assert len(files(outside)) == 4


def test_on_a_terminal_each_kind_is_asked_for(tmp_path: Path) -> None:
    done, failed = job(tmp_path, State.COMPLETED), job(tmp_path, State.FAILED, 1)
    ours, theirs = pty.openpty()
    asked = subprocess.Popen(
        [sys.executable, "-m", "runner.clean", str(tmp_path / "outputs")],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment({"TERM": "dumb"}),
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, b"y\nn\n\n")
    said = b""
    while asked.poll() is None or select.select([ours], [], [], 0.1)[0]:
        try:
            said += os.read(ours, 4096)
        except OSError:
            break  # the other end is closed
    os.close(ours)
    assert asked.wait(timeout=30) == 0
    assert b"remove checkpoints (20 kB)? [y/N]" in said and b"remove jobs" in said
    assert not done.paths.checkpoints.exists()
    assert len(list(done.paths.samples.iterdir())) == 4 and failed.folder.is_dir()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, EOFError])
def test_to_end_the_questions_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: type[BaseException]
) -> None:
    folder = job(tmp_path, State.COMPLETED).folder
    before, answers = files(folder), iter(["y"])

    def answer(_question: str) -> str:
        for given in answers:
            return given
        raise stop

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert clean(tmp_path) == 0
    assert "Nothing was removed." in capsys.readouterr().out
    assert files(folder) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("empty", "other/thing"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "other" / "thing" / "config.yaml").write_text("a: 1\n")
    assert main([str(tmp_path / "empty")]) == main([str(tmp_path / "nowhere")]) == main([str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert "no job in" in said and "no folder" in said and "no job that can be read" in said


def test_what_to_remove_must_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path, State.COMPLETED)
    for wrong, said in (
        (["--yes"], "--yes needs --only"),
        (["--yes", "--only", "everything"], "there is no kind everything; there are checkpoints"),
        (["--yes", "--only", "endpoints"], "these are only listed"),
    ):
        with pytest.raises(SystemExit):
            clean(tmp_path, *wrong)
        assert said in capsys.readouterr().err


def test_endpoints_are_shown_with_what_ends_them_and_their_folders_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = job(tmp_path, State.FAILED)
    endpoint = {"name": "dogs", "region": "eu-west-1", "instance": "ml.g5.xlarge", "instances": 2}
    update_manifest(made.folder, endpoint=endpoint)
    assert clean(tmp_path) == 0
    said = capsys.readouterr().out
    assert "dogs: 2 ml.g5.xlarge" in said
    assert "python -m runner task=undeploy endpoint.name=dogs endpoint.region=eu-west-1" in said
    assert not any(thing.kind == "jobs" for thing in things(tmp_path))


def test_caches_lose_what_no_job_uses_and_nothing_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench.job(Path("embedded"), model={"family": "sdxl"}, validation={"prompts": ["a star"]}, lora={"rank": 2})
    assert bench.train(made)
    monkeypatch.setenv("RUNNER_CACHE", str(bench.cache))
    stores = [posterior_cache().folder, caption_cache().folder]
    used = {file for store in stores for file in store.rglob("*.safetensors")}
    assert used
    # Other tests of this session may have encoded more; here only this job counts.
    for thing in find([made], only=["cache"]):
        assert thing.remove is not None
        thing.remove()
    left = {file for store in stores for file in store.rglob("*.safetensors")}
    extra = [store / "ab" / f"ab{'0' * 62}.safetensors" for store in stores]
    for file in extra:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"0" * 2000)
    unpacked = bench.cache / "archives" / "0123"
    unpacked.mkdir(parents=True)
    (unpacked / "weights").write_bytes(b"0" * 3000)
    again = find([made], only=["cache"])
    assert [(thing.what, thing.size_bytes) for thing in again] == [
        (f"encoded posteriors: 1 of {sum('posteriors' in str(file) for file in left) + 1}", 2000),
        (f"encoded captions: 1 of {sum('captions' in str(file) for file in left) + 1}", 2000),
        ("unpacked archives: 1", 3000),
    ]
    for thing in again:
        assert thing.remove is not None
        thing.remove()
    assert {file for store in stores for file in store.rglob("*.safetensors")} == left
    assert list((bench.cache / "archives").iterdir()) == []
    with bench.own_cache():
        materials = bench.materials(made, bench.base(made))
    assert materials is not None
    assert {file for store in stores for file in store.rglob("*.safetensors")} == left, "nothing was encoded anew"


def test_looking_unpacks_no_archive_and_what_a_job_has_unpacked_stays(tmp_path: Path) -> None:
    base = tmp_path / "base.tar.gz"
    with tarfile.open(base, "w:gz") as archive:
        archive.add(MODEL_DIR / "model_index.json", "base/model_index.json")
    job(tmp_path, State.COMPLETED, model={"family": "sdxl", "path": str(base)})
    assert things(tmp_path, only=["cache"]) == []
    assert not (cache_dir() / "archives").exists()
    laid_out(base)
    (cache_dir() / "archives" / "of another").mkdir()
    assert [thing.what for thing in things(tmp_path, only=["cache"])] == ["unpacked archives: 1 of 2"]


def test_a_copy_of_what_a_training_is_measured_with_stays(tmp_path: Path) -> None:
    for name in ("real", "other"):
        (cache_dir() / "s3" / "bucket" / name).mkdir(parents=True)
        record = cache_dir() / "s3" / ".records" / f"{name}.json"
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps({"uri": f"s3://bucket/{name}/"}))
    measured = {"metrics": ["kid"], "real": "s3://bucket/real/", "features": {"inception": "x.pt"}}
    job(tmp_path, State.COMPLETED, evaluation=measured)
    assert [thing.what for thing in things(tmp_path, only=["cache"])] == ["copy of s3://bucket/other/"]


def test_parts_of_streamed_data_sets_stay_while_a_job_streams(tmp_path: Path) -> None:
    job(tmp_path, State.COMPLETED)
    part = cache_dir() / "streamed" / "shards" / "files" / "ann--pictures" / "train.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"0" * 1000)
    assert [thing.what for thing in things(tmp_path, only=["cache"])] == ["folders of streamed data sets: 1"]

    job(tmp_path, State.COMPLETED, seed=1, dataset={"path": "ann/pictures", "stream": True})
    assert things(tmp_path, only=["cache"]) == []


def test_caches_stay_where_it_cannot_be_said_who_uses_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = posterior_cache().folder / "ab" / "abc.safetensors"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"0")
    waiting = job(tmp_path, State.PENDING, dataset={"path": str(tmp_path / "gone")})
    assert things(tmp_path, only=["cache"]) == []
    assert f"it is unknown which of them {waiting.folder} uses" in caplog.text
    (waiting.folder / "config.yaml").write_text("torn: [")
    job(tmp_path, State.COMPLETED, 1)
    assert things(tmp_path, only=["cache"]) == [] and "what the jobs above use" in caplog.text


def test_the_command_runs_without_torch_and_says_what_there_is(tmp_path: Path) -> None:
    job(tmp_path, State.COMPLETED)
    answer = command("clean", str(tmp_path / "outputs"))
    assert answer.code == 0 and "checkpoints" in answer.output
    probe = "import sys, runner.clean.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False, env=environment()).returncode == 0


def test_s3_loses_what_is_here_and_images_are_named_with_their_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StandIn(tmp_path / "instances") as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        launcher = {"name": "sagemaker", "bucket": aws.bucket, "role": aws.role}
        done = job(tmp_path, State.COMPLETED, launcher=launcher)
        open_one = job(tmp_path, State.INTERRUPTED, 1, launcher=launcher)
        image = aws.add_image("lora:1", ["true"])
        for training, members in (("x-one", [done.id]), ("x-two", [done.id, open_one.id])):
            record = ExperimentPaths(done.folder.parent).cluster("sagemaker") / f"{training}.json"
            record.parent.mkdir(exist_ok=True)
            record.write_text(json.dumps({"name": training, "jobs": members, "gone": {"x": 1}, "image": image}))
            for key in ("output/weights", "checkpoints/state"):
                place = f"lora-runner/experiments/x/{training}/{key}"
                aws.s3.put_object(Bucket=aws.bucket, Key=place, Body=b"0" * 100)
        assert clean(tmp_path) == 0
        said = capsys.readouterr().out
        assert f"x: training job x-one: 2 objects in s3://{aws.bucket}/lora-runner/experiments/x/x-one/" in said
        assert "x-two" not in said, "one of its jobs may be continued from there"
        assert "aws ecr batch-delete-image --region" in said and "--image-ids imageTag=1" in said
        assert clean(tmp_path, "--yes", "--only", "s3") == 0
        left = [each["Key"] for each in aws.s3.list_objects_v2(Bucket=aws.bucket)["Contents"]]
        assert not any("/x-one/" in key for key in left) and sum("/x-two/" in key for key in left) == 2
    assert not cache_dir().joinpath("s3").exists()


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StandIn, Job, Places, Path]]:
    """A training job's data set and base model in S3, the job, and the folder of that base."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    with StandIn(tmp_path / "instances") as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        done = job(tmp_path, State.COMPLETED, launcher={"name": "sagemaker", "bucket": aws.bucket, "role": aws.role})
        places, storage = Places(aws.bucket, "lora-runner"), Storage(aws.s3)
        send_folder(folder, places.model("m" * 40), storage, what="the base model")
        send({"0.png": folder / "model_index.json"}, places.dataset("d" * 40), storage)
        yield aws, done, places, folder


def test_inputs_that_were_removed_from_s3_are_sent_again(
    tmp_path: Path, sent: tuple[StandIn, Job, Places, Path]
) -> None:
    aws, _, places, folder = sent
    storage = Storage(aws.s3)
    assert clean(tmp_path, "--yes", "--only", "s3-inputs") == 0
    assert aws.keys() == []
    assert not is_sent(places.dataset("d" * 40), storage)
    send_folder(folder, places.model("m" * 40), storage, what="the base model")
    assert list(storage.listing(places.model("m" * 40))) == ["model_index.json"]


def test_inputs_whose_removal_was_broken_off_do_not_count_as_sent(
    tmp_path: Path, sent: tuple[StandIn, Job, Places, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    aws, _, places, _ = sent

    def killed(client: object, place: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("runner.aws.sent.remove", killed)
    with pytest.raises(KeyboardInterrupt):
        clean(tmp_path, "--yes", "--only", "s3-inputs")
    assert not is_sent(places.dataset("d" * 40), Storage(aws.s3)), "the first of the two"
    assert Storage(aws.s3).listing(places.dataset("d" * 40))


def test_the_base_of_an_endpoint_stays_in_s3_whoever_has_made_it(
    tmp_path: Path, sent: tuple[StandIn, Job, Places, Path]
) -> None:
    aws, _, places, _ = sent
    elsewhere = tmp_path / "outputs" / "shop" / "0123456789"
    elsewhere.mkdir(parents=True)
    served = {"identity": {"model": "m" * 40}, "endpoint": {"name": "shop", "region": "us-east-1"}}
    (elsewhere / "manifest.json").write_text(json.dumps(served))
    assert clean(tmp_path, "--yes", "--only", "s3-inputs") == 0
    assert is_sent(places.model("m" * 40), Storage(aws.s3)) and Storage(aws.s3).listing(places.model("m" * 40))
    assert not is_sent(places.dataset("d" * 40), Storage(aws.s3))
