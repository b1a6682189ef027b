"""metrics.jsonl keeps what was written to it, through kills and resumes."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from runner.track import MetricsFile
from runner.track import metrics as metrics_file


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsFile:
    return MetricsFile(tmp_path / "metrics.jsonl")


def steps(metrics: MetricsFile) -> list[int]:
    return [line["step"] for line in metrics.read()]


def test_lines_are_there_at_once_and_in_order(metrics: MetricsFile) -> None:
    assert metrics.read() == []
    metrics.append(1, {"train/loss": 0.5, "train/lr": 1e-4})
    metrics.append(1, {"validation/loss": 0.25})
    first, second = MetricsFile(metrics.path).read()
    assert (first["step"], first["train/loss"], first["train/lr"]) == (1, 0.5, 1e-4)
    assert second["validation/loss"] == 0.25
    assert abs(first["time"] - second["time"]) < 5


def test_non_finite_numbers_are_valid_json_and_come_back(metrics: MetricsFile) -> None:
    metrics.append(3, {"train/loss": math.nan, "train/grad_norm": math.inf, "train/lr": 0.1})

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    raw = json.loads(metrics.path.read_text(), parse_constant=refuse)
    assert raw["train/loss"] is None
    (line,) = metrics.read()
    assert math.isnan(line["train/loss"])
    assert line["train/grad_norm"] == math.inf
    assert line["train/lr"] == 0.1


def test_a_whole_number_beyond_all_floats_is_infinite(metrics: MetricsFile) -> None:
    """As another program may have written it."""
    metrics.append(1, {"a": 1.0})
    with metrics.path.open("a") as stream:
        stream.write(f'{{"step": 2, "a": -{"9" * 400}, "b": 7}}\n{{"step": {"9" * 5000}, "a": 1}}\n')
    assert metrics.values("a") == [(1, 1.0), (2, -math.inf)]
    assert steps(metrics) == [1, 2], "a step is a number that can be counted to"
    assert metrics.read()[1]["b"] == 7


def test_a_torn_last_line_is_left_out_and_then_overwritten(metrics: MetricsFile) -> None:
    metrics.append(1, {"a": 1.0})
    metrics.close()
    with metrics.path.open("a") as stream:
        stream.write('{"step": 2, "a":')
    assert steps(metrics) == [1]
    metrics.append(2, {"a": 2.0})
    assert steps(metrics) == [1, 2]
    assert all(json.loads(line) for line in metrics.path.read_text().splitlines())


def test_garbage_in_the_middle_is_left_out_and_said(metrics: MetricsFile, caplog: pytest.LogCaptureFixture) -> None:
    metrics.path.write_bytes(b'{"step": 1}\n\xff\xfe garbage\n[1]\n"step"\n{"step": 2}\n')
    assert steps(metrics) == [1, 2]
    assert "skipped 3 lines" in caplog.text
    assert "line 2" in caplog.text


def test_the_values_of_one_metric_are_had_without_parsing_the_others(
    metrics: MetricsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metrics.values("validation/loss") == []
    for step in range(1, 50):
        metrics.append(step, {"train/loss": 0.5})
    metrics.append(20, {"validation/loss": 0.25, "train/loss": math.nan})
    metrics.append(40, {"validation/loss": math.nan, "validation/loss_t0062": 1.0})
    metrics.append(49, {"validation/loss_t0062": 1.0})
    with metrics.path.open("a") as stream:
        stream.write('{"step": 60, "validation/loss": 0.')
    parsed: list[bytes] = []
    real = metrics_file.parse_line
    monkeypatch.setattr(metrics_file, "parse_line", lambda raw: parsed.append(raw) or real(raw))
    first, second = metrics.values("validation/loss")
    assert first == (20, 0.25)
    assert second[0] == 40
    assert math.isnan(second[1])
    assert len(parsed) == 3, "those that name it"


def test_truncate_after_drops_later_lines_and_appending_goes_on(metrics: MetricsFile) -> None:
    for step in range(1, 6):
        metrics.append(step, {"a": float(step)})
    metrics.append(3, {"validation/loss": math.nan})
    metrics.truncate_after(3)
    assert steps(metrics) == [1, 2, 3, 3]
    assert math.isnan(metrics.read()[-1]["validation/loss"])
    metrics.append(4, {"a": 4.5})
    assert steps(metrics) == [1, 2, 3, 3, 4]
    assert [path.name for path in metrics.path.parent.iterdir() if path.is_file()] == ["metrics.jsonl"]


def test_a_line_that_a_full_disk_has_torn_takes_no_other_with_it(
    metrics: MetricsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        os.truncate(path, path.stat().st_size + 1)
        raise OSError(errno.ENOSPC, "No space left on device")

    metrics.append(1, {"train/loss": 0.5})
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space"):
            metrics.append(2, {"train/loss": 0.4})
    metrics.append(3, {"train/loss": 0.3})
    assert steps(metrics) == [1, 3]


def test_what_is_to_be_measured_anew_goes_and_all_else_stays(metrics: MetricsFile) -> None:
    metrics.append(1, {"validation/loss": 0.5})
    metrics.append(2, {"train/loss": 0.4})
    metrics.append(2, {"validation/loss": 0.3, "validation/loss_t0062": 0.2})
    metrics.append(3, {"validation/loss": 0.2})
    metrics.drop(2, "validation/")
    assert [(line["step"], *sorted(line.keys() - {"step", "time"})) for line in metrics.read()] == [
        (1, "validation/loss"), (2, "train/loss"), (3, "validation/loss"),
    ]  # fmt: skip


def test_nothing_and_less_than_anything_are_numbers_too(metrics: MetricsFile) -> None:
    metrics.append(1, {"score": 0.0})
    metrics.append(2, {"score": -math.inf})
    assert metrics.values("score") == [(1, 0.0), (2, -math.inf)]


def test_a_line_whose_step_is_no_whole_number_is_torn(metrics: MetricsFile) -> None:
    metrics.path.write_bytes(b'{"step": "2", "a": 1}\n{"step": 1.5, "a": 1}\n{"step": 0, "a": 1}\n')
    metrics.truncate_after(1)
    assert steps(metrics) == [0]


def test_truncating_a_missing_file_makes_none(metrics: MetricsFile) -> None:
    metrics.truncate_after(0)
    assert not metrics.path.exists()
