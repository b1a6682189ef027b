"""Runs the command line in the background, and reads what its folders say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.command_line import ROOT, Answer, environment

DEADLINE_S = 120.0


def outputs() -> Path:
    return Path(os.environ["RUNNER_OUTPUTS"])


def manifests(name: str = "dev") -> dict[str, dict[str, Any]]:
    return {
        file.parent.name: json.loads(file.read_text()) for file in sorted(outputs().glob(f"{name}/*/manifest.json"))
    }


def only_folder(name: str = "dev") -> Path:
    (job_id,) = manifests(name)
    return outputs() / name / job_id


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "lora" / "pytorch_lora_weights.safetensors")


def assert_bitwise_equal(left: Path, right: Path) -> None:
    one, other = weights(left), weights(right)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


class Running:
    """A runner in the background."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runner", *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, pattern: str) -> Path:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            found = sorted(outputs().glob(pattern))
            if found:
                return found[0]
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)
        raise AssertionError(f"no {pattern}")

    def wait_for_line(self, part: str) -> None:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if part in line:
                return
        raise AssertionError(f"it never said {part!r}")

    def kill(self) -> None:
        """Send SIGKILL: it cannot print or do anything more."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()  # its workers may keep the other end open for a while

    def end(self) -> Answer:
        output = self.process.communicate(timeout=DEADLINE_S)[0]
        return Answer(self.process.returncode, output)
