"""Where cleaning looks: in the named folders and the caches, not where links lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.clean.__main__ import main
from runner.jobs.job import State
from runner.paths import cache_dir
from tests.test_clean import clean, files, job


def test_what_a_link_to_a_job_leads_to_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed, state in enumerate((State.COMPLETED, State.FAILED, State.PENDING)):
        made = job(tmp_path, state, seed)
        made.folder.symlink_to(made.folder.rename(tmp_path / f"kept-{seed}"))
    before = {each: files(tmp_path / each) for each in ("kept-0", "kept-1", "kept-2")}
    assert clean(tmp_path, "--yes", "--only", "checkpoints,samples,jobs,unfinished") == 0
    assert {each: files(tmp_path / each) for each in before} == before
    assert caplog.text.count("is a link; name the folder it points to") == 3


def test_a_user_without_a_place_for_caches_is_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job(tmp_path, State.COMPLETED)
    for name in ("RUNNER_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert clean(tmp_path) == 2
    assert "RUNNER_CACHE" in capsys.readouterr().err


def test_what_the_experiments_beside_use_from_the_caches_is_said_to_be_included(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(tmp_path, State.COMPLETED)
    job(tmp_path, State.COMPLETED, name="y")
    (cache_dir() / "class-images" / "abc").mkdir(parents=True)
    said = f"cache: includes what 1 other job in y may use; to keep that, name {tmp_path / 'outputs'}"
    assert clean(tmp_path, "--only", "cache") == 0
    assert said in capsys.readouterr().out
    assert clean(tmp_path, "--only", "checkpoints") == 0
    assert main([str(tmp_path / "outputs"), "--only", "cache"]) == 0
    assert "cache: includes" not in capsys.readouterr().out
