"""pydantic's findings are told in the user's terms: each fault once, under a key that can be set, with the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from runner.schema import Experiment
from runner.schema.knob import Settings
from runner.schema.messages import dotted_keys, explain, unknown_key
from runner.schema.other_scripts import HERE
from runner.schema.tasks import TASKS
from runner.schema.texts import readable
from runner.schema.tuning import TuningSettings
from runner.system.values import as_typed

TRAINING = {"model": {"path": "embedded", "family": "sdxl"}, "dataset": {"path": "embedded"}}
DRAWING = {"model": TRAINING["model"], "task": {"name": "generate"}}


def said_of(kind: type[Settings], raw: Mapping[str, Any]) -> list[str]:
    """The message about invalid settings; empty for valid ones."""
    try:
        kind.model_validate(raw)
    except ValidationError as error:
        return explain(error, raw)
    return []


def of_training(**changes: Any) -> list[str]:
    return said_of(Experiment, TRAINING | changes)


def of_drawing(**changes: Any) -> list[str]:
    return said_of(TASKS["generate"], DRAWING | changes)


def test_a_wrong_item_does_not_make_a_list_too_short_as_well() -> None:
    nan = float("nan")
    assert of_drawing(adapter=["a"], adapter_weight=nan) == ["adapter_weight.0 = nan: should be a finite number"]
    (line,) = of_drawing(adapter=["a"], adapter_weight=[])
    assert line.startswith("adapter_weight = []: should have at least 1 item")


def test_of_several_names_the_nearest_is_meant() -> None:
    (line,) = of_training(lr_scheduler={"name": "polynomal"})
    assert line.endswith("'polynomial' or 'piecewise_constant', did you mean polynomial?")
    assert of_training(precision="int8") == ["precision = 'int8': should be 'fp32', 'bf16' or 'fp16'"]
    assert of_training(loss={"name": "hubber"}) == ["loss.name = 'hubber': should be 'mse' or 'huber'"]


def test_a_value_of_several_kinds_is_one_fault_of_a_key_that_there_is() -> None:
    local = {"name": "local"}
    assert of_training(launcher=local | {"dry_run": "yess"}) == [
        "launcher.dry_run = 'yess': should be true, false or json"
    ]
    assert of_training(launcher=local | {"pack": "all"}) == ["launcher.pack = 'all': should be a whole number or auto"]
    assert of_training(loss={"masked": "yess"}) == ["loss.masked = 'yess': should be true or false"]
    assert of_training(lora={"rank_pattern": {"int": "x"}}) == ["lora.rank_pattern.int = 'x': should be a whole number"]


def test_a_value_in_place_of_a_list_and_a_number_in_place_of_a_text_are_told_with_what_to_type() -> None:
    assert of_training(validation={"prompts": "a house, red"}) == [
        "validation.prompts = 'a house, red': should be a list, such as 'validation.prompts=[\"a house, red\"]'"
    ]
    assert of_training(validation={"seeds": 3}) == [
        "validation.seeds = 3: should be a list, such as 'validation.seeds=[3]'"
    ]
    assert of_training(name=2024) == ["name = 2024: should be a text; put it in quotes: 'name=\"2024\"'"]
    assert of_training(validation={"prompts": [1]}) == [
        'validation.prompts.0 = 1: should be a text; put it in quotes: "1"'
    ]
    assert of_training(lora={"rank_pattern": 4}) == [
        "lora.rank_pattern = 4: should be a mapping, such as 'lora.rank_pattern={name: value}'"
    ]
    assert of_training(lora={"targets": ["to_q", "to_k"]}) == [
        "lora.targets = [to_q, to_k]: should be one text, not a list"
    ]
    (path,) = of_training(dataset={"path": ["a", "b"]})
    assert path.endswith("one text, not a list; several are typed as dataset=sources 'dataset.sources=[a, b]'")
    assert of_training(lora={"init_from": True}) == [
        "lora.init_from = true: should be a text; put it in quotes: 'lora.init_from=\"true\"'"
    ]


def test_several_values_in_a_file_are_told_where_to_write_them() -> None:
    for key, value, said in (
        ("rank", "2,4", "lora.rank = '2,4': should be a whole number"),
        ("rank", [2, 4], "lora.rank = [2, 4]: should be a whole number"),
        ("init", "gaussian, kaiming", "lora.init = 'gaussian, kaiming': should be 'gaussian' or 'kaiming'"),
    ):
        values = ",".join(map(str, value)) if isinstance(value, list) else value.replace(" ", "")
        (line,) = of_training(lora={key: value})
        assert line.startswith(f"{said}; several values are swept: -m lora.{key}={values}, or 'lora.{key}: {values}' ")
        assert line.endswith(" under hydra.sweeper.params in a recipe (docs/sweeps.md)")
    assert of_training(validation={"seeds": ["1,2"]}) == ["validation.seeds.0 = '1,2': should be a whole number"]
    (line,) = of_training(lora={"rank": 2, 4: None})
    assert line.startswith("lora.4: is not the name of a setting; several values are swept: -m lora.rank=2,4, or ")


def test_what_is_set_below_a_value_is_told_with_what_the_value_should_be() -> None:
    assert of_training(lora={"rank": {"x": {"y": 3}}}) == [
        "lora.rank.x.y = 3: lora.rank has nothing below it; it should be a whole number"
    ]
    (prompts,) = of_training(validation={"prompts": {"0": "a house"}})
    assert prompts.startswith("validation.prompts.0 = 'a house': validation.prompts has nothing below it; it should")
    assert prompts.endswith(" be a list, such as 'validation.prompts=[a, b]'")
    assert of_training(lora={"rank_pattern": {"attn2": {"to_k": 4}}}) == [
        "lora.rank_pattern.attn2.to_k = 4: a name with dots belongs in braces: 'lora.rank_pattern={attn2.to_k: 4}'"
    ]


def test_what_only_a_file_can_have_is_told_with_what_to_write_in_it() -> None:
    assert of_training(**{"lora.rank": 4}) == [
        "lora.rank = 4: a file has no names with dots; write 'lora:' and 'rank: ...' indented below it"
    ]
    (again,) = of_training(lora={"lora": {"rank": 4}})
    assert again.endswith("holds its settings without its name; remove 'lora:' and its indentation")
    assert of_training(optimizer={"lr": 3}) == [
        "optimizer.name: has no value; a file of your own begins with its kind: defaults: [adamw]"
    ]


def test_an_address_in_place_of_a_bucket_is_told_with_its_name() -> None:
    for bucket, name in (("s3://photos/lora", "photos"), ("photos/lora", "photos"), ("My_Bucket", "our-models")):
        assert of_training(launcher={"name": "sagemaker", "bucket": bucket}) == [
            f"launcher.bucket = {bucket!r}: should be the name of a bucket alone, such as {name}"
        ]
    assert not of_training(launcher={"name": "sagemaker", "bucket": "photos.of-us"})


def test_a_list_with_too_few_values_is_shown_and_it_is_said_how_many() -> None:
    for betas, found in (([], "0 values"), ([0.9], "1 value")):
        (line,) = of_training(optimizer={"name": "adamw", "betas": betas})
        assert line == f"optimizer.betas = {betas}: has {found}, and should have 2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": True}, "steps = true: should be a whole number"),
        ({"lora": {"rank": True}}, "lora.rank = true: should be a whole number"),
        ({"lora": {"alpha": False}}, "lora.alpha = false: should be a number"),
        ({"lora": {"rank_pattern": {"to_k": True}}}, "lora.rank_pattern.to_k = true: should be a whole number"),
        ({"optimizer": {"name": "adamw", "lr": True}}, "optimizer.lr = true: should be a number"),
        (
            {"optimizer": {"name": "adamw", "betas": [0.9, False]}},
            "optimizer.betas = [0.9, false]: should hold numbers",
        ),
        ({"validation": {"seeds": [True]}}, "validation.seeds = [true]: should hold whole numbers"),
        ({"launcher": {"name": "local", "pack": True}}, "launcher.pack = true: should be a whole number"),
    ],
)
def test_true_and_false_are_no_numbers(changes: dict[str, Any], said: str) -> None:
    assert of_training(**changes) == [f"{said}, not true or false"]


def test_no_knob_counts_with_true_and_false() -> None:
    kinds, seen = [Settings], 0
    for kind in kinds:
        kinds += kind.__subclasses__()
        for key, field in kind.model_fields.items():
            written = str(field.annotation)
            if re.search(r"\b(int|float)\b", written) and not re.search(r"\bbool\b", written):
                seen += 1
                with pytest.raises(ValidationError) as caught:
                    kind.model_validate({key: True})
                assert any(fault["loc"] == (key,) for fault in caught.value.errors()), (kind, key)
    assert seen > 100


@pytest.mark.parametrize("value", [None, "x", 1.5, 10**30, ["x"], {"x": 1}, [{"x": 1}]])
def test_no_word_of_python_reaches_a_user(value: Any) -> None:
    typed = as_typed(value)
    told = []
    for key in dotted_keys("train"):
        group, _, name = key.partition(".")
        told += of_training(**{group: {**TRAINING.get(group, {}), name: value} if name else value})
    words = [line.replace(f" = {typed}: ", ": ") for line in told]
    assert len(told) > 20
    assert [
        line for line in words if re.search(r"\b(None|True|False|valid|integer|string|tuple|dict|input)\b", line)
    ] == []


def test_numbers_written_in_other_ways_are_still_numbers() -> None:
    raw = TRAINING | {"optimizer": {"name": "adamw", "lr": 1, "weight_decay": "0.5"}, "lora": {"rank": "16"}}
    experiment = Experiment.model_validate(raw)
    assert (experiment.optimizer.lr, experiment.lora.rank) == (1.0, 16)
    assert Experiment.model_validate(TRAINING | {"launcher": {"name": "local", "dry_run": True}}).launcher.dry_run


def test_spellings_are_asked_for_in_words() -> None:
    name = "should be letters, digits, '.', '_' and '-', beginning with a letter or digit, such as name="
    for wrong, right in (("a b", "a-b"), ("_x", "x"), ("", "dev"), ("dev\n", "dev"), ("ä", "dev")):
        assert of_training(name=wrong) == [f"name = {wrong!r}: {name}{right}"]
    metric = "should be train/..., validation/... or evaluation/..., such as objective.name="
    for wrong, right in (("nope", "validation/loss"), ("grad_norm", "train/grad_norm"), ("train/", "validation/loss")):
        assert of_training(objective={"name": wrong}) == [f"objective.name = {wrong!r}: {metric}{right}"]
    project = "should be up to 128 characters without / \\ # ? % and :, such as logger.project="
    for wrong, right in (("me/photos", "photos with logger.entity=me"), ("a:b?", "a-b"), ("%", "lora")):
        assert of_training(logger={"project": wrong}) == [f"logger.project = {wrong!r}: {project}{right}"]
    assert of_training(logger={"project": "my photos", "tags": ["a b", "x" * 64]}) == []
    assert of_training(logger={"tags": ["x" * 65]}) == [
        f"logger.tags.0 = '{'x' * 65}': should have at most 64 characters"
    ]
    endpoint = {"task": {"name": "undeploy"}, "endpoint": {"name": "my shop!"}}
    (line,) = said_of(TASKS["undeploy"], DRAWING | endpoint)
    assert line.startswith("endpoint.name = 'my shop!': should be up to 50 letters and digits, and dashes between them")
    assert line.endswith(", such as endpoint.name=my-shop")
    (line,) = said_of(TuningSettings, {"warm_start": ["no name"]})
    assert line.startswith("warm_start.0 = 'no name': should be the name of a tuning job: up to 32 letters and digits")
    assert line.endswith(", such as no-name")
    for right in ("dev", "2024_a.b-c"):
        assert of_training(name=right) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", 1e-4, "unknown key, did you mean optimizer.lr?"),
        ("max_train_steps", 500, "unknown key, did you mean steps?"),
        ("train_data_dir", "photos", "unknown key, did you mean dataset.path?"),
        ("checkpointing_steps", 100, "unknown key, did you mean checkpoint.every?"),
        ("use_8bit_adam", True, "unknown key, did you mean optimizer=adamw8bit?"),
        ("epochs", 10, "unknown key, did you mean steps?"),
        ("lora_rank", 16, "unknown key, did you mean lora.rank?"),
        ("rank", 16, "has no effect with task=train, only with merge or export; did you mean lora.rank?"),
    ],
)
def test_who_comes_from_another_script_is_told_what_its_settings_are_here(name: str, value: Any, said: str) -> None:
    assert of_training(**{name: value}) == [f"{name} = {as_typed(value)}: {said}"]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lora.dim", ", did you mean lora.rank?"),
        ("optimizer.learning_rate", ", did you mean optimizer.lr?"),
        ("dataset.batch_size", ", did you mean batch_size?"),
        ("dataset.resolution", ", did you mean resolution?"),
        ("optimizer.warmup_steps", ", did you mean lr_scheduler.warmup_steps?"),
        ("lora.alhpa", ", did you mean lora.alpha?"),
        ("pruning.foo", "; pruning has name, first, reduction"),
        ("checkpoint.name", "; checkpoint has every, keep"),
        ("launcher.foo", "; remove it"),
        ("foo", "; remove it"),
    ],
)
def test_the_name_of_a_group_is_no_likeness(key: str, said: str) -> None:
    assert unknown_key(key) == f"unknown key{said}"


def test_settings_of_other_scripts_are_settings_that_there_are() -> None:
    conf = Path(__file__).parents[2] / "conf"
    known = dotted_keys("train")
    for name, here in HERE.items():
        group, is_choice, choice = here.partition("=")
        assert here in known or (conf / group / f"{choice}.yaml").is_file() or (conf / group).is_dir(), name
        assert name not in known and bool(is_choice) == bool(choice), name


def test_a_task_is_offered_only_what_it_knows() -> None:
    assert of_drawing(learning_rate=1e-4) == ["learning_rate = 0.0001: unknown key; remove it"]


def test_one_checkpoint_alone_is_refused_where_an_instance_can_be_taken_away_while_it_is_sent() -> None:
    spot = {"name": "sagemaker"}
    (said,) = of_training(launcher=spot, checkpoint={"keep": 1})
    assert said.startswith("checkpoint.keep = 1: ") and said.endswith("set it to 2, or launcher.spot=false")
    for launcher in (spot | {"spot": False}, spot | {"local": True}, {"name": "local"}):
        assert of_training(launcher=launcher, checkpoint={"keep": 1}) == []
    assert of_training(launcher=spot) == []


@pytest.mark.parametrize(
    ("raw", "said", "rest"),
    [
        ({"model": {"path": "/tmp/" + "x" * 300}}, "': has a name of 300 bytes, and 255 is the most; correct it", {}),
        ({"lora": {"init_from": "ä" * 128}}, "ä': has a name of 256 bytes, and 255 is the most; correct it", {}),
        ({"adapter": ["a", "d/" * 2100]}, "/': is a path of 4200 bytes, and 4000 is the most; correct it", {}),
        ({"control": {"image": "a\0b"}}, "control.image = 'a\\x00b': holds a NUL character; remove it", {}),
        ({"prompts": ["x" * 5000]}, "", {"prompts": ["x" * 5000]}),
        ({"dataset": {"path": "s3://bucket/" + "x" * 300}}, "", {"dataset": {"path": "s3://bucket/" + "x" * 300}}),
    ],
)
def test_a_text_that_can_be_no_path_is_told_with_its_key(raw: dict[str, Any], said: str, rest: dict[str, Any]) -> None:
    faults, left, keys = readable(raw)
    assert [fault.endswith(said) for fault in faults] == [True] * bool(said)
    assert len(keys) == len(faults)
    assert {key: value for key, value in left.items() if value} == rest
