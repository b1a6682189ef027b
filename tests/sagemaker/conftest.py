"""An AWS that is not there, for each test its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sagemaker.stand_in import StandIn


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, found by boto3 in this process and in those that the test starts; its own errors fail the test."""
    with StandIn(tmp_path / "instances", grace_s=5) as aws:
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        yield aws
    assert aws.faults == [], "\n".join(aws.faults)
