"""What a command prints, and to which stream."""

from __future__ import annotations

import logging
import logging.config
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from runner import __main__ as front
from tests.command_line import ROOT, environment


@pytest.mark.parametrize("arguments", [["seed=0"], ["-m", "seed=0,1"]], ids=["one job", "a sweep"])
def test_a_reader_that_stops_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runner", *arguments, "launcher.dry_run=true"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        running.stdout.close()  # like `| head`, before the first line
        assert running.stderr is not None
        assert running.stderr.read() == ""
    assert running.returncode == 0


def test_ctrl_c_before_anything_runs_is_no_page_of_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["runner"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(front, "_compose_and_launch", interrupted)
    with pytest.raises(SystemExit) as end:
        front.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to go on\n"


def test_control_codes_of_what_others_wrote_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        front._end("bad\x1b]0;title\x07\x9b31m.jpg: cannot be decoded\n\tnor \u00e9 changed", code=2)
    assert capsys.readouterr().err == "bad\\x1b]0;title\\x07\\x9b31m.jpg: cannot be decoded\n\tnor \u00e9 changed\n"
    record = logging.makeLogRecord({"msg": "%s is cut", "args": ("a \x1b[2Jhouse\r",)})
    for name in ("hydra_logging", "job_logging"):
        chosen = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["hydra"][name]["formatters"]["simple"]
        assert logging.config.DictConfigurator({}).configure_formatter(chosen).format(record) == (
            "a \\x1b[2Jhouse\\x0d is cut"
        )
