"""The output of containers on this machine is kept and shown, each line once, even if others printed the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.launchers.sagemaker.local.containers import LocalContainers
from runner.schema import SageMakerLauncher


def test_lines_that_are_alike_are_all_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engine, log = tmp_path / "engine", tmp_path / "kept" / "log"
    engine.write_text(f'#!/bin/sh\ncat "{tmp_path}/$2"\n')
    engine.chmod(0o755)
    settings = SageMakerLauncher(name="sagemaker", local=True, instances=2, logs="stream")
    containers = LocalContainers(settings, image="image", program=str(engine))
    hosts = containers._hosts("job")
    one, two = tmp_path / "job-algo-1", tmp_path / "job-algo-2"

    for printed in ({one: "slow\n", two: "slow\n"}, {one: "slow\nslow\n", two: "slow\nfast\n"}):
        for file, text in printed.items():
            file.write_text(text)
        containers._keep_logs("job", hosts, log)
    one.unlink()
    two.write_text("slow\nfast\nfast\n")
    containers._keep_logs("job", hosts, log)

    assert log.read_text() == "algo-1: slow\nalgo-1: slow\nalgo-2: slow\nalgo-2: fast\nalgo-2: fast\n"
    assert [message.removeprefix("job | ") for message in caplog.messages] == [
        "algo-1: slow", "algo-2: slow", "algo-1: slow", "algo-2: fast", "algo-2: fast",
    ]  # fmt: skip
