"""The output of workers is passed on line by line, and long silences are interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.container import relay
from runner.container.relay import Relay


def test_lines_are_passed_on_whole_and_with_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "worker-0.log").write_text("of an earlier container\n")
    following = Relay(tmp_path, named=True, how_far=lambda: "?")
    with following.following():
        for place, text in (("0", "one\ntw"), ("1", "10 %\r20 %\r"), ("0", "o\n\n"), ("1", "30 %\nlast")):
            with (tmp_path / f"worker-{place}.log").open("a") as log:
                log.write(text)

    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("[0]")] == ["[0] one", "[0] two"]
    assert [line for line in said if line.startswith("[1]")] == ["[1] 30 %", "[1] last"]
    assert len(said) == 4


def test_after_a_while_of_silence_it_says_how_far_the_jobs_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "SILENT_S", 0.0)
    with Relay(tmp_path, named=False, how_far=lambda: "2 running").following():
        pass

    assert capsys.readouterr().out == "2 running\n"
