"""Keys and tokens come from Secrets Manager, or the reason is reported; test_stopped.py tests where they end up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runner.container import serving
from runner.container.secret_values import fetch, lent
from runner.container.tree import ROOT
from runner.errors import RunnerError
from runner.parcel import HUB_SECRET
from tests.container.conftest import REGION, Secrets
from tests.container.opt_ml import OptMl
from tests.train.bench import Bench

PLAIN = "hf_plain_and_secret"


@pytest.fixture
def store(aws_secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> Secrets:
    for name, value in aws_secrets.environment.items():
        monkeypatch.setenv(name, value)
    return aws_secrets


def test_a_secret_that_cannot_be_had_ends_it_before_training(
    bench: Bench, sdxl_folder: Path, tmp_path: Path, store: Secrets
) -> None:
    tree = OptMl(tmp_path / "ml").send(bench.job(sdxl_folder, seed=72), secrets={"HF_TOKEN": "arn:gone"}, region=REGION)
    answer = tree.run()

    assert answer.code == 1
    assert tree.failure.read_text().startswith("HF_TOKEN: the secret arn:gone cannot be had (")
    assert "secretsmanager:GetSecretValue" in tree.failure.read_text()
    assert not tree.jobs.exists()


def test_values_are_plain_or_under_their_name(store: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = store.put(f"{PLAIN}\n"), store.put(json.dumps({"OTHER": "secret text"}))

    assert fetch({"HF_TOKEN": plain}, REGION) == {"HF_TOKEN": PLAIN}
    with pytest.raises(RunnerError, match="is JSON without the key HF_TOKEN") as error:
        fetch({"HF_TOKEN": other}, REGION)
    assert "secret text" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "the user's own")
    assert fetch({"HF_TOKEN": plain}, REGION) == {}


def test_lent_variables_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with lent({"HF_TOKEN": PLAIN}):
        assert os.environ["HF_TOKEN"] == PLAIN
    assert "HF_TOKEN" not in os.environ


def test_an_endpoint_whose_secret_cannot_be_had_says_so_and_ends(
    store: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in ((HUB_SECRET, "arn:gone"), ("AWS_REGION", REGION), (ROOT, str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(serving, "leave_root", lambda tree: None)
    assert serving.serve([]) == 1
    assert caplog.messages[-1].startswith("HF_TOKEN: the secret arn:gone cannot be had (")
