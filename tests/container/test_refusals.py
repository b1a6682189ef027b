"""Faults in what was sent are reported in one line, before anything is trained."""

from __future__ import annotations

import json
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.container.ending import reason
from runner.container.entry import main
from runner.container.tree import FAILURE_CHARACTERS, ROOT, Tree
from tests.container.opt_ml import OptMl
from tests.train.bench import Bench


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def tree(bench: Bench, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OptMl:
    tree = OptMl(tmp_path / "ml").send(bench.job(sdxl_folder, seed=61))
    monkeypatch.setenv(ROOT, str(tree.root))
    return tree


def job_folder(tree: OptMl) -> Path:
    (folder,) = (each for each in (tree.data / "config").iterdir() if each.is_dir())
    return folder


def change_plan(tree: OptMl, **changes: object) -> None:
    file = tree.data / "config" / "plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def no_plan(tree: OptMl) -> None:
    (tree.data / "config" / "plan.json").unlink()


def unknown_host(tree: OptMl) -> None:
    (tree.config / "resourceconfig.json").write_text('{"hosts": ["algo-1"], "current_host": "algo-2"}')


def no_hosts(tree: OptMl) -> None:
    (tree.config / "resourceconfig.json").unlink()


def torn_config(tree: OptMl) -> None:
    (job_folder(tree) / "config.yaml").write_text("lora: {rank: ")


def no_manifest(tree: OptMl) -> None:
    (job_folder(tree) / "manifest.json").unlink()


def unknown_setting(tree: OptMl) -> None:
    with (job_folder(tree) / "config.yaml").open("a") as file:
        file.write("stepps: 3\n")


def unknown_channel(tree: OptMl) -> None:
    file = job_folder(tree) / "config.yaml"
    file.write_text(file.read_text().replace("channel:images", "channel:pictures"))


def torn_code(tree: OptMl) -> None:
    (tree.data / "code").mkdir()
    (tree.data / "code" / "runner.zip").write_text("no archive")


def other_code(tree: OptMl) -> None:
    (tree.data / "code").mkdir()
    with zipfile.ZipFile(tree.data / "code" / "runner.zip", "w") as archive:
        archive.writestr("walker/__init__.py", "")


def uneven_hosts(tree: OptMl) -> None:
    (tree.config / "resourceconfig.json").write_text('{"hosts": ["algo-1", "algo-2"], "current_host": "algo-1"}')
    change_plan(tree, processes=3)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (no_plan, "plan.json cannot be read: No such file or directory"),
        (lambda tree: change_plan(tree, jobs=[]), "plan.json is not a plan: jobs: Tuple should have at least 1 item"),
        (lambda tree: change_plan(tree, jobz=1), "plan.json is not a plan: jobz: Extra inputs are not permitted"),
        (lambda tree: change_plan(tree, jobs=["abc"]), "config/abc/config.yaml cannot be read: "),
        (lambda tree: change_plan(tree, device="cuda"), "this machine has no NVIDIA GPU"),
        (unknown_host, "current_host = 'algo-2' is not among hosts = [algo-1]"),
        (no_hosts, "resourceconfig.json cannot be read: "),
        (torn_config, "config.yaml cannot be read: "),
        (no_manifest, "holds no job: config.yaml and manifest.json are needed"),
        (unknown_setting, "stepps = 3: unknown key, did you mean steps?"),
        (unknown_channel, "the configuration names 'channel:pictures', and there is no such channel"),
        (torn_code, "runner.zip cannot be unpacked: File is not a zip file"),
        (other_code, "runner.zip does not hold the package runner"),
        (uneven_hosts, "launcher.processes = 3: cannot be spread evenly over 2 hosts"),
        (lambda tree: tree.hyperparameters(lora__rank="many"), "lora.rank = 'many': should be a whole number"),
        (lambda tree: tree.hyperparameters(lora__ranke="8"), "lora.ranke = 8: unknown key, did you mean lora.rank?"),
        (lambda tree: tree.hyperparameters(lora="8"), "lora = '8': is a group of settings"),
        (lambda tree: tree.hyperparameters(steps__x="8"), "steps.x = '8': "),
        (lambda tree: tree.hyperparameters(steps="[8"), "steps = '[8': is not valid YAML"),
    ],
)
def test_what_is_wrong_is_said(tree: OptMl, harm: Callable[[OptMl], object], said: str) -> None:
    harm(tree)

    assert main(["train"]) == 1
    assert said in tree.failure.read_text()
    assert not list(tree.root.glob("checkpoints/jobs/*/log.txt"))


def test_hyperparameters_of_several_jobs_are_refused(bench: Bench, sdxl_folder: Path, tree: OptMl) -> None:
    other = bench.job(sdxl_folder, seed=62)
    first = job_folder(tree).name
    tree.send(other)
    change_plan(tree, jobs=[first, other.id])
    tree.hyperparameters(lora__rank="8")

    assert main([]) == 1
    assert tree.failure.read_text() == "hyperparameters (lora.rank) are for a single job, and 2 came"


def test_hosts_are_in_the_order_of_their_numbers(tree: OptMl) -> None:
    hosts = [f"algo-{number}" for number in (10, 2, 1)]
    (tree.config / "resourceconfig.json").write_text(
        json.dumps({"hosts": hosts, "current_host": "algo-10", "network_interface_name": "no-such-interface"})
    )
    host = Tree.here().host()

    assert host.names == ("algo-1", "algo-2", "algo-10")
    assert host.rank == 2 and not host.is_first
    assert host.interface is None


@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_reason_names_as_many_jobs_as_have_room(count: int) -> None:
    text = reason([(f"{number:010d}", "out of memory " * 100) for number in range(count)], of=50)

    assert len(text) <= FAILURE_CHARACTERS
    assert text.startswith(f"{count} of 50 jobs failed\n0000000000: out of memory")
    assert text.count(": out of memory") == min(count, 12)
