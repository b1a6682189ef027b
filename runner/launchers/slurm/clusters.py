"""Slurm's queue, and background processes of this machine as a substitute: the only module that knows submitit.

submitit writes the file for sbatch, submits it, names the logs and polls for states with a back-off. Its own way of
running things, which pickles a function and its arguments, is not used: what runs is a command.
"""

from __future__ import annotations

import io
import logging
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

from runner.errors import RunnerError
from runner.jobs.job import Job
from runner.launchers.cluster import Gone, NoRoom, NotStopped, NotSubmitted, Order
from runner.launchers.slurm.text import command_text, parameters
from runner.launchers.worker import python_path, worker_defaults
from runner.paths import cache_dir
from runner.schema import SlurmLauncher
from runner.system.machine import cores, threads_of

log = logging.getLogger(__name__)

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
NO_ACCOUNTS = ("accounting storage is disabled", "No such file or directory")
"""What sacct says, or what is said of it, on clusters that keep no accounts: those will not be there later either."""
WAIT_FOR_ACCOUNTS_S = 3600.0
"""How long accounts that cannot be read are waited for: without them, nobody knows why a worker ended."""


class SlurmCluster:
    """A Slurm cluster, through the commands of a login node."""

    name = "slurm"
    shares_files = True

    def __init__(self, settings: SlurmLauncher) -> None:
        self.settings = settings
        self._watcher = QueueWatcher()

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
    ended, if the cluster keeps accounts. While one of them fails, which is logged once, jobs keep their last state.
    """

    def __init__(self, delay_s: int = LONGEST_SILENCE_S) -> None:
        super().__init__(delay_s=delay_s)
        self._silent_since: float | None = None

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
        try:
            self._query(sorted(self._registered - self._finished))
        except NoAnswer as error:
            if self._silent_since is None:
                self._silent_since = time.time()
                log.warning("Slurm cannot be queried, and is asked again: %s", error)
        else:
            self._silent_since = None
        # After the queries, which may have hung: otherwise each job would start them again.
        self._last_status_check = time.time()

    def _query(self, open_jobs: Sequence[str]) -> None:
        if not open_jobs:
            return
        queued = _states("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T")
        self._note({job: queued[job] for job in open_jobs if job in queued})
        if not (missing := [job for job in open_jobs if job not in queued]):
            return
        try:
            ended = _states("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(missing))
        except NoAnswer as error:
            waited_s = time.time() - (self._silent_since or time.time())
            if waited_s < WAIT_FOR_ACCOUNTS_S and not any(words in str(error) for words in NO_ACCOUNTS):
                raise
            ended = {}
        self._note({job: ended.get(job, FORGOTTEN) for job in missing})

    def _note(self, states: Mapping[str, str]) -> None:
        for job, state in states.items():
            self._info_dict[job] = {"State": state}
            if state in (*TAKEN, *ENDED, "CANCELLED", FORGOTTEN):
                self._finished.add(job)


class NoAnswer(RunnerError):
    """A command of Slurm has failed; its text says how."""


def _states(*command: str) -> dict[str, str]:
    """Job ids and the first word of their states, as a command lists them.

    Raises:
        NoAnswer: the command failed, hung or is not there.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} gave no answer within {COMMAND_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise NoAnswer(str(error)) from error
    if answer.returncode != 0:
        raise NoAnswer(answer.stderr.strip() or f"{command[0]} ended with code {answer.returncode}")
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
