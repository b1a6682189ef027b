"""A stand-in for AWS, a separate one for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sagemaker.stand_in import StandIn


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, found by boto3 in this process and in those that the test starts; its own errors fail the test."""
    with StandIn(tmp_path / "instances", grace_s=5) as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        yield aws
    assert aws.faults == [], "\n".join(aws.faults)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six pictures with captions beside them, some in subfolders."""
    folder = tmp_path / "photos"
    random = np.random.default_rng(0)
    for number in range(6):
        file = folder / ("more" if number > 3 else "") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (80, 64 + number, 3), dtype=np.uint8)).save(file)
        file.with_suffix(".txt").write_text(f"picture {number}")
    return folder
