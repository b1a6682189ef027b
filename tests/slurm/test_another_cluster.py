"""The example in docs/clusters.md is a working launcher: it trains jobs through a queue that is not Slurm's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import runner.schema
from runner import HOME
from runner.check import Checker
from runner.command.compose import plain
from runner.errors import Detached
from runner.jobs.job import Job, read_manifest, register, state_of
from runner.launchers import Launcher
from runner.paths import outputs_dir
from runner.plan import Plan, Predictor, make_plan
from runner.schema import launching
from tests.command_line import ROOT

QSUB = """\
#!/bin/sh
echo "$@" >> "$FAKE_PBS/options"
number=$(($(ls "$FAKE_PBS" | grep -c sh$) + 1)).server
cat > "$FAKE_PBS/$number.sh"
output=$(sed -n 's/^#PBS -o //p' "$FAKE_PBS/$number.sh")
PBS_JOBID=$number setsid bash "$FAKE_PBS/$number.sh" > "$output/$number.OU" 2>&1 < /dev/null &
echo $! > "$FAKE_PBS/$number.pid"
echo $number
"""
QSELECT = """\
#!/bin/sh
for file in "$FAKE_PBS"/*.pid; do
  ps -o stat= -p "$(cat "$file")" | grep -qv Z && basename "$file" .pid
done
exit 0
"""


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a PBS whose jobs start at once."""
    folder, commands = tmp_path / "pbs", tmp_path / "bin"
    folder.mkdir()
    commands.mkdir()
    for name, text in {"qsub": QSUB, "qselect": QSELECT}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    monkeypatch.setenv("FAKE_PBS", str(folder))
    return folder


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The launcher from the page, with its settings where it expects them."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    settings, launcher = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope = vars(launching).copy()
    exec(compile(settings, "docs/clusters.md", "exec"), scope)
    monkeypatch.setattr(runner.schema, "PbsLauncher", scope["PbsLauncher"], raising=False)
    file = tmp_path / "pbs_launcher.py"
    file.write_text(launcher)
    spec = importlib.util.spec_from_file_location("pbs_launcher", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_jobs(model: Path, count: int) -> list[Job]:
    common = [f"model.path={model}", "logger=none", "validation.prompts=[]", "steps=20"]
    jobs = []
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        for seed in range(count):
            config = plain(compose("config", [*common, f"seed={seed}"]))
            jobs.append(Checker(outputs_dir()).job(config, (f"seed={seed}",)))
            register(jobs[-1])
    return jobs


def planned(jobs: list[Job], launcher: Any, settings: Any) -> Plan:
    return make_plan(jobs, {}, settings, machine=launcher.machine(settings), costs=Predictor())


def test_the_example_trains_jobs_and_takes_them_up_again(example: ModuleType, pbs: Path, sdxl_folder: Path) -> None:
    assert {name for name in vars(Launcher) if not name.startswith("_")} <= set(vars(example))
    jobs = make_jobs(sdxl_folder, 2)
    settings = runner.schema.PbsLauncher(gpus=0, queue="short", wait=False)  # type: ignore[attr-defined]
    plan = planned(jobs, example, settings)
    assert example.check(settings) == []

    with pytest.raises(Detached, match=r"qdel 1\.server"):
        example.launch(plan, settings)
    assert [state_of(job.folder).value for job in jobs] == ["submitted", "submitted"]
    waiting = runner.schema.PbsLauncher(gpus=0)  # type: ignore[attr-defined]
    example.launch(planned(jobs, example, waiting), waiting)

    assert [state_of(job.folder).value for job in jobs] == ["completed", "completed"]
    assert [read_manifest(job.folder)["worker"] for job in jobs] == ["1.server", "1.server"]
    assert (pbs / "options").read_text() == "-q short\n", "it was submitted once"
    folder = jobs[0].folder.parent / "pbs"
    assert "saved and read back" in (folder / "1.server.OU").read_text()


def test_without_pbs_it_says_so(example: ModuleType) -> None:
    settings = runner.schema.PbsLauncher()  # type: ignore[attr-defined]
    assert example.check(settings) == ["launcher = 'pbs': there is no qsub here; run this on a login node"]


def test_its_example_of_a_cluster_of_ones_own_composes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "ours.yaml").write_text(text)
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        config = plain(compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "launcher=ours"]))
    experiment = runner.schema.Experiment.model_validate(config)
    assert (experiment.launcher.name, getattr(experiment.launcher, "partition", None)) == ("slurm", "gpu")
