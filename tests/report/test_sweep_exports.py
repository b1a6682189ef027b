"""sweep.csv and sweep.json contain every job, and cope with anything in settings and errors."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.report import record, write_report

from .job_folders import change_config, change_manifest, give_cost, write_job, write_search

HOSTILE = '=HYPERLINK("http://x"), "quoted",\r\nsecond line, “ü”'


def exports(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    write_report(folder)
    assert not list(folder.glob(".*"))

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, strict=True))
    return rows, json.loads((folder / "sweep.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_both_hold_the_whole_sweep(tmp_path: Path) -> None:
    folder = write_search(tmp_path, 8)
    rows, said = exports(folder)
    assert (said["schema_version"], said["experiment"]) == (1, "search")
    assert said["objective"] == {"name": "validation/loss", "direction": "minimize"}
    assert datetime.fromisoformat(said["written"]).tzinfo
    assert said["shared_settings"]["batch_size"] == 4
    assert len(said["jobs"]) == len(rows) == 8
    assert [job["place"] for job in said["jobs"]] == [1, 2, 3, 4, 5, None, None, None]
    assert [job["state"] for job in said["jobs"]][-3:] == ["pruned", "pruned", "failed"]
    for row, job in zip(rows, said["jobs"], strict=True):
        config = yaml.safe_load((folder / job["folder"] / "config.yaml").read_text())
        assert job["settings"]["optimizer.lr"] == config["optimizer"]["lr"] == float(row["optimizer.lr"])
        assert set(job["settings"]) == {
            "seed", "dataset.path", "dataset.caption_dropout", "lora.rank", "lora.alpha", "optimizer.name",
            "optimizer.lr", "loss.snr_gamma",
        }  # fmt: skip
        assert float(row["validation/loss"]) == job["metrics"]["validation/loss"]
        assert float(row["cost.alone_s"]) == job["cost"]["alone_s"] == pytest.approx(114.6)
        assert float(row["timings_s.total"]) == job["timings_s"]["total"] == 38.2
        assert row["steps_done"] == str(job["steps_done"])
    first = said["jobs"][0]
    assert first["metrics"]["validation/loss"] == first["objective"]
    assert list(rows[0])[:4] == ["id", "state", "objective", "place"]
    assert list(rows[0])[-2:] == ["error", "folder"]
    assert rows[-1]["error"].startswith("DivergedError")
    assert rows[-1]["objective"] == rows[-1]["place"] == ""


def test_a_table_survives_any_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        job = write_job(tmp_path / "x" / name, rank=ord(name), sampled=[], state="failed", error=f"{name}{HOSTILE}")
        change_config(job, dataset__path=f"{HOSTILE}{name}", optimizer__lr=-1.5, lora__targets=["@x", name])
        change_manifest(job, timings_s={"=1+1": 1.0, "total": 2.0})
    rows, said = exports(tmp_path / "x")
    assert [row["dataset.path"] for row in rows] == [f"'{HOSTILE}a", f"'{HOSTILE}b"]
    assert [row["error"] for row in rows] == [f"a{HOSTILE}", f"b{HOSTILE}"]
    assert [job["settings"]["dataset.path"] for job in said["jobs"]] == [f"{HOSTILE}a", f"{HOSTILE}b"]
    assert said["shared_settings"]["optimizer.lr"] == -1.5
    assert rows[0]["lora.targets"] == '["@x", "a"]'
    assert rows[0]["timings_s.=1+1"] == "1.0"
    raw = (tmp_path / "x" / "sweep.csv").read_bytes()
    assert not any(line.lstrip(b'"').startswith((b"=", b"@")) for line in raw.replace(b",", b"\n").splitlines())


def test_numbers_stay_numbers_and_what_is_not_finite_is_no_json(tmp_path: Path) -> None:
    for name, rate in (("a", -2.5e-7), ("b", 1e-3)):
        job = write_job(tmp_path / "x" / name, sampled=[])
        change_config(job, optimizer__lr=rate, loss__snr_gamma=float("inf"), dataset__flip=name == "a")
        with (job / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 201, "train/loss": null, "non_finite": {"train/loss": "nan"}}\n')
    rows, said = exports(tmp_path / "x")
    by_id = {row["id"]: row for row in rows}
    assert by_id["a"]["optimizer.lr"] == "-2.5e-07"
    assert (by_id["a"]["dataset.flip"], by_id["b"]["dataset.flip"]) == ("true", "false")
    assert rows[0]["train/loss"] == "nan"
    assert said["jobs"][0]["metrics"]["train/loss"] is None
    assert said["shared_settings"]["loss.snr_gamma"] is None


def test_one_job_and_damaged_jobs_are_rows_too(tmp_path: Path) -> None:
    job = write_job(tmp_path / "x" / "job")
    rows, said = exports(tmp_path / "x")
    assert (len(rows), said["jobs"][0]["folder"], said["jobs"][0]["settings"]) == (1, "job", {})
    assert said["shared_settings"]["lora.rank"] == 8
    assert exports(job)[1]["jobs"][0]["folder"] == "."
    (tmp_path / "x" / "torn").mkdir()
    (tmp_path / "x" / "torn" / "manifest.json").write_text('{"id": ')
    rows, said = exports(tmp_path / "x")
    assert [job["state"] for job in said["jobs"]] == ["completed", "unknown"]


def test_the_command_says_where_all_three_are(tmp_path: Path) -> None:
    give_cost(write_job(tmp_path / "x" / "job", sampled=[]))
    command = [sys.executable, "-m", "runner.report", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = [Path(line) for line in done.stdout.splitlines()]
    assert said == [tmp_path / "x" / name for name in ("report.html", "sweep.csv", "sweep.json")]
    assert all(path.is_file() for path in said)


def test_a_long_record_takes_no_more_memory_than_its_numbers(tmp_path: Path) -> None:
    job, lines = write_job(tmp_path / "long"), 20_000
    names = ["train/loss", "train/grad_norm", "train/lr", "train/images_per_s"]
    with (job / "metrics.jsonl").open("w", encoding="utf-8") as stream:
        for step in range(1, lines + 1):
            values = {name: step / 7 + place for place, name in enumerate(names)}
            stream.write(json.dumps({"step": step, "time": 1e9 + step, **values}) + "\n")
    record.read_job(job)  # what is loaded for the first job stays loaded
    tracemalloc.start()
    read = record.read_job(job)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.curve("train/lr")[-1] == (lines, lines / 7 + 2)
    # A step and a value of 8 bytes each, plus some room for growth and for settings.
    assert taken < 1.5 * 16 * lines * (len(names) + 1)
