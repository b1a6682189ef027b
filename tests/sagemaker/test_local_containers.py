"""Containers on this machine, with a program in place of the engine that only records them.

tests/container/test_real_image.py uses real ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest

from runner.jobs.job import Job, make_job, register
from runner.launchers.cluster import Gone, NotSubmitted
from runner.launchers.lots import Lot
from runner.launchers.sagemaker.local.containers import Container, LocalContainers
from runner.launchers.sagemaker.local.tree import Hosts
from runner.launchers.sagemaker.record import CLUSTER
from runner.plan import Pack
from runner.schema import Experiment, SageMakerLauncher

ENGINE = """#!{python} -IS
import json, sys
from pathlib import Path
here = Path(__file__).parent
command, *words = sys.argv[1:]
file = here / f"{{words[words.index('--name') + 1] if command == 'run' else words[-1]}}.container"
if command == "run":
    # As docker: a container that cannot be started is there all the same.
    starts = not (here / "broken").exists()
    file.write_text("running" if starts else "created")
    sys.exit("no such device" if not starts else 0)
elif command == "inspect":
    if not file.exists():
        sys.exit(1)
    code, killed = map(int, (here / "code").read_text().split())
    state = {{"Status": file.read_text(), "ExitCode": code, "OOMKilled": bool(killed)}}
    print(json.dumps([{{"State": state}}]))
elif command == "rm":
    file.unlink(missing_ok=True)
elif command == "network":
    net = here / f"{{words[-1]}}.network"
    if words[0] == "create" and net.exists():
        sys.exit("there is one already")
    net.touch() if words[0] == "create" else net.unlink(missing_ok=True)
"""


class Engine:
    """The program, and the containers that it has recorded."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.program, self.broken = folder / "docker", folder / "broken"
        self.program.write_text(ENGINE.format(python=sys.executable))
        self.program.chmod(0o755)
        (folder / "code").write_text("0 0")

    def end(self, code: int, *, for_memory: bool = False) -> None:
        """End all containers, as far as the engine says."""
        (self.program.parent / "code").write_text(f"{code} {int(for_memory)}")
        for file in self.program.parent.glob("*.container"):
            file.write_text("exited")

    @property
    def containers(self) -> dict[str, str]:
        """The state of each container, by its host."""
        found = sorted(self.program.parent.glob("*.container"))
        return {file.stem.partition("-algo-")[2]: file.read_text() for file in found}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    return Engine(tmp_path / "engine")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    experiment = Experiment.model_validate({"launcher": {"name": "sagemaker", "local": True}})
    made = make_job(experiment, model="m", dataset="d", outputs=tmp_path / "outputs")
    register(made)
    return made


def containers(engine: Engine, *, hosts: int) -> LocalContainers:
    settings = SageMakerLauncher(name="sagemaker", local=True, instances=hosts, processes=hosts)
    return LocalContainers(settings, image="image", program=str(engine.program))


@pytest.mark.parametrize("hosts", [1, 2])
def test_what_could_not_be_started_is_started_by_the_next_command(engine: Engine, job: Job, hosts: int) -> None:
    """Otherwise the command would wait for it forever."""
    lot = Lot(Pack((job,), 1, 1, hosts, ""), CLUSTER)
    lot.write()
    engine.broken.touch()
    with pytest.raises(NotSubmitted, match="no such device"):
        containers(engine, hosts=hosts).submit(lot.order("cpu"), after=None)
    engine.broken.unlink()
    again = containers(engine, hosts=hosts)
    name = again.submit(lot.order("cpu"), after=None)
    everyone = {str(number): "running" for number in range(1, hosts + 1)}
    assert engine.containers == everyone
    # A running container is taken up unchanged.
    assert containers(engine, hosts=hosts).submit(lot.order("cpu"), after=None) == name
    assert engine.containers == everyone


@pytest.mark.parametrize(
    ("code", "failure", "stopped", "reason", "words"),
    [
        (0, "", False, "ended", "has ended"),
        (0, "", True, "cancelled", "was stopped"),
        (137, "", False, "cancelled", "was stopped"),
        (1, "no\nluck", False, "ended", "failed: AlgorithmError: no luck, exit code: 1"),
        (137, "no luck", False, "ended", "failed: AlgorithmError: no luck, exit code: 137"),
        (2, "", False, "ended", "failed: AlgorithmError: no reason given, exit code: 2"),
        (None, "", False, "taken", "is gone: somebody has removed its containers"),
    ],
)
def test_how_containers_have_ended_is_known(
    tmp_path: Path,
    code: int | None,
    failure: str,
    stopped: bool,
    reason: Literal["ended", "cancelled", "taken"],
    words: str,
) -> None:
    hosts = Hosts(tmp_path, 1)
    (tmp_path / "algo-1" / "output").mkdir(parents=True)
    if failure:
        (tmp_path / "algo-1" / "output" / "failure").write_text(failure)
    if stopped:
        hosts.note_stopped()
    gone = LocalContainers._how(hosts, {} if code is None else {"algo-1": Container("exited", code, False)}, began=True)
    assert gone == Gone(words=words, reason=reason, began=True)


def test_what_the_system_has_killed_for_memory_was_not_stopped(engine: Engine, job: Job) -> None:
    lot = Lot(Pack((job,), 1, 1, 2, ""), CLUSTER)
    lot.write()
    here = containers(engine, hosts=1)
    name = here.submit(lot.order("cpu"), after=None)
    engine.end(137, for_memory=True)

    gone = here.gone({name: [job]})[name]

    assert gone.reason == "ended"
    assert gone.words.startswith("failed: AlgorithmError: out of memory of this machine; lower launcher.pack")


def test_what_has_ended_is_removed_and_known_to_other_commands(engine: Engine, job: Job) -> None:
    lot = Lot(Pack((job,), 1, 1, 2, ""), CLUSTER)
    lot.write()
    here = containers(engine, hosts=2)
    name = here.submit(lot.order("cpu"), after=None)
    assert here.gone({name: [job]}) == {}
    engine.end(1)
    gone = here.gone({name: [job]})
    assert gone[name].words == "failed: AlgorithmError: no reason given, exit code: 1"
    assert list(engine.program.parent.glob("*.container")) == list(engine.program.parent.glob("*.network")) == []
    assert containers(engine, hosts=2).gone({name: [job]}) == gone
