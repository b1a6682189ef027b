"""A clean wandb for each test: no environment, home directory or settings left from the previous one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .wandb_server import WandbServer


@pytest.fixture(autouse=True)
def clean_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("WANDB_") or name in ("NETRC", "XDG_CONFIG_HOME") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    # Ports are used again: a server may get that of one that was silent in an earlier test.
    monkeypatch.setattr("runner.track.reach._silent", {})
    yield
    import wandb

    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    running = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", running.url)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    yield running
    running.stop()
