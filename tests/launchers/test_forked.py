"""Workers that are forked from a process that has loaded the libraries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from runner.jobs.queue import Queue
from runner.launchers import forked, worker
from runner.launchers.forked import Forked
from runner.system.machine import Device, Machine
from tests.command_line import environment
from tests.forked_command import run_forked

DEADLINE_S = 60.0
CPU = Machine((Device("cpu", "a CPU", None),), cores=2)
GPU = Machine((Device("cuda", "a GPU", 80.0, "0"),), cores=2)


def ended(process: Forked) -> int:
    """The exit code of a process, once it has one."""
    deadline = time.monotonic() + DEADLINE_S
    while (code := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


def waiting(tmp_path: Path) -> Forked:
    """A worker that waits for jobs."""
    queue = Queue(tmp_path / "queue.json")
    queue.write([], is_open=True)
    options = worker.worker_options(queue.file, at_once=1, device="cpu")
    return Forked(options, environment=environment(), log=tmp_path / "worker.log")


def test_it_writes_into_its_log_and_ends_with_its_own_code(tmp_path: Path) -> None:
    process = Forked([str(tmp_path / "nowhere")], environment=environment(), log=tmp_path / "worker.log")
    assert ended(process) == 2
    assert str(tmp_path / "nowhere") in (tmp_path / "worker.log").read_text()


def test_it_is_known_which_signal_has_ended_it(tmp_path: Path) -> None:
    process = waiting(tmp_path)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    process.send_signal(signal.SIGTERM)  # no effect, as on a process that has ended


def test_interrupted_it_does_what_is_to_be_done_at_the_end_and_says_which_signal_it_was(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(
        "import atexit\natexit.register(print, 'at the end', flush=True)\nraise KeyboardInterrupt\n"
    )
    code, output = run_forked("leaving", [], cwd=tmp_path, environment=environment(), timeout_s=DEADLINE_S)
    assert (code, output) == (-signal.SIGINT, "at the end\n")


def test_it_is_a_session_of_its_own_so_that_ctrl_c_reaches_the_runner_alone(tmp_path: Path) -> None:
    process = waiting(tmp_path)
    deadline = time.monotonic() + DEADLINE_S
    while os.getsid(process.pid) != process.pid:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    ended(process)


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Fork workers from a process of this test alone, not from the one shared by all tests. It loads no libraries."""
    server = forkserver.ForkServer()
    server.set_forkserver_preload([])
    monkeypatch.setattr(forkserver, "_forkserver", server)
    for name in ("ensure_running", "connect_to_new_process"):
        monkeypatch.setattr(forkserver, name, getattr(server, name))
    monkeypatch.setattr(forkserver, "set_forkserver_preload", lambda names: None)
    yield server
    server._stop()  # type: ignore[attr-defined]


def test_where_the_process_that_workers_are_forked_from_is_killed_they_go_on_and_the_next_one_has_another(
    tmp_path: Path, own_server: Any
) -> None:
    first = waiting(tmp_path)
    server: int = own_server._forkserver_pid
    os.kill(server, signal.SIGKILL)
    first._process.join(DEADLINE_S)  # until its death is noticed
    while (stat := Path(f"/proc/{server}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)  # and until the system has ended it
    assert first.poll() is None, "it does not need the other one any more"
    second = waiting(tmp_path)
    second.send_signal(signal.SIGKILL)
    assert ended(second) == -signal.SIGKILL
    first.send_signal(signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL, "it has become a child of this process"


def test_workers_go_on_without_the_process_they_were_forked_from_and_their_end_is_known(
    tmp_path: Path, own_server: Any
) -> None:
    first = waiting(tmp_path)
    server: int = own_server._forkserver_pid
    forked.forget_libraries()
    forked.forget_libraries()  # no effect a second time
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.01)
    Queue(tmp_path / "queue.json").write([], is_open=False)
    assert ended(first) == 0
    assert first.poll() == 0, "also when asked again"


def test_where_that_process_is_killed_while_a_worker_is_forked_it_is_as_if_none_could_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_handle: int) -> int:
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(forkserver, "read_signed", read)
    with pytest.raises(OSError, match="killed"):
        Forked([str(tmp_path / "nowhere")], environment=environment(), log=tmp_path / "worker.log")


EARS = """
import os, signal
from runner import work
from runner.launchers import forked

def say(where):
    print(where, "is deaf" if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()) else "hears", flush=True)

def as_another(action):
    if (pid := os.fork()) == 0:
        action()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def load():
    work.load_libraries = lambda: os.kill(os.getpid(), signal.SIGINT)
    import runner.launchers.libraries

def start():
    say("what begins")
    print("loading ends with", as_another(load), flush=True)
    as_another(lambda: forked.as_a_command(lambda: say("a worker") or 0, os.environ.copy(), None))
    raise OSError("enough")

forked.forkserver.ensure_running = start
try:
    forked.Forked([], environment=os.environ.copy(), log=None)
except OSError:
    say("the runner")
"""


def test_a_ctrl_c_of_a_terminal_ends_it_without_words_while_it_loads_and_is_heard_by_its_workers() -> None:
    done = subprocess.run([sys.executable, "-c", EARS], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "what begins is deaf",
        "loading ends with -2",
        "a worker hears",
        "the runner hears",
    ]
    assert done.stderr == ""


def test_what_it_loads_is_loaded_in_its_own_environment_and_not_in_the_runners(tmp_path: Path) -> None:
    before = dict(os.environ)
    with forked._environment({"ONLY": "this"}):
        assert dict(os.environ) == {"ONLY": "this"}
    assert dict(os.environ) == before


class Starts:
    """Which way workers were started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.queue, self.begun = folder / "queue.json", []
        monkeypatch.setattr(worker, "Forked", lambda *_, **__: self.begun.append("forked"))
        monkeypatch.setattr(worker.subprocess, "Popen", lambda *_, **__: self.begun.append("started"))

    begun: list[str]

    def worker(self, machine: Machine, places: list[str], at_most: int) -> None:
        worker.Worker(self.queue, at_once=1, places=places, machine=machine, device="auto", log=None, at_most=at_most)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Starts:
    return Starts(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("machine", "places", "at_most", "way"),
    [
        (CPU, ["0"], 2, "forked"),
        (CPU, ["0"], 1, "started"),
        (CPU, ["0", "0"], 2, "started"),
        (GPU, ["0"], 2, "started"),
    ],
    ids=["one of several", "alone", "several processes", "on a GPU"],
)
def test_workers_of_which_several_run_on_the_cpu_are_forked(
    starts: Starts, machine: Machine, places: list[str], at_most: int, way: str
) -> None:
    starts.worker(machine, places, at_most)
    assert starts.begun == [way]


def test_where_no_process_can_be_forked_workers_load_their_own_libraries(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork(*_: object, **__: object) -> Forked:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(worker, "Forked", fork)
    starts.worker(CPU, ["0"], 2)
    assert starts.begun == ["started"]
