"""A worker: the process, or group of processes, that trains the jobs of one queue on some places of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner import PACKAGE
from runner.jobs.job import Job
from runner.jobs.lock import last_holder
from runner.launchers.forked import CAN_FORK, Forked
from runner.system.machine import Machine, threads_of
from runner.system.signals import runs
from runner.work import LAUNCHER_PID

FORKED_FROM = 2
"""This many simultaneous workers, or more, are forked. A single one would share nothing and cost 80 MB more."""


@dataclass(frozen=True)
class Node:
    """This machine among the several that a worker spans; they find each other at the first one."""

    rank: int
    nodes: int
    address: str
    """Name of the first machine."""
    port: int

    @property
    def arguments(self) -> list[str]:
        """torch's arguments about it, apart from the number of machines."""
        return ["--node_rank", str(self.rank), "--master_addr", self.address, "--master_port", str(self.port)]


class Worker:
    """A running `python -m runner.work`.

    Args:
        queue: the file it takes jobs from.
        at_once: the most jobs it trains together.
        places: the GPUs or CPU shares it may use, with one process for each.
        machine: the machine that the places belong to.
        log: the file for its output; None shares this process's terminal, so that Ctrl-C reaches it directly, except
            for a group: half a minute after a Ctrl-C, torchrun kills what is still saving, and writes a page about it.
        at_most: how many workers, sharing the cores, may run at the same time.
        node: which part of a worker on several machines this is; None for a whole one.
    """

    def __init__(
        self,
        queue: Path,
        *,
        at_once: int,
        places: Sequence[str],
        machine: Machine,
        device: str,
        log: Path | None,
        at_most: int,
        node: Node | None = None,
    ) -> None:
        self.places, self.log = list(places), log
        self._is_group = len(self.places) > 1 or node is not None
        threads = threads_of(machine.cores, at_most * len(places))
        environment = worker_environment(threads)
        if machine.has_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(places)
            # The driver's tool numbers GPUs in this order; CUDA by default starts with the fastest.
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        self.process: subprocess.Popen[bytes] | Forked
        if CAN_FORK and at_most >= FORKED_FROM and not machine.has_gpus and not self._is_group:
            options = worker_options(queue, at_once=at_once, device=device)
            with suppress(OSError):  # TMPDIR is too long for a socket's name: the worker then loads its own libraries
                self.process = Forked(options, environment=environment, log=log)
                return
        command = worker_command(
            queue, at_once=at_once, processes=len(places), device=device, node=node, notes=queue.parent
        )
        if self._is_group:
            # torchrun treats any other code as a crash and writes a page about it.
            command.append("--only-crash-fails")
        output = None if log is None else log.open("ab")
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=log is not None or self._is_group,
                env=environment,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def exit_code(self) -> int | None:
        """How it ended, as `subprocess` gives it; None while it runs."""
        return self.process.poll()

    def had(self, job: Job) -> bool:
        """Whether this worker, which has ended, was the last to hold a job."""
        holder = last_holder(job.folder)
        if holder is None or not self._is_group:
            return holder == self.process.pid
        # Which processes torchrun had started is no longer known.
        return holder != os.getpid() and not runs(holder)

    def stop(self, *, at_once: bool = False, hung_up: bool = False) -> None:
        """Ask it to end after every job has saved its work. May be called again: Ctrl-C also reaches it directly.

        Args:
            at_once: do not let it finish what it is doing, if it has been asked before.
            hung_up: the terminal that it may have been writing to is gone.
        """
        number = signal.SIGINT if at_once else signal.SIGHUP if hung_up else signal.SIGTERM
        # torchrun would kill its processes half a minute later, even if saving takes longer.
        members = _children(self.process.pid) if self._is_group else []
        for pid in members:
            with suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, number)
        if not members:
            self.process.send_signal(number)


def _children(pid: int) -> list[int]:
    """The child processes of a process; none if the system does not say."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except OSError:
        return []


def worker_command(
    queue: Path, *, at_once: int, processes: int, device: str, node: Node | None = None, notes: Path | None = None
) -> list[str]:
    """The command that trains the jobs of a queue; the same in a container as here.

    Args:
        processes: the number of processes on this machine.
        node: which of several machines this is.
        notes: a folder, removed later, for torchrun's own files; None lets it leave them in the system's.
    """
    python, *worker = worker_arguments(queue, at_once=at_once, device=device)
    noted = ["--log_dir", str(notes)] if notes is not None else []
    if node is not None:
        return [python, *torch_arguments(processes, nodes=node.nodes), *node.arguments, *noted, *worker]
    return [python, *worker] if processes == 1 else [python, *torch_arguments(processes), *noted, *worker]


def worker_arguments(queue: Path, *, at_once: int, device: str) -> list[str]:
    """The same for a single process; a launcher of several is inserted after the interpreter."""
    return [sys.executable, "-m", "runner.work", *worker_options(queue, at_once=at_once, device=device)]


def worker_options(queue: Path, *, at_once: int, device: str) -> list[str]:
    """The options of `python -m runner.work`."""
    return ["--device", device, "--at-once", str(at_once), "--queue", str(queue)]


def torch_arguments(processes: int, *, nodes: int = 1) -> list[str]:
    """The launcher of several processes on each node; several nodes must also be told where to meet."""
    # Not `accelerate launch`: with --cpu it starts a single process whatever --num_processes says (1.15).
    together = ["--standalone"] if nodes == 1 else ["--nnodes", str(nodes)]
    return ["-m", "torch.distributed.run", *together, "--nproc_per_node", str(processes)]


def worker_environment(threads: int) -> dict[str, str]:
    """The environment variables of a worker's process on this machine."""
    return worker_defaults(threads) | os.environ | {"PYTHONPATH": python_path(), LAUNCHER_PID: str(os.getpid())}


def python_path() -> str:
    """PYTHONPATH of a worker: everything importable here, including relative folders and an uninstalled checkout."""
    paths = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(os.path.abspath(path) for path in dict.fromkeys(paths) if path)


def worker_defaults(threads: int | None) -> dict[str, str]:
    """Environment variables for a worker, unless the user has set them; if `threads` is None, the cluster decides."""
    # By default, GNU OpenMP's threads spin for milliseconds before they sleep: on shared cores, small operations then
    # take ten times as long or more. This many spins cost 5 % on idle cores (both measured on two cores).
    named = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return named | {"GOMP_SPINCOUNT": "30000", "TOKENIZERS_PARALLELISM": "false"}
