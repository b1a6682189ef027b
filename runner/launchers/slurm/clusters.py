"""Slurm's queue, and background processes of this machine as a substitute: the only module that knows submitit.

submitit writes the file for sbatch, submits it, names the logs and polls for states with a back-off. Its own way of
running things, which pickles a function and its arguments, is not used: what runs is a command.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from pathlib import Path

from submitit.core.core import InfoWatcher
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths, environment_variables
from submitit.helpers import clean_env
from submitit.local.local import LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor

from runner.jobs.job import Job
from runner.launchers.cluster import Gone, NoRoom, NotStopped, NotSubmitted, Order
from runner.launchers.slurm.text import command_text, parameters
from runner.launchers.worker import python_path, worker_defaults
from runner.paths import cache_dir
from runner.schema import SlurmLauncher
from runner.system.machine import cores, threads_of

LONGEST_SILENCE_S = 60
"""Slurm is polled at least this often, and more often shortly after a submission."""
COMMAND_TIMEOUT_S = 120

NO_ROOM = (
    "MaxSubmitJob", "GrpSubmitJobs", "Unable to contact slurm controller", "Socket timed out", "standby mode",
    "temporarily unable to accept",
)  # fmt: skip
"""What sbatch says when a user, account or QOS has reached its limit of queued jobs, and when Slurm is unreachable."""
TAKEN = ("BOOT_FAIL", "DEADLINE", "NODE_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT")
ENDED = ("COMPLETED", "FAILED", "OUT_OF_MEMORY")
FORGOTTEN = "FORGOTTEN"
"""The state of a job that neither the queue nor the accounting knows."""


class SlurmCluster:
    """A Slurm cluster, through the commands of a login node."""

    name = "slurm"
    shares_files = True

    def __init__(self, settings: SlurmLauncher) -> None:
        self.settings = settings
        self._watcher = QueueWatcher(delay_s=LONGEST_SILENCE_S)

    def submit(self, order: Order, *, after: str | None) -> str:
        """Pass a worker to sbatch; returns the job's id."""
        executor = SlurmExecutor(order.queue.parent)
        executor.parameters = parameters(self.settings, order, after=after)
        try:
            # A command that itself runs inside a Slurm job must not pass on that job's variables.
            # What sbatch prints is dropped: the caller reports it once, however often it tries.
            with clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext(), redirect_stderr(io.StringIO()):
                job = executor._submit_command(command_text(self.settings, order))
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            said = str(error).strip() or type(error).__name__
            raise (NoRoom if any(words in said for words in NO_ROOM) else NotSubmitted)(said) from error
        _remove_links(order.queue.parent)
        return str(job.job_id)

    def gone(self, workers: Mapping[str, Sequence[Job]]) -> Mapping[str, Gone]:
        """What has ended, from one squeue call for all and one sacct call for those that squeue no longer lists."""
        self._watcher.register_all(list(workers))
        found = {}
        for worker in workers:
            state = self._watcher.get_state(worker)
            if state == FORGOTTEN:
                found[worker] = Gone(words="is no longer known to Slurm")
            elif state == "CANCELLED":
                found[worker] = Gone(words="was cancelled", reason="cancelled")
            elif state in TAKEN:
                found[worker] = Gone(words=f"ended as {state}", reason="taken")
            elif state in ENDED:
                found[worker] = Gone(words=f"ended as {state}")
        return found

    def log(self, worker: str, folder: Path) -> Path:
        """The file that srun writes to."""
        return JobPaths(folder, job_id=worker).stdout

    def cancel(self, workers: Sequence[str]) -> None:
        """Call scancel once for all; if some cannot be signalled, it does not say which ones were."""
        try:
            answer = subprocess.run(
                ["scancel", *workers], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
            said = answer.stderr.strip() or f"scancel ended with code {answer.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        else:
            if answer.returncode == 0:
                return
        raise NotStopped(
            f"{self.name} {', '.join(workers)} may go on: {said}; end them with: {self.how_to_cancel(workers)}", workers
        )

    def how_to_cancel(self, workers: Sequence[str]) -> str:
        """scancel: Slurm asks them to end, and kills them half a minute later (KillWait)."""
        return " ".join(["scancel", *workers])


class QueueWatcher(InfoWatcher):
    """States of Slurm jobs, polled with submitit's back-off.

    squeue is asked first: it answers at once and everywhere. For jobs that it has forgotten, sacct may know how they
    ended, if the cluster keeps accounts.
    """

    def register_all(self, workers: Sequence[str]) -> None:
        """Watch these too."""
        for worker in workers:
            if worker not in self._registered:
                self.register_job(worker)

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """One word in capitals; UNKNOWN if Slurm has not answered yet."""
        return self.get_info(job_id, mode=mode).get("State", "UNKNOWN")

    def update(self) -> None:
        """Query all jobs together; those without an answer keep their last state."""
        self._num_calls += 1
        self._last_status_check = time.time()
        open_jobs = sorted(self._registered - self._finished)
        queued = _states("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T") if open_jobs else None
        if queued is None:
            return
        missing = [job for job in open_jobs if job not in queued]
        ended = _states("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(missing)) if missing else {}
        for job in open_jobs:
            state = queued.get(job) or (ended or {}).get(job, FORGOTTEN)
            self._info_dict[job] = {"State": state}
            if state in (*TAKEN, *ENDED, "CANCELLED", FORGOTTEN):
                self._finished.add(job)


def _states(*command: str) -> dict[str, str] | None:
    """Job ids and the first word of their states, as a command lists them; None if it failed."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    rows = (line.strip().split("|") for line in answer.stdout.splitlines() if "|" in line)
    return {job: state.split()[0] for job, state, *_ in rows if state.strip()}


class BackgroundCluster:
    """This machine: workers that outlive the command that started them."""

    name = "background"
    shares_files = True

    def __init__(self, settings: SlurmLauncher) -> None:
        self.settings = settings
        self._started: dict[str, LocalJob[object]] = {}

    def submit(self, order: Order, *, after: str | None) -> str:
        """Start a worker; returns the id of the process that watches its time limit."""
        executor = LocalExecutor(order.queue.parent)
        executor.parameters = {
            "gpus_per_node": self.settings.gpus_per_node,
            "timeout_min": self.settings.time_limit_min,
            "signal_delay_s": self.settings.save_before_s,
            "stderr_to_stdout": True,
        }
        command = shlex.join(order.command)
        if after is not None:
            waiting = f"while kill -0 {after} 2>/dev/null; do sleep 1; done; exec {command}"
            command = shlex.join(["sh", "-c", waiting])
        threads = threads_of(cores(), order.processes * (self.settings.concurrency or 1))
        environment = {name: os.environ.get(name, value) for name, value in worker_defaults(threads).items()}
        environment |= {"PYTHONPATH": python_path(), "RUNNER_CACHE": str(cache_dir())}
        # A worker saves on TERM, before its time is over.
        with environment_variables(**environment, SUBMITIT_PREEMPT_SIGNAL="TERM"), _away_from_the_terminal():
            job: LocalJob[object] = executor._submit_command(command)
        self._started[job.job_id] = job
        return job.job_id

    def gone(self, workers: Mapping[str, Sequence[Job]]) -> Mapping[str, Gone]:
        """Those whose process has ended."""
        return {worker: Gone(words="has ended") for worker in workers if not self._runs(worker)}

    def _runs(self, worker: str) -> bool:
        if worker in self._started:
            return not self._started[worker].done()
        try:
            # Started by an earlier command; its process id may have been reused since.
            said = subprocess.run(["ps", "-o", "command=", "-p", worker], capture_output=True, text=True, check=False)
        except OSError:
            return Path("/proc", worker).is_dir()
        return "submitit.local" in said.stdout

    def log(self, worker: str, folder: Path) -> Path:
        """Where its output goes."""
        return JobPaths(folder, job_id=worker).stdout

    def cancel(self, workers: Sequence[str]) -> None:
        """Send a signal, which each worker passes on."""
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGTERM)

    def how_to_cancel(self, workers: Sequence[str]) -> str:
        """kill: each worker saves and ends."""
        return " ".join(["kill", *workers])


@contextmanager
def _away_from_the_terminal() -> Iterator[None]:
    """Start processes that do not end with this terminal, and that do not keep our output open for its readers."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    kept = [os.dup(stream) for stream in range(3)]
    nothing = os.open(os.devnull, os.O_RDWR)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in range(3):
        os.dup2(nothing, stream)
    try:
        yield
    finally:
        for stream, copy in enumerate(kept):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nothing)
        for number, handler in before.items():
            signal.signal(number, handler)


def _remove_links(folder: Path) -> None:
    """Remove submitit's links: it leaves one to each file, under the name from before the job had an id."""
    for link in folder.glob(".submission_file_*.sh"):
        if link.is_symlink():
            link.unlink()
