"""Training jobs as containers on this machine: the same image and contract as SageMaker's, without an account."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner.aws.names import Places
from runner.jobs.job import Job, read_job
from runner.jobs.queue import Queue
from runner.launchers.cluster import Gone, NoRoom, NotSubmitted, Order
from runner.launchers.lots import all_given_to
from runner.launchers.sagemaker.inputs import Inputs, environment
from runner.launchers.sagemaker.local.folders import FolderStorage
from runner.launchers.sagemaker.local.tree import Hosts
from runner.launchers.sagemaker.record import CLUSTER, log_file, record, recorded, unrecorded_names
from runner.launchers.sagemaker.request import CHECKPOINTS
from runner.launchers.sagemaker.results import Collector
from runner.parcel import CONTAINER_USER
from runner.paths import cache_dir, write_text
from runner.schema import SageMakerLauncher
from runner.system.machine import find_gpus
from runner.work import WORKER_NAME

log = logging.getLogger(__name__)

ENGINES = ("docker", "podman")
BUCKET = "local"
SHARED_MEMORY = "8g"
"""Memory through which a container's processes exchange data; the engines' own default is 64 MB."""
AWS_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL")
STOPPED_CODES = (137, 143)
CREATED = "created"
"""An engine's name for the state of a container that it could not start."""
START_TIMEOUT_S = 600
SECURITY = "{{.SecurityOptions}}"


@lru_cache
def engine() -> str | None:
    """The program that runs containers here; None if none works."""
    return next((name for name in ENGINES if shutil.which(name) and _works(name)), None)


def _works(program: str) -> bool:
    """Whether the engine answers: its client may be installed without a running daemon."""
    try:
        return subprocess.run([program, "ps"], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass(frozen=True)
class Container:
    """The state of a container, in the engine's words."""

    status: str
    code: int
    """Its exit code; 0 until it ends."""
    ran_out_of_memory: bool
    """Whether the system killed something in it for lack of memory."""


class LocalContainers:
    """Containers in place of training jobs.

    Args:
        image: the image they run, by a name that the engine knows.
        program: the engine.
    """

    name = CLUSTER
    shares_files = False

    def __init__(self, settings: SageMakerLauncher, *, image: str, program: str) -> None:
        self.settings, self.image, self.program = settings, image, program
        self.root = cache_dir() / "sagemaker-local"
        self.places = Places(BUCKET, settings.prefix)
        self.storage = FolderStorage(self.root)
        self.inputs = Inputs(settings, self.storage, self.places, os.environ.get("AWS_REGION", ""))
        self.collector = Collector(self.storage, self.places)
        self._gone: dict[str, Gone] = {}

    def submit(self, order: Order, *, after: str | None) -> str:
        """Start the containers of a training job; returns its name."""
        running = self._run("ps", "--quiet", "--filter", "label=lora-runner").split()
        if after is not None or len(running) >= (self.settings.concurrency or 1) * self.settings.instances:
            raise NoRoom("containers of this machine run one after the other; launcher.concurrency=N lets more run")
        jobs = [read_job(folder) for folder in Queue(order.queue).read()[0]]
        name = next(unrecorded_names(order, jobs[0].folder.parent))
        place = self.places.training_job(order.title, name)
        hosts = self._hosts(name)
        states = self._states(name, hosts)
        if len(states) == len(hosts.names) and all(each.status != CREATED for each in states.values()):
            return name  # started by an earlier command
        self._remove(name, hosts)  # containers that did not start, or not all of them, would never end
        channels = self.inputs.bring(jobs, order, place)
        hosts.lay(self.storage, place, channels)
        hosts.restore(self.storage, place)
        network = self._network(name) if len(hosts.names) > 1 else []
        for host in hosts.names:
            own = [*network, "--network-alias", host] if network else []
            mounts = hosts.mounts(host, self.storage, place, channels)
            self._start(f"{name}-{host}", host, [*own, *mounts], name)
        self._gone.pop(name, None)
        return name

    def _start(self, container: str, host: str, options: Sequence[str], name: str) -> None:
        variables = {"TRAINING_JOB_NAME": name, WORKER_NAME: name} | environment(self.settings)
        user = self._user_options()
        if not user and os.geteuid() != 0:
            variables[CONTAINER_USER] = "root"
        if self.settings.wandb_secret or self.settings.hub_secret:
            variables |= {key: value for key in AWS_VARIABLES if (value := os.environ.get(key))}
        # By name alone: every user of the machine can read a command line.
        told = [word for key in variables for word in ("--env", key)]
        gpus = self._gpu_options() if find_gpus() else []
        self._run(
            *("run", "--detach", "--name", container, "--hostname", host, "--label", "lora-runner"),
            *("--shm-size", SHARED_MEMORY, *user, *gpus, *told, *options, self.image, "train"),
            extra=variables,
        )

    def _gpu_options(self) -> list[str]:
        return ["--gpus", "all"] if self.program == "docker" else ["--device", "nvidia.com/gpu=all"]

    def _user_options(self) -> list[str]:
        """Options that make files belong to this user; the root of a rootless engine is this user already."""
        if os.geteuid() == 0 or self.program != "docker" or "rootless" in self._run("info", "--format", SECURITY):
            return []
        return ["--user", f"{os.geteuid()}:{os.getegid()}"]

    def _network(self, name: str) -> list[str]:
        self._run("network", "create", name)
        return ["--network", name]

    def gone(self, workers: Mapping[str, Sequence[Job]]) -> Mapping[str, Gone]:
        """Those whose containers have all ended; what jobs have written is brought into their folders first."""
        for name, jobs in workers.items():
            if name not in self._gone:
                # The results at its end are brought once, for all its jobs, whichever are asked about.
                self._gone |= {name: found} if (found := self._look(name, all_given_to(name, jobs))) else {}
        return {name: self._gone[name] for name in workers if name in self._gone}

    def _look(self, name: str, jobs: Sequence[Job]) -> Gone | None:
        folder = jobs[0].folder.parent
        if known := recorded(folder, name):
            return known
        hosts, place = self._hosts(name), self.places.training_job(jobs[0].settings.name, name)
        states = self._states(name, hosts)
        self._keep_logs(name, hosts, log_file(folder, name))
        is_over = not states or all(each.status == "exited" for each in states.values())
        began = self.collector.look(jobs, place, everything=is_over)
        if not is_over:
            return None
        self.collector.keep_cache(jobs, place / CHECKPOINTS)
        gone = self._how(hosts, states, began=began)
        record(jobs, self._described(name, gone), gone, usd_per_hour=None)
        self._remove(name, hosts)
        return gone

    def _remove(self, name: str, hosts: Hosts) -> None:
        for host in hosts.names:
            self._run("rm", "--force", f"{name}-{host}", fails=False)
        if len(hosts.names) > 1:
            self._run("network", "rm", name, fails=False)

    @staticmethod
    def _how(hosts: Hosts, states: Mapping[str, Container], *, began: bool) -> Gone:
        codes = {each.code for each in states.values()}
        if not states:
            return Gone(words="is gone: somebody has removed its containers", reason="taken", began=began)
        if hosts.was_stopped:
            return Gone(words="was stopped", reason="cancelled", began=began)
        if codes == {0}:
            return Gone(words="has ended", began=began)
        reason = " ".join(hosts.failure().split())
        if not reason and any(each.ran_out_of_memory for each in states.values()):
            reason = "out of memory of this machine; lower launcher.pack, batch_size or resolution"
        if not reason and codes <= {0, *STOPPED_CODES}:
            return Gone(words="was stopped", reason="cancelled", began=began)
        return Gone(
            words=f"failed: AlgorithmError: {reason or 'no reason given'}, exit code: {max(codes)}", began=began
        )

    def _described(self, name: str, gone: Gone) -> dict[str, Any]:
        return {
            "TrainingJobName": name,
            "TrainingJobArn": None,
            "TrainingJobStatus": "Completed" if gone.words == "has ended" else "Failed",
            "FailureReason": gone.words,
            "AlgorithmSpecification": {"TrainingImage": self.image},
            "ResourceConfig": {"InstanceType": "local", "InstanceCount": self.settings.instances},
        }

    def _hosts(self, name: str) -> Hosts:
        return Hosts(self.root / "hosts" / name, self.settings.instances)

    def _states(self, name: str, hosts: Hosts) -> dict[str, Container]:
        """The existing containers, by host."""
        found = {}
        for host in hosts.names:
            said = self._run("inspect", f"{name}-{host}", fails=False)
            if said:
                state = json.loads(said)[0]["State"]
                killed = bool(state.get("OOMKilled"))
                found[host] = Container(str(state["Status"]), int(state["ExitCode"]), killed)
        return found

    def _keep_logs(self, name: str, hosts: Hosts, file: Path) -> None:
        before = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        lines, new = list[str](), list[str]()
        for host in hosts.names:
            head = f"{host}: " if len(hosts.names) > 1 else ""
            printed = self._run("logs", f"{name}-{host}", fails=False, merged=True).splitlines()
            known, own = [line for line in before if line.startswith(head)], [head + line for line in printed]
            new += own[len(known) :]
            lines += own if len(own) > len(known) else known  # removing a container removes its log
        if new:
            write_text(file, "".join(f"{line}\n" for line in lines))
            if self.settings.logs == "stream":
                for line in new:
                    log.info("%s | %s", name, line)

    def log(self, worker: str, folder: Path) -> Path:
        """The file with its output."""
        return log_file(folder.parent, worker)

    def cancel(self, workers: Sequence[str]) -> None:
        """Send a signal, on which jobs save."""
        for name in workers:
            self._hosts(name).note_stopped()
            for host in self._hosts(name).names:
                self._run("kill", "--signal", "TERM", f"{name}-{host}", fails=False)

    def how_to_cancel(self, workers: Sequence[str]) -> str:
        """The engine's own command."""
        hosts = [f"{name}-{host}" for name in workers for host in self._hosts(name).names]
        return " ".join([self.program, "stop", "--time", "120", *hosts])

    def _run(
        self, *arguments: str, fails: bool = True, merged: bool = False, extra: Mapping[str, str] | None = None
    ) -> str:
        """The engine's output; empty if it failed and that is acceptable.

        Raises:
            NotSubmitted: it failed.
        """
        done = subprocess.run(
            [self.program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=START_TIMEOUT_S,
            env={**os.environ, **(extra or {})},
            check=False,
        )
        if done.returncode and fails:
            raise NotSubmitted(" ".join((done.stderr or done.stdout).split())[-400:])
        return "" if done.returncode else done.stdout


def preflight(settings: SageMakerLauncher, image: str | None) -> list[str]:
    """What keeps containers from running here."""
    program = engine()
    if program is None:
        return [f"launcher.local = true: neither {' nor '.join(ENGINES)} works on this machine; install or start one"]
    if image is None:
        return [
            "launcher.image = null: nothing was built or pushed here yet; run python -m runner.image build, and name it"
        ]
    there = subprocess.run([program, "image", "inspect", image], capture_output=True, check=False).returncode == 0
    if not there:
        return [f"launcher.image = {image!r}: {program} has no such image; python -m runner.image build, or pull it"]
    return []
