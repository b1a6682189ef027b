"""Every command says the same about a folder that is missing or has no job in it: at once, and with exit code 2."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from runner import stop, work
from runner.clean import __main__ as clean
from runner.gallery import __main__ as gallery
from runner.job_folders import job_folders
from runner.report import __main__ as report
from runner.status import __main__ as status
from runner.track import __main__ as track

Main = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Main] = {
    "clean": clean.main,
    "gallery": gallery.main,
    "report": report.main,
    "status": status.main,
    "stop": stop.main,
    "track": track.main,
    "work": work.main,
}


@pytest.mark.parametrize("main", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_folder_that_is_not_there(
    main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(work, "_work")  # it would load torch

    assert main(["none"]) == 2

    said = capsys.readouterr().err + caplog.text
    assert f"no folder {tmp_path / 'none'}: name " in said
    assert "outputs/<name>" in said
    assert not list(tmp_path.iterdir()), "nor is it made"

    meant = tmp_path / "results" / "dog[1]" / "none"
    meant.mkdir(parents=True)
    monkeypatch.setenv("RUNNER_OUTPUTS", str(tmp_path / "results"))
    for named, there in (("none", meant), ("dog[1]", meant.parent)):
        assert main([named]) == 2
        assert f"(did you mean {there}?)" in capsys.readouterr().err + caplog.text


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"gallery"}))  # its page may be opened before the first job
def test_a_folder_without_jobs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delattr(work, "_work")

    assert COMMANDS[name]([str(tmp_path)]) == 2
    assert f"no job in {tmp_path}: name " in capsys.readouterr().err + caplog.text


@pytest.mark.parametrize(
    ("config", "said"),
    [("a: [1\n", "while parsing"), ("a: 1\n", "lacks 'task'"), ("task: {name: train}\n", "lacks 'id'")],
)
def test_a_job_that_cannot_be_read_is_told(
    config: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text(config)

    assert work.main(["--device", "cpu", str(tmp_path)]) == work.CRASHED_CODE
    assert f"{tmp_path} holds no job that can be read: " in caplog.text
    assert said in caplog.text


def test_a_folder_that_may_not_be_looked_into_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "theirs", "lost+found"):
        (tmp_path / name / "job").mkdir(parents=True)
        (tmp_path / name / "job" / "manifest.json").write_text("{}")
    stat, iterate = Path.stat, Path.iterdir

    def closed(path: Path) -> None:
        if {"theirs", "lost+found"} & set(path.relative_to(tmp_path).parts[:-1]):
            raise PermissionError(13, "Permission denied", str(path))

    def closed_stat(path: Path, **options: bool) -> os.stat_result:
        closed(path)
        return stat(path, **options)

    def closed_iterdir(path: Path) -> Iterator[Path]:
        closed(path / "any")
        return iterate(path)

    monkeypatch.setattr(Path, "stat", closed_stat)
    monkeypatch.setattr(Path, "iterdir", closed_iterdir)
    assert job_folders(tmp_path) == [tmp_path / "mine" / "job"]
    with pytest.raises(PermissionError):
        job_folders(tmp_path / "theirs")


def test_a_link_to_a_job_beside_it_is_no_further_job(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "x" / name / "manifest.json").write_text("{}")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "x" / "a")
    (tmp_path / "x" / "best").symlink_to("a")
    assert job_folders(tmp_path / "x") == [tmp_path / "x" / "a", tmp_path / "x" / "b"]
    assert job_folders(tmp_path) == [tmp_path / "elsewhere"], "the job itself lies in another folder"
