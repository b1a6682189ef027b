"""A run ends with one table of its samples, which can neither grow without bound nor keep the run open."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from .wandb_jobs import job_with_samples, open_for, samples, table_of
from .wandb_log import read_logs
from .wandb_server import WandbServer


def test_a_run_ends_with_a_table_of_its_samples(tmp_path: Path, server: WandbServer) -> None:
    job = job_with_samples(tmp_path / "job", steps=2)
    mirror = open_for(job)
    mirror.log(10, {"validation/loss": 0.3})
    mirror.finish("completed", {"objective": 0.25, "steps_done": 10})
    assert [row[:3] for row in table_of(server)] == [
        [step, prompt, seed]
        for step in (0, 10)
        for prompt in ("a red house", "a blue house")
        for seed in (3, 4)
    ]  # fmt: skip
    run = server.runs["abc123-houses"]
    assert (run["history"][-1]["samples_table"]["nrows"], run["history"][-1]["global_step"]) == (8, 10)
    assert (run["summary"]["validation/loss"], run["summary"]["objective"]) == (0.25, 0.25)
    assert [one["state"] for one in server.artifacts.values()] == ["COMMITTED"]


def test_an_interrupted_run_goes_on_and_has_no_table_yet(tmp_path: Path) -> None:
    job = job_with_samples(tmp_path / "job", steps=1)
    open_for(job).finish("interrupted", {})
    (logged,) = read_logs(job)
    assert logged.history == []
    assert "samples_table" not in logged.summary


def test_a_table_is_bounded_in_images_and_their_size(tmp_path: Path, server: WandbServer) -> None:
    job = job_with_samples(tmp_path / "job", steps=40)
    large = job / "samples" / "step-000390" / "p00-s3.png"
    Image.effect_noise((1024, 768), 90).convert("RGB").save(large)
    open_for(job).finish("completed", {})
    rows = table_of(server)
    assert len(rows) == 100
    steps = sorted({row[0] for row in rows})
    assert steps == [0, *range(160, 400, 10)], "the first one, and the last ones"
    (small,) = [body for name, body in server.uploads.items() if name.endswith(".jpg")]
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == (512, 384)
    assert len(small) < large.stat().st_size / 4


def test_a_table_that_cannot_be_made_does_not_keep_a_run_open(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_with_samples(tmp_path / "job", steps=1)
    (job / "samples" / "step-000000" / "p00-s3.png").write_bytes(b"not an image")
    open_for(job).finish("completed", {"objective": 0.25})
    run = server.runs["abc123-houses"]
    assert (run["summary"]["objective"], run["exit_code"]) == (0.25, 0)
    assert "logging the table of samples failed" in caplog.text


def test_an_image_that_cannot_be_read_is_left_out_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = samples(tmp_path)
    whole = second[0].read_bytes()
    mirror = open_for(tmp_path / "job", mode="offline")
    for left in (whole[: len(whole) // 2], b"not an image", b""):
        second[0].write_bytes(left)
        mirror.images(1, [first, second])
    mirror.log(2, {"validation/loss": 0.3})
    mirror.finish("completed", {})
    (logged,) = read_logs(tmp_path / "job")
    assert [found for line in logged.history if (found := line.get("samples.captions"))] == [["a red house"]] * 3
    assert logged.history[-1]["validation/loss"] == 0.3
    assert caplog.text.count(f"W&B: {second[0]} is left out, it cannot be read: ") == 3
