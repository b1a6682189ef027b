"""One worker spread over all hosts of a training job: each starts its part, and the first one writes the results."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runner.container.tree import Host
from runner.errors import Interrupted, RunnerError, SettingsError
from runner.jobs.job import Job, State, state_of
from runner.jobs.queue import Queue
from runner.launchers.ending import ending
from runner.launchers.settle import fail, is_dead
from runner.launchers.worker import Node, Worker
from runner.parcel import Parcel
from runner.paths import ExperimentPaths
from runner.plan import pack_key
from runner.system.machine import Machine

log = logging.getLogger(__name__)

POLL_S = 0.25
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


class Spread:
    """This host's part of the work.

    Args:
        jobs: all jobs, in folders that this host's processes may read; only those of the first host write to them.
        port: on the first host, for the first pack; the following packs take the next ports.
    """

    def __init__(
        self, jobs: Sequence[Job], parcel: Parcel, *, host: Host, machine: Machine, logs: Path, port: int
    ) -> None:
        self.parcel, self.host, self.machine, self.port = parcel, host, machine, port
        self.log = ExperimentPaths(logs).worker_log(host.name)
        self.processes = _processes(parcel.processes, host, machine)
        self._packs: dict[object, list[Job]] = {}
        for job in jobs:
            self._packs.setdefault(pack_key(job), []).append(job)
        self._worker: Worker | None = None
        self._stopping = False

    def run(self, folder: Path) -> None:
        """Work through one pack after the other; all hosts have the same ones, in the same order.

        Args:
            folder: for this host's lists of jobs meanwhile.

        Raises:
            Interrupted: a signal came; the jobs in training are saved.
            RunnerError: the processes of this host have crashed.
        """
        if self.host.interface:
            for name in INTERFACES:
                os.environ.setdefault(name, self.host.interface)
        with self._signals():
            for number, jobs in enumerate(self._packs.values()):
                queue = Queue(folder / f"{number}.json")
                queue.write([job.folder for job in jobs], is_open=False)
                code = self._work(queue.file, self.port + number)
                stopped = self._stopping or any(state_of(job.folder) is State.INTERRUPTED for job in jobs)
                if self.host.is_first:
                    self._settle(jobs, code, stopped=stopped)
                elif code and not stopped:
                    raise RunnerError(f"on {self.host.name} {ending(code, self.log)}")
                if stopped:
                    raise Interrupted("stopped by a signal")

    def _work(self, queue: Path, port: int) -> int:
        places = [device.selector for device in self.machine.devices[: self.processes]]
        self._worker = Worker(
            queue,
            at_once=self.parcel.at_once,
            places=places if self.machine.has_gpus else ["0"] * self.processes,
            machine=self.machine,
            device=self.parcel.device,
            log=self.log,
            at_most=1,
            node=Node(self.host.rank, len(self.host.names), self.host.names[0], port),
        )
        if self._stopping:  # the signal came while it was being started
            self._worker.stop()
        while self._worker.exit_code is None:
            time.sleep(POLL_S)
        return self._worker.exit_code

    def _settle(self, jobs: Sequence[Job], code: int, *, stopped: bool) -> None:
        """Give jobs the states that their processes could no longer write."""
        for job in jobs:
            if is_dead(job):
                fail(job, ending(code, self.log))
            elif code and not stopped and state_of(job.folder) is State.PENDING:
                fail(job, ending(code, self.log, when=" before this job began"))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: object) -> None:
            if not self._stopping:
                self._stopping = True
                log.info("stopping: every job saves a checkpoint first")
                if self._worker is not None:
                    self._worker.stop()

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _processes(count: int, host: Host, machine: Machine) -> int:
    """Processes on each host.

    Raises:
        SettingsError: they cannot be spread evenly, or there are fewer GPUs.
    """
    hosts = len(host.names)
    if count % hosts:
        raise SettingsError(f"launcher.processes = {count}: cannot be spread evenly over {hosts} hosts")
    if machine.has_gpus and count // hosts > len(machine.devices):
        raise SettingsError(f"launcher.processes = {count}: {host.name} has {len(machine.devices)} GPUs for its part")
    return count // hosts
