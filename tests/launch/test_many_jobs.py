"""What a plan looks at only once, however many jobs it has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.cache import encodings
from runner.launch import announce, door
from runner.schema import Experiment


def configs(**sections: list[Any]) -> list[door.Config]:
    ((key, values),) = sections.items()
    base = {
        "launcher": {"name": "local", "dry_run": True},
        "dataset": {"path": "embedded", "buckets": True, "bucket_step": 16},
    }
    return [
        (Experiment.model_validate(base | {key: value}).model_dump(mode="json"), (f"{key}={value}",))
        for value in values
    ]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each data set was read through, by the function that did it."""
    counted: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            counted[name] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, counting)

    count(encodings, "views_of")
    count(announce, "held_out_lines")
    count(announce, "buckets_of")
    return counted


def test_the_images_are_gone_through_once_for_all_jobs_of_a_sweep(calls: Counter[str]) -> None:
    door.launch(configs(seed=[1, 2, 3, 4, 5]))
    assert calls == {"views_of": 1, "held_out_lines": 1, "buckets_of": 1}


def test_and_again_for_jobs_that_use_them_in_another_way(calls: Counter[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        door.launch(configs(validation=[{"held_out": share} for share in (0.1, 0.5, 0.1)]))
    assert calls == {"views_of": 2, "held_out_lines": 2, "buckets_of": 2}
    assert caplog.text.count("images: ") == 1, "of the files there is no more to say"


def test_what_jobs_encode_otherwise_is_counted_for_each(calls: Counter[str]) -> None:
    """Otherwise encodings that one of them uses would be neither planned for nor kept."""
    door.launch(configs(resolution=[64, 128, 64]))
    assert calls["views_of"] == 2
    door.launch(configs(lora=[{"text_encoder": encoder} for encoder in (False, True, False)]))
    assert calls["views_of"] == 4
    door.launch(configs(dataset=[{"path": "embedded", "flip": flip} for flip in (False, True, False)]))
    assert calls["views_of"] == 6
    dreambooth = {"name": "dreambooth", "class_prompt": "a star", "num_class_images": 2}
    door.launch(configs(method=[dreambooth | {"class_inference_steps": steps} for steps in (9, 5, 9)]))
    assert calls["views_of"] == 8


def test_the_gpus_of_the_machine_are_asked_for_no_more_often_for_many_jobs_than_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, asked = tmp_path / "bin" / "nvidia-smi", tmp_path / "asked"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho . >> {asked}\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")

    def times(seeds: list[int]) -> int:
        asked.write_text("")
        door.launch(configs(seed=seeds))
        return len(asked.read_text().splitlines())

    assert times([1, 2, 3, 4, 5]) == times([1]) > 0
