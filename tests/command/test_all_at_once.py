"""All faults of a configuration are reported at once, wherever they are: one mistake hides no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from runner.check import Checker, launcher_of
from runner.errors import SettingsError
from runner.launch.door import check_all
from runner.schema import Experiment
from runner.schema.job import JobSettings
from runner.schema.reading import read
from runner.schema.serving import Invocation, Serving, told
from runner.schema.tasks import TASKS
from tests.command_line import runner

Raw = dict[str, Any]
WEIGHT = "adapter_weight"

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
    "a name that does not exist, of a group that has no kinds": (
        {"loss": {"name": "hubber", "huber_c": 0.2, "masked": True}},
        ["loss.name", "loss.masked"],
    ),
    "a key that does not exist, and one at the top": (
        {"lora": {"rnk": 3}, "batch_size": 0, "evaluation": {"subject": "x"}},
        ["batch_size", "lora.rnk", "evaluation.subject"],
    ),
    "a value, and a key much like its own": (
        {"lora": {"rank": 0, "rnk": 3}},
        ["lora.rank", "lora.rnk"],
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
"""In these cases, other faults can only be found once the first one is fixed."""


def keys(kind: type[JobSettings], raw: Raw) -> list[str]:
    settings, faults = read(kind, raw)
    assert settings is None
    return _subjects(faults)


def _subjects(faults: Sequence[str]) -> list[str]:
    return [line.partition(" = ")[0].partition(": ")[0] for line in faults]


@pytest.mark.parametrize(("raw", "wrong"), [*TOGETHER.values(), *HIDDEN.values()], ids=[*TOGETHER, *HIDDEN])
def test_one_mistake_hides_no_other(raw: Raw, wrong: list[str]) -> None:
    before = repr(raw)

    assert keys(Experiment, raw) == wrong
    assert repr(raw) == before


def test_mistakes_in_the_settings_of_a_task_come_together() -> None:
    raw = {"task": {"name": "export"}, "formats": [], "rank": 4, "keep_energy": 0.5, "hub": {"repo_id": "a/b"}}

    assert keys(TASKS["export"], raw) == ["hub.repo_id", "adapter", "formats", "keep_energy"]


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"adapter": 3, "drift_in": "dino"}, ["adapter.0"]),
        ({"adapter": ["x"], "metrics": ["base_drfit"], "drift_in": "clip"}, ["metrics.0"]),
    ],
)
def test_what_a_wrong_value_was_to_be_measured_with_is_not_missing(given: Raw, wrong: list[str]) -> None:
    assert keys(TASKS["evaluate"], {"task": {"name": "evaluate"}, **given}) == wrong


def test_what_is_right_is_read() -> None:
    settings, faults = read(Experiment, {"lora": {"rank": 8}})

    assert settings is not None and settings.lora.rank == 8 and not faults


FILES: dict[str, tuple[Raw, list[str]]] = {
    "a value, and what it has nothing to do with in files": (
        {"steps": 0, "lora": {"targets": "nothing", "init_from": "/nowhere"}},
        ["steps", "lora.targets", "lora.init_from"],
    ),
    "two settings of one group, one of which a look into the model shows": (
        {"lora": {"rank": 0, "targets": "nothing"}},
        ["lora.rank", "lora.targets"],
    ),
    "groups that do not fit each other, and a folder": (
        {
            "optimizer": {"name": "adamw", "text_encoder_lr": 1e-4},
            "method": {"name": "dreambooth", "class_prompt": "a dog", "class_data_dir": "/nowhere"},
            "dataset": {"instance_prompt": "sks"},
        },
        ["optimizer.text_encoder_lr", "method.class_data_dir"],
    ),
    "networks of an evaluation": (
        {
            "seed": -1,
            "evaluation": {
                "metrics": ["clip_image"],
                "features": {"clip": "/nowhere"},
                "subject": "a dog",
                "real": "/nowhere",
            },
        },
        ["seed", "evaluation.features.clip", "evaluation.real='/nowhere'", "  - not found"],
    ),
    "what nobody has said yet": (
        {"model": {"path": "???"}, "dataset": {"masks": True}, "lora": {"rank": 0}},
        ["model.path", "lora.rank", "dataset.masks", "dataset.masks=true"],
    ),
    "images, and a folder of the class": (
        {
            "dataset": {"path": "/nowhere"},
            "method": {"name": "dreambooth", "class_data_dir": "/nor/here"},
        },
        ["dataset.path='/nowhere'", "  - not found", "method.class_data_dir"],
    ),
    "a value that has to do with an adapter that is not there": (
        {"lora": {"rank": 0, "init_from": "/nowhere"}},
        ["lora.rank", "lora.init_from"],
    ),
    "what is merged, and how": (
        {"task": {"name": "merge"}, "model": {"family": "sd3"}, "adapter": ["/nowhere"], "output": "single_file"},
        ["model.family", "output", "adapter"],
    ),
    "what is exported, and how": (
        {"task": {"name": "export"}, "model": {"family": "sd3"}, "adapter": ["/nowhere"], "formats": ["kohya_alpha"]},
        ["model.family", "formats", "adapter"],
    ),
    "what is deployed, and from where": (
        {"task": {"name": "deploy"}, "adapter": ["/nowhere"], "launcher": {"name": "slurm"}},
        ["launcher", "adapter"],
    ),
    "an adapter of a task": (
        {"task": {"name": "generate"}, "adapter": ["/nowhere"], "inference_steps": 0},
        ["inference_steps", "prompts", "adapter"],
    ),
    "a network that steers what is drawn, and its image": (
        {
            "task": {"name": "generate"},
            "prompts": ["a"],
            "guidance_scale": -1,
            "control": {"path": "/nowhere", "image": "/nowhere/a.png"},
        },
        ["guidance_scale", "control.image", "control.path"],
    ),
    "networks and images of an evaluation, and its prompts": (
        {
            "task": {"name": "evaluate"},
            "features": {"clip": "/nowhere"},
            "real": "/nowhere",
            "seeds": [1, 1],
        },
        ["seeds", "subject", "features.clip", "real='/nowhere'", "  - not found"],
    ),
}


@pytest.mark.parametrize(("raw", "wrong"), FILES.values(), ids=FILES)
def test_a_wrong_value_hides_no_file_that_is_wrong(raw: Raw, wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        Checker(tmp_path).job({"model": {}, **raw})

    assert _subjects(str(raised.value).splitlines()) == wrong


@pytest.mark.parametrize(
    ("raw", "wrong"),
    [
        ({"task": {"name": "generate"}, "prompts": [""]}, ["prompts", WEIGHT]),
        ({"task": {"name": "evaluate"}, "seeds": []}, ["seeds", WEIGHT]),
        ({"task": {"name": "merge"}, "archive": 3, "rank": 1, "output": "adapter"}, ["archive", WEIGHT, "output"]),
        ({"task": {"name": "export"}, "rank": 0}, ["rank", "formats", WEIGHT]),
        ({"task": {"name": "export"}, "formats": ["x"], "rank": 1}, ["formats.0", WEIGHT, "rank"]),
    ],
)
def test_a_wrong_value_hides_nothing_that_a_file_cannot_do(raw: Raw, wrong: list[str], tmp_path: Path) -> None:
    dora = tmp_path / "dora.safetensors"
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_magnitude_vector": torch.zeros(1)}, dora)

    with pytest.raises(SettingsError) as raised:
        Checker(tmp_path).job({"model": {}, "adapter": [str(dora)], "adapter_weight": [2.0], **raw})
    assert _subjects(str(raised.value).splitlines()) == wrong

    weight = {"adapter_weight": ["much"]}
    with pytest.raises(SettingsError) as raised:
        Checker(tmp_path).job({"model": {}, "adapter": [str(dora)], **raw, **weight})
    assert "only have the weight 1" not in str(raised.value)


def test_nothing_is_said_of_what_stands_in_place_of_a_wrong_value(tmp_path: Path) -> None:
    raw = {"model": {"family": "sdx"}, "lora": {"targets": 3, "blocks": ["nowhere"]}, "method": {"name": "dreamboth"}}

    with pytest.raises(SettingsError) as raised:
        Checker(tmp_path).job(raw)

    assert _subjects(str(raised.value).splitlines()) == ["model.family", "method.name", "lora.targets"]


def test_the_place_is_looked_at_though_the_job_is_wrong(tmp_path: Path) -> None:
    config = {"steps": 0, "launcher": {"name": "local", "device": "cuda"}}

    with pytest.raises(SettingsError) as raised:
        check_all(Checker(tmp_path), [(config, ())])

    assert "steps = 0" in str(raised.value) and "launcher.device = 'cuda'" in str(raised.value)


def test_a_place_that_a_secret_would_be_sent_to_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = {"name": "slurm", "account": "hush-hush-hush"}

    assert launcher_of({"launcher": launcher}) is not None
    monkeypatch.setenv("MY_TOKEN", "hush-hush-hush")
    assert launcher_of({"launcher": launcher}) is None
    assert launcher_of({"launcher": {"name": "slurm", "account": "???"}}) is None


def test_a_wrong_command_line_is_looked_at_as_that_of_its_task(tmp_path: Path) -> None:
    answer = runner("task=generate", "steps=5", "prompt=x", cwd=tmp_path)

    assert answer.code == 2
    assert "steps = 5: has no effect with task=generate" in answer.output and "did you mean prompts?" in answer.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "hydra/sweeper=optnua", "steps=0"], ["did you mean optuna?", "steps = 0"]),
        (["hydra/sweeper=optuna", "steps=0"], ["has no effect without -m", "steps = 0"]),
        (["-m", "launcher=local,slurm", "steps=0"], ["the launcher cannot be swept", "steps = 0"]),
        (["-m", "launcher.device=cpu,auto", "lora.rnk=0,1"], ["the launcher cannot be swept", "lora.rnk = 0"]),
    ],
)
def test_a_sweep_that_cannot_be_made_hides_no_job_that_is_wrong(
    arguments: list[str], said: list[str], tmp_path: Path
) -> None:
    answer = runner(*arguments, cwd=tmp_path)

    assert answer.code == 2
    assert [each for each in said if each not in answer.output] == [], answer.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lora.alpha=${lora.rnk}", "steps=0"], ["key 'lora.rnk' not found, did you mean lora.rank?", "steps = 0"]),
        (["lora.rank=${nope}", "steps=0"], ["lora.rank = '${nope}': cannot be resolved", "steps = 0"]),
        (["lora.rank=${nope}", "lora.rnk=3"], ["lora.rank = '${nope}': cannot be resolved", "lora.rnk = 3"]),
        (
            ["lora.rank=${nope}", "recipe=demo", "validation=loss_only"],
            ["lora.rank = '${nope}': cannot be resolved", "validation = loss_only: the recipe"],
        ),
        (["-m", "seed=0,${name}", "steps=0"], ["seed = 'dev': should be a whole number", "steps = 0"]),
        (["validation.prompts=[a,'${nope}']", "seed=x"], ["validation.prompts[1] = '${nope}'", "seed = 'x'"]),
        (["name=${name}", "steps=0"], ["name = '${name}': cannot be resolved (Recursive", "steps = 0"]),
        (["model.path=${oc.env:NOPE}", "steps=0"], ["model.path = '${oc.env:NOPE}': cannot be", "steps = 0"]),
        (["~lora.rank", "lora.rnk=3", "steps=0"], ["lora.rnk = 3: unknown key", "steps = 0"]),
        (
            ["~nothing", "lora.rnk=3", "steps=0"],
            ["~nothing: 'nothing' does not exist; leave it out", "lora.rnk = 3", "steps = 0"],
        ),
    ],
)
def test_what_cannot_be_composed_hides_no_other_mistake(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    answer = runner(*arguments, cwd=tmp_path)

    assert answer.code == 2
    assert [each for each in said if each not in answer.output] == [], answer.output
    assert answer.output.count("invalid, nothing was started") == 1 and "Error executing" not in answer.output


def test_settings_that_only_the_swept_choices_have_are_named_together(tmp_path: Path) -> None:
    swept = ["-m", "method=pivotal,textual_inversion", "launcher.dry_run=true", "dataset.caption_prefix='<w>'"]
    words = {"method.initial": "[house]", "method.tokens": "['<w>']"}

    answer = runner(*swept, *(f"{key}={value}" for key, value in words.items()), "steps=0", cwd=tmp_path)
    assert answer.code == 2 and "steps = 0: should be" in answer.output
    for key, value in words.items():
        assert f"{key} = {value}: whether there is such a setting depends on method" in answer.output
        assert f"++{key}=" in answer.output

    answer = runner(*swept, *(f"++{key}={value}" for key, value in words.items()), cwd=tmp_path)
    assert answer.code == 0 and "2 jobs to run" in answer.output


@pytest.mark.parametrize(
    ("request_", "wrong"),
    [
        ({"prompt": "a", "prompts": ["b"], "seed": "x"}, ["seed", "prompt"]),
        ({"prompt": "a", "fo": 1, "seed": 1, "seeds": [2]}, ["fo", "seed"]),
        ({"prmpt": "a", "seed": 1, "seeds": [2]}, ["prmpt", "seed"]),
        ({"prompt": "a", "seed": "x", "seeds": [2]}, ["seed"]),
    ],
)
def test_mistakes_in_a_request_come_together(request_: Raw, wrong: list[str]) -> None:
    assert _subjects(told(Invocation, request_)[1]) == wrong


def test_mistakes_in_what_an_endpoint_serves_come_together() -> None:
    raw = {"model": {"family": "flux"}, "sampler": "ddim", "guidance_rescale": 0.5, "most_images": 0}

    assert _subjects(told(Serving, raw)[1]) == ["most_images", "sampler", "guidance_rescale"]
    assert _subjects(told(Serving, {**raw, "model": {"family": "flx"}})[1]) == ["model.family", "most_images"]
