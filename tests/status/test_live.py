"""The table on a terminal: it follows jobs until they are done, and stays below messages printed meanwhile."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable

import pytest

from runner.jobs.job import State, update_manifest
from runner.jobs.lock import lock
from runner.status import live_table
from tests.command_line import ROOT, environment
from tests.status.test_status import go_on, make, train

DEADLINE_S = 60.0
SIZE = struct.pack("HHHH", 20, 150, 0, 0)


class Terminal:
    """A command on a terminal of 20 lines and 150 columns."""

    def __init__(self, *command: str) -> None:
        main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, SIZE)
        streams = {"stdin": other, "stdout": other, "stderr": other}
        # A size in the environment would take precedence over the terminal's.
        settings = {name: value for name, value in environment().items() if name not in ("LINES", "COLUMNS")}
        self.process = subprocess.Popen(command, cwd=ROOT, env={**settings, "TERM": "xterm"}, **streams)  # type: ignore[call-overload]
        os.close(other)
        self.output = ""
        self._reader = threading.Thread(target=self._read, args=(main,), daemon=True)
        self._reader.start()

    def _read(self, main: int) -> None:
        while True:
            try:
                said = os.read(main, 65536)
            except OSError:  # the other end is closed
                return
            self.output += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode(errors="replace"))

    def wait_until(self, found: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not found(self.output):
            assert time.monotonic() < deadline and self.process.poll() is None, self.output
            time.sleep(0.05)

    def end(self) -> int:
        code = self.process.wait(timeout=DEADLINE_S)
        self._reader.join(timeout=DEADLINE_S)
        return code


def test_it_follows_a_job_until_nothing_runs_any_more() -> None:
    job = make(0, State.RUNNING)
    train(job, [10, 20])
    with lock(job.folder):
        terminal = Terminal(sys.executable, "-m", "runner.status")
        terminal.wait_until(lambda said: "20 of 100" in said)
        go_on(job, 30)
        terminal.wait_until(lambda said: "30 of 100" in said)
        update_manifest(job.folder, state=State.COMPLETED, steps_done=100, objective=0.0625)
    assert terminal.end() == 0
    assert "0.0625" in terminal.output
    assert "1 job: 1 completed" in terminal.output


def test_ctrl_c_ends_it_and_nothing_else() -> None:
    job = make(0, State.RUNNING)
    train(job, [10, 20])
    with lock(job.folder):
        terminal = Terminal(sys.executable, "-m", "runner.status")
        terminal.wait_until(lambda said: "20 of 100" in said)
        terminal.process.send_signal(2)
        assert terminal.end() == 0
    assert "Traceback" not in terminal.output


def test_on_a_low_terminal_what_moves_is_shown_first() -> None:
    jobs = [make(seed, State.COMPLETED, steps_done=100) for seed in range(30)] + [make(99, State.RUNNING)]
    train(jobs[-1], [10, 20])
    with lock(jobs[-1].folder):
        terminal = Terminal(sys.executable, "-m", "runner.status")
        terminal.wait_until(lambda said: "31 jobs" in said)
        terminal.process.send_signal(2)
        terminal.end()
    assert jobs[-1].id in terminal.output
    assert "and 17 more; --once shows all" in terminal.output


def test_the_table_stands_below_what_a_launcher_says() -> None:
    job = make(0, State.RUNNING)
    train(job, [10, 20])
    script = f"""
import logging, sys, time
from pathlib import Path
from runner.status import live_table
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
with live_table(lambda: [Path({str(job.folder)!r})]):
    time.sleep(0.5)
    logging.info("one job has ended")
    time.sleep(1.5)
logging.info("all have ended")
"""
    terminal = Terminal(sys.executable, "-c", script)
    assert terminal.end() == 0, terminal.output
    lines = [line.strip() for line in terminal.output.splitlines()]
    assert "one job has ended" in lines, "a line of its own, not in the middle of the table"
    said = lines.index("one job has ended")
    assert any("20 of 100" in line for line in lines[said:]), "the table is drawn again below it"
    assert "all have ended" in lines


def test_several_workers_are_shown_in_one_table() -> None:
    terminal = Terminal(sys.executable, "-m", "runner", "-m", "seed=1,2", "launcher.concurrency=2", "logger=none")
    terminal.wait_until(lambda said: "2 jobs: 2 " in said)
    terminal.process.send_signal(2)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.output


def test_without_a_terminal_there_is_no_table() -> None:
    job = make(0, State.RUNNING)
    script = f"""
from pathlib import Path
from runner.status import live_table
with live_table(lambda: [Path({str(job.folder)!r})]):
    print("said")
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "said\n"


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("runner.status.live.LINE_EVERY_S", 0.02)
    jobs = [make(0, State.RUNNING), make(1, State.PENDING)]
    train(jobs[0], [10, 20])
    deadline = time.monotonic() + DEADLINE_S
    with lock(jobs[0].folder), live_table(lambda: [job.folder for job in jobs]):
        while not caplog.messages:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
    said = caplog.messages[0]
    assert said.startswith("sweep: 20 of 200 steps; 2 jobs: 1 running, 1 pending; about "), said
    assert caplog.messages.count(said) == 1
