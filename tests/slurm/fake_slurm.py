"""A single-machine Slurm: commands on the PATH that really run batch scripts, signal them, and know how they ended.

Each job has a folder with `job.json`, and a process that supervises it as slurmd would. A test controls what happens to
a job by writing a word into its file `order`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "sinfo", "scontrol")
PARTITIONS = ("long", "short")
GRACE_S = 20.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY")


def root() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def install(folder: Path) -> dict[str, str]:
    """Put the commands into a folder; returns the environment in which they are found."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name in COMMANDS:
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        script.chmod(0o755)
    (folder / "jobs").mkdir()
    return {"PATH": f"{commands}:{os.environ['PATH']}", "FAKE_SLURM": str(folder / "jobs")}


class FakeJob:
    """One job, as recorded in its folder."""

    def __init__(self, number: str) -> None:
        self.number, self.folder = number, root() / number

    def read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "job.json").read_text())
        return content

    def write(self, **fields: Any) -> None:
        content = self.read() | fields if (self.folder / "job.json").exists() else fields
        temporary = self.folder / f"job.json.{os.getpid()}"
        temporary.write_text(json.dumps(content))
        temporary.replace(self.folder / "job.json")

    @property
    def state(self) -> str:
        return str(self.read()["state"])

    def order(self, what: str) -> None:
        """preempt, requeue (preempt, but start it again), cancel, break (the node), exhaust (the memory)."""
        # Written atomically: a half-written order would be read as no order and lost.
        (self.folder / "order.new").write_text(what)
        (self.folder / "order.new").replace(self.folder / "order")

    def take_order(self) -> str:
        file = self.folder / "order"
        if not file.exists():
            return ""
        what = file.read_text()
        file.unlink()
        return what

    def signal_steps(self, number: int) -> None:
        """Signal what srun has started, as Slurm does; the batch script itself gets no signal."""
        for file in self.folder.glob("step-*"):
            try:
                os.killpg(int(file.name.partition("-")[2]), number)
            except ProcessLookupError:
                file.unlink()


def jobs() -> list[FakeJob]:
    return [FakeJob(folder.name) for folder in sorted(root().iterdir()) if folder.is_dir()]


def sbatch(arguments: list[str]) -> int:
    if refusal := os.environ.get("FAKE_REFUSAL"):
        sys.stderr.write(f"sbatch: error: {refusal}" + "\n")
        return 1
    script = Path(arguments[0]).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE))
    with (root().parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = FakeJob(str(101 + len(jobs())))
        job.folder.mkdir()
        job.write(state="PENDING", options=options, script=script, restarts=0)
    subprocess.Popen(
        [sys.executable, __file__, "supervise", job.number],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=(job.folder / "supervisor.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    sys.stdout.write(f"Submitted batch job {job.number}\n")
    return 0


def supervise(arguments: list[str]) -> int:
    job = FakeJob(arguments[0])
    options = job.read()["options"]
    first = options.get("dependency", "").removeprefix("afterany:")
    while (root().parent / "full").exists() or (first and FakeJob(first).state not in ENDED):
        if job.take_order():
            job.write(state="CANCELLED")
            return 0
        time.sleep(0.1)
    state = "REQUEUED"
    while state == "REQUEUED":
        state = run_once(job, options)
        restarts = job.read()["restarts"] + 1
        job.write(state="PENDING" if state == "REQUEUED" else state, restarts=restarts, ended=time.time())
        if state == "REQUEUED":
            time.sleep(1)
    return 0


def run_once(job: FakeJob, options: dict[str, str]) -> str:
    """Run the batch script until it ends or is ended; returns the state of the job then."""
    minute_s = float(os.environ.get("FAKE_MINUTE_S", "60"))
    ends = time.monotonic() + int(options["time"]) * minute_s
    name, _, before_s = options["signal"].partition("@")
    asked = False
    nodes = int(options["nodes"])
    environment = {"SLURM_JOB_ID": job.number, "SLURM_JOB_NUM_NODES": str(nodes)}
    environment["SLURM_JOB_NODELIST"] = ",".join(["localhost"] * nodes)
    file = job.folder / "script.sh"
    file.write_text(job.read()["script"])
    # As in Slurm, the folder of the output is not created.
    with Path(options["output"].replace("%j", job.number)).open("a") as output:
        batch = subprocess.Popen(
            ["bash", str(file)], env=os.environ | environment, stdout=output, stderr=output, start_new_session=True
        )
    job.write(state="RUNNING")
    while batch.poll() is None:
        time.sleep(0.05)
        if not asked and time.monotonic() > ends - float(before_s):
            asked = True
            job.signal_steps(getattr(signal, f"SIG{name}"))
        if time.monotonic() > ends:
            return end(job, batch, "TIMEOUT", GRACE_S)
        match job.take_order():
            case "preempt":
                return end(job, batch, "PREEMPTED", GRACE_S)
            case "requeue":
                return end(job, batch, "REQUEUED" if is_requeued(options) else "PREEMPTED", GRACE_S)
            case "cancel":
                return end(job, batch, "CANCELLED", GRACE_S)
            case "break":
                return end(job, batch, "REQUEUED" if is_requeued(options) else "NODE_FAIL", 0)
            case "exhaust":
                return end(job, batch, "OUT_OF_MEMORY", 0)
    return "COMPLETED" if batch.returncode == 0 else "FAILED"


def is_requeued(options: dict[str, str]) -> bool:
    """As on clusters with the default setup (JobRequeue=1); of the two options, the later one counts."""
    return [name for name in options if name in ("requeue", "no-requeue")][-1:] != ["no-requeue"]


def end(job: FakeJob, batch: subprocess.Popen[bytes], state: str, grace_s: float) -> str:
    if grace_s:
        job.signal_steps(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            batch.wait(timeout=grace_s)
    job.signal_steps(signal.SIGKILL)
    if batch.poll() is None:
        os.killpg(batch.pid, signal.SIGKILL)
    batch.wait()
    return state


def srun(arguments: list[str]) -> int:
    output = ""
    while arguments[0].startswith("-"):
        if arguments[0] == "--output":
            output = arguments.pop(1)
        arguments.pop(0)
    number = os.environ["SLURM_JOB_ID"]
    tasks = []
    for task in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
        environment = os.environ | {"SLURM_NODEID": str(task), "SLURM_PROCID": str(task)}
        tasks.append(start(arguments, environment, Path(output.replace("%j", number).replace("%t", str(task)))))
        (root() / number / f"step-{tasks[-1].pid}").touch()
    codes = [code_of(task) for task in tasks]
    return max((code if code >= 0 else 128 - code for code in codes), default=0)


def start(command: list[str], environment: dict[str, str], output: Path) -> subprocess.Popen[bytes] | BaseProcess:
    """Start a task in its own session; a worker is forked if possible."""
    output.touch()
    if command[:3] == [sys.executable, "-m", "runner.work"] and environment.get("FORK_SERVER"):
        from tests import forked_command

        if forked_command.can_fork(environment):
            return forked_command.fork(
                "runner.work", command[3:], cwd=Path.cwd(), environment=environment, output=output
            )
    with output.open("a") as stream:
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)


def code_of(task: subprocess.Popen[bytes] | BaseProcess) -> int:
    """The exit code of a task, once it has ended."""
    if isinstance(task, subprocess.Popen):
        return task.wait()
    task.join()
    assert task.exitcode is not None
    return task.exitcode


def squeue(arguments: list[str]) -> int:
    if (root().parent / "down").exists():
        sys.stderr.write("slurm_load_jobs error: Unable to contact slurm controller" + "\n")
        return 1
    assert "--states=all" in arguments and "--format=%i|%T" in arguments, arguments
    for job in jobs():
        content = job.read()
        if content["state"] not in ENDED or not os.environ.get("FAKE_FORGETS"):
            sys.stdout.write(f"{job.number}|{content['state']}\n")
    return 0


def sacct(arguments: list[str]) -> int:
    if os.environ.get("FAKE_NO_ACCOUNTS"):
        sys.stderr.write("Slurm accounting storage is disabled" + "\n")
        return 1
    for number in arguments[arguments.index("-j") + 1].split(","):
        if (root() / number).is_dir():
            state = FakeJob(number).state
            sys.stdout.write(f"{number}|{state}" + (" by 1000\n" if state == "CANCELLED" else "\n"))
    return 0


def scancel(arguments: list[str]) -> int:
    for number in arguments:
        FakeJob(number).order("cancel")
    return 0


def sinfo(arguments: list[str]) -> int:
    sys.stdout.write("\n".join(PARTITIONS) + "\n")
    return 0


def scontrol(arguments: list[str]) -> int:
    assert arguments[:2] == ["show", "hostnames"], arguments
    sys.stdout.write(arguments[2].replace(",", "\n") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
