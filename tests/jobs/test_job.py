"""What a job's folder says when a command takes the job up again, and what the job is called."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from runner.errors import RunnerError
from runner.jobs.job import Job, State, make_job, read_job, read_manifest, register, update_manifest
from runner.jobs.lock import is_held, is_taken_up, lock
from runner.paths import LOCK_NAME
from runner.schema import Experiment
from tests.weights import weights_of


def job(tmp_path: Path, **settings: Any) -> Job:
    experiment = Experiment.model_validate(settings)
    return make_job(experiment, model="m", dataset="d", outputs=tmp_path, overrides=("a=b",))


def test_an_id_is_the_hash_of_what_is_not_at_its_default(tmp_path: Path) -> None:
    changed = job(tmp_path, seed=3, lora={"rank": 7}, optimizer={"name": "adamw"})
    # The kind of optimizer counts even if it is the default.
    identity = (
        '{"dataset": "d", "model": "m", "schema": 1, '
        '"settings.lora.rank": 7, "settings.optimizer.name": "adamw", "settings.seed": 3}'
    )
    assert changed.id == hashlib.sha256(identity.encode()).hexdigest()[:10]
    assert changed.folder == tmp_path / changed.settings.name / changed.id
    elsewhere = job(tmp_path, seed=3, lora={"rank": 7, "dora": False}, launcher={"name": "local", "pack": 1})
    assert elsewhere.id == changed.id


def test_a_job_that_is_taken_up_again_is_begun_anew_and_keeps_its_history(tmp_path: Path) -> None:
    again = job(tmp_path)
    register(again)
    update_manifest(again.folder, state=State.FAILED, error="x", crashed=True, created="then", attempts=2, other=1)
    assert read_job(again.folder).overrides == ("a=b",)
    register(again)
    manifest = read_manifest(again.folder)
    assert [manifest[key] for key in ("state", "error", "crashed")] == ["pending", None, False]
    assert [manifest[key] for key in ("created", "attempts", "other")] == ["then", 2, 1]
    again.paths.manifest.unlink()
    register(again)
    manifest = read_manifest(again.folder)
    assert (manifest["attempts"], "other" in manifest) == (0, False), "whoever has removed it, wants a new one"
    assert manifest["created"] != "then"


def test_on_a_full_disk_the_outcome_is_written_over_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(target: Path, _: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    failed = job(tmp_path)
    register(failed, State.RUNNING)
    monkeypatch.setattr("runner.jobs.job.write_text", refuse)
    for error in ("longer than what was there", "short"):
        update_manifest(failed.folder, state=State.FAILED, error=error)
        manifest = read_manifest(failed.folder)
        assert (manifest["state"], manifest["error"]) == ("failed", error)
    before = failed.paths.manifest.read_bytes()
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: write(file, content[: len(before)], at))
    with pytest.raises(OSError, match="No space left"):
        update_manifest(failed.folder, error="x" * 1000)
    assert failed.paths.manifest.read_bytes() == before


@pytest.mark.parametrize("left", ["", "[1, 2]", "text"])
def test_of_a_configuration_that_is_none_it_is_said_which_file_is_damaged(left: str, tmp_path: Path) -> None:
    """As left by a power cut, or written by another program."""
    (tmp_path / "config.yaml").write_text(left)
    with pytest.raises(RunnerError, match=r"can be read: its manifest\.json or config\.yaml is empty or damaged$"):
        read_job(tmp_path)


def test_a_job_without_its_settings_is_told_with_what_brings_them_back(tmp_path: Path) -> None:
    made = job(tmp_path)
    register(made)
    made.paths.config.unlink()
    with pytest.raises(RunnerError, match=r"it has no config\.yaml; the command that made it writes it again"):
        read_job(made.folder)
    register(made)
    assert read_job(made.folder).settings == made.settings


def test_who_only_looks_whether_a_job_is_held_is_no_holder(tmp_path: Path) -> None:
    with lock(tmp_path):
        assert is_held(tmp_path)
    with (tmp_path / LOCK_NAME).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not is_held(tmp_path), "or two tables of jobs would take each other for runners"


def test_a_job_is_taken_up_by_another_process_that_still_runs(tmp_path: Path) -> None:
    assert not is_taken_up(tmp_path)
    with lock(tmp_path):
        pass
    assert not is_taken_up(tmp_path), "by this one"
    ended = subprocess.Popen(["true"])
    ended.wait()
    for holder, expected in ((os.getppid(), True), (ended.pid, False)):
        (tmp_path / LOCK_NAME).write_text(str(holder))
        assert is_taken_up(tmp_path) is expected


def test_who_waits_for_a_job_whose_folder_is_removed_meanwhile_holds_the_new_one(tmp_path: Path) -> None:
    folder, answers = tmp_path / "x" / "1", []

    def wait() -> None:
        with lock(folder, patience_s=60):
            answers.append(is_held(folder))

    waiting = Thread(target=wait)
    with lock(folder):
        waiting.start()
        while not _is_opened_twice(folder / LOCK_NAME):
            assert waiting.is_alive()
        shutil.rmtree(folder)
    waiting.join()
    assert answers == [True], "or two would work on it"


def _is_opened_twice(file: Path) -> bool:
    return sum(each.exists() and each.samefile(file) for each in Path("/proc/self/fd").iterdir()) == 2


@pytest.mark.parametrize("method", ["text_to_image", "pivotal", "textual_inversion"])
def test_a_result_that_was_copied_in_part_is_none(method: str, tmp_path: Path) -> None:
    words = {} if method == "text_to_image" else {"tokens": ["<a>", "<b>"], "initial": ["cat", "dog"]}
    raw = {"method": {"name": method, **words}, "dataset": {"caption_prefix": "<a> <b>"}}
    job = make_job(Experiment.model_validate(raw), model="m", dataset="d", outputs=tmp_path)
    files = [] if method == "textual_inversion" else [job.paths.weights]
    files += [job.paths.word(token) for token in words.get("tokens", [])]
    job.paths.lora.mkdir(parents=True)
    for file in files:
        assert not job.has_result
        file.write_bytes(weights_of())
    assert job.has_result
    for file in files:
        whole = file.read_bytes()
        for part in (whole[:-1], b""):
            file.write_bytes(part)
            assert not job.has_result
        file.write_bytes(whole)
    assert job.has_result
