"""Configurations come from groups, recipes and the user's own files, from any folder, without heavy imports."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from runner import HOME
from runner.command.help import choices
from runner.schema import GROUPS, Experiment
from runner.schema.reference import reference
from runner.schema.tasks import TASKS
from runner.tasks.composed import settings_of
from tests.command_line import ROOT, environment, runner

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "wandb", "sagemaker", "boto3"}
NEEDS_A_VALUE = {
    ("dataset", "folder"): ["dataset.path=x"],
    ("dataset", "table"): ["dataset.path=x"],
    ("dataset", "sources"): ["dataset.sources=[x,{path: y, repeats: 2}]"],
    ("method", "textual_inversion"): ["method.initial=[cat]"],
    ("method", "pivotal"): ["method.initial=[cat]"],
    ("lr_scheduler", "piecewise_constant"): ["lr_scheduler.rules='1:10,0.1'"],
}
DATA_OF_RECIPES = {"two_subjects": NEEDS_A_VALUE["dataset", "sources"]}
RECIPES = sorted(file.stem for file in (HOME / "recipes").glob("*.yaml"))


def composed(*overrides: str) -> Experiment:
    return Experiment.model_validate(raw(*overrides))


def raw(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        config = compose("config", list(overrides))
    OmegaConf.resolve(config)
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    plain.pop("recipe", None)
    return {str(key): value for key, value in plain.items()}


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS if group != "task" for choice in choices(group)]
)
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    experiment = composed(f"{group}={choice}", *NEEDS_A_VALUE.get((group, choice), []))

    section = getattr(experiment, group)
    assert getattr(section, "name", choice) in (choice, getattr(section, "name", None))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_to_what_its_settings_know(task: str) -> None:
    needed = {
        "generate": ["prompts=a house"],
        "evaluate": ["adapter=x"],
        "merge": ["adapter=x"],
        "export": ["adapter=x"],
    }
    composed_task = raw(f"task={task}", *needed.get(task, []))

    settings = TASKS[task].model_validate(settings_of(composed_task, [], TASKS[task]))

    assert settings.task.name == task
    assert choices("task") == sorted(TASKS)


def test_every_group_has_choices() -> None:
    assert [group for group in GROUPS if not choices(group)] == []


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_composes(name: str) -> None:
    assert composed(f"recipe={name}", *DATA_OF_RECIPES.get(name, ["dataset.path=x"])).name == name


def swept(name: str) -> dict[str, list[str]]:
    """What `-m recipe=...` alone tries: dotted key -> values."""
    recipe = yaml.safe_load((HOME / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    params = recipe.get("hydra", {}).get("sweeper", {}).get("params", {})
    return {key: text.split(",") for key, text in params.items()}


@pytest.mark.parametrize("name", [name for name in RECIPES if swept(name)])
def test_every_job_of_a_recipe_that_is_a_sweep_composes(name: str) -> None:
    for values in itertools.product(*swept(name).values()):
        chosen = [f"{key}={value}" for key, value in zip(swept(name), values, strict=True)]
        assert composed(f"recipe={name}", "dataset.path=x", *chosen).name == name


def test_the_command_line_beats_a_recipe_and_a_recipe_beats_the_groups() -> None:
    experiment = composed("recipe=demo", "lora.rank=3")

    assert experiment.lora.rank == 3
    assert experiment.lora.targets == "linear_conv"


def test_a_family_brings_its_resolution_and_precision() -> None:
    sdxl = composed("model=sdxl")

    assert (sdxl.resolution, sdxl.precision) == (1024, "bf16")
    assert composed("model=sdxl", "resolution=512").resolution == 512


def test_the_configuration_reference_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference(), "run: make docs"


def test_what_hydra_knows_of_itself_is_shown_once() -> None:
    answer = runner("--info", "searchpath")

    assert answer.output.count("Config search path") == 1, answer.output


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--help"], ["launcher.dry_run=true"]])
def test_nothing_heavy_is_imported_to_plan(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys, json, runpy\n"
        f"sys.argv = ['runner', *{arguments!r}]\n"
        "try: runpy.run_module('runner', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('MODULES', json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )

    modules = json.loads(done.stdout.rpartition("MODULES ")[2])
    assert HEAVY & set(modules) == set()
    assert "runner" in modules


def test_beside_a_recipe_a_choice_of_ones_own_counts_where_the_recipe_does_not_set_the_same(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "mine.yaml").write_text("rank: 3\nalpha: 5\n")
    mine = ["recipe=demo", "--config-dir", str(tmp_path), "lora=mine", "launcher.dry_run=true", "logger=none"]

    refused, told = runner(*mine, cwd=tmp_path), runner(*mine, "lora.rank=3", cwd=tmp_path)

    assert refused.code == 2
    assert "lora = mine: the recipe demo sets lora.rank too, and comes after it; type lora.rank=3" in refused.output
    assert "lora.alpha" not in refused.output
    assert told.code == 0, told.output
    assert "rank 3" in told.output


def test_users_add_choices_of_their_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "lora").mkdir(parents=True)
    (mine / "lora" / "wide.yaml").write_text("rank: 77\n")

    answer = runner("--config-dir", str(mine), "lora=wide", "--cfg", "job", cwd=tmp_path)

    assert answer.code == 0, answer.output
    assert yaml.safe_load(answer.output)["lora"]["rank"] == 77
    wrong = runner("--config-dir", str(mine), "lora=wid", cwd=tmp_path)
    assert "did you mean wide?" in wrong.output


def test_help_lists_every_group_recipe_and_command() -> None:
    text = runner("--help").output
    started_by_others = {"runner", "container"}
    commands = {file.parent.name for file in (ROOT / "runner").rglob("__main__.py")} - started_by_others
    for name in {*commands, "doctor", "stop"}:
        assert re.search(rf"(^|  ){name} {{2,}}\w", text, re.MULTILINE), name

    assert [name for name in (*GROUPS, *RECIPES) if name not in text] == []
    assert max(map(len, text.splitlines())) < 110, "a terminal would begin the rest of a list at its edge"


def test_nobody_who_reads_on_is_no_error(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "runner", "launcher.dry_run=true"],
            env=environment({"RUNNER_OUTPUTS": str(tmp_path)}),
            cwd=ROOT,
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
