"""What is wrong with a configuration is told at once, wherever it stands: one mistake hides no other."""

from __future__ import annotations

from typing import Any

import pytest

from runner.schema import Experiment
from runner.schema.job import JobSettings
from runner.schema.reading import read
from runner.schema.tasks import TASKS

Raw = dict[str, Any]

TOGETHER: dict[str, tuple[Raw, list[str]]] = {
    "settings of one group": (
        {"loss": {"huber_c": 0.2, "multires_discount": 0.5, "timestep_bias_multiplier": 3}},
        ["loss.huber_c", "loss.multires_discount", "loss.timestep_bias_multiplier"],
    ),
    "settings of one group that another check looks at": (
        {"dataset": {"path": "x", "variants": 3, "bucket_step": 8, "max_cache_gb": 2.0}},
        ["dataset.max_cache_gb", "dataset.variants", "dataset.bucket_step"],
    ),
    "groups that do not fit each other": (
        {
            "optimizer": {"name": "adamw", "text_encoder_lr": 1e-4},
            "dataset": {"masks": True},
            "evaluation": {"subject": "x"},
        },
        ["optimizer.text_encoder_lr", "dataset.masks", "evaluation.subject"],
    ),
    "a value, and groups that do not fit each other": (
        {"lora": {"rank": -3}, "dataset": {"masks": True}, "optimizer": {"name": "adamw", "text_encoder_lr": 1e-4}},
        ["lora.rank", "optimizer.text_encoder_lr", "dataset.masks"],
    ),
    "a kind that does not exist": (
        {"optimizer": {"name": "adam"}, "dataset": {"masks": True}},
        ["optimizer.name", "dataset.masks"],
    ),
    "a key that does not exist, and one at the top": (
        {"lora": {"rnk": 3}, "batch_size": 0, "evaluation": {"subject": "x"}},
        ["batch_size", "lora.rnk", "evaluation.subject"],
    ),
    "a value in a list": (
        {"dataset": {"path": None, "sources": [{"path": "x", "repeats": 0}], "masks": True}},
        ["dataset.sources.0.repeats", "dataset.masks"],
    ),
    "several that teach words alone": (
        {
            "method": {"name": "textual_inversion", "tokens": ["<cat>"], "initial": ["cat"]},
            "lora": {"rank": 4, "dora": True},
            "optimizer": {"name": "adamw", "lora_plus_ratio": 4},
        },
        ["lora.rank", "lora.dora", "optimizer.lora_plus_ratio"],
    ),
}

HIDDEN: dict[str, tuple[Raw, list[str]]] = {
    "what a wrong value would have had to do with": (
        {"loss": {"masked": "perhaps"}, "dataset": {"masks": True}},
        ["loss.masked"],
    ),
    "what follows from the default in its place": (
        {"steps": -1, "lr_scheduler": {"name": "cosine", "warmup_steps": 1000}},
        ["steps"],
    ),
    "what another kind of a group may allow": (
        {"optimizer": {"name": "adam", "text_encoder_lr": 1e-4}},
        ["optimizer.name"],
    ),
    "what has more letters than the key": (
        {"lora": {"rank": 0, "dora": True, "rank_dropout": 0.1}},
        ["lora.rank"],
    ),
}
"""Nobody knows what is wrong there before the first is mended."""


def keys(kind: type[JobSettings], raw: Raw) -> list[str]:
    settings, faults = read(kind, raw)
    assert settings is None
    return [line.partition(" = ")[0].partition(": ")[0] for line in faults]


@pytest.mark.parametrize(("raw", "wrong"), [*TOGETHER.values(), *HIDDEN.values()], ids=[*TOGETHER, *HIDDEN])
def test_one_mistake_hides_no_other(raw: Raw, wrong: list[str]) -> None:
    before = repr(raw)

    assert keys(Experiment, raw) == wrong
    assert repr(raw) == before


def test_mistakes_in_the_settings_of_a_task_come_together() -> None:
    raw = {"task": {"name": "export"}, "formats": [], "rank": 4, "keep_energy": 0.5, "hub": {"repo_id": "a/b"}}

    assert keys(TASKS["export"], raw) == ["hub.repo_id", "adapter", "formats", "keep_energy"]


def test_what_is_right_is_read() -> None:
    settings, faults = read(Experiment, {"lora": {"rank": 8}})

    assert settings is not None and settings.lora.rank == 8 and not faults
