"""One host of a job as a real container, run by podman or docker; the hosts of a job share their own network."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

from .hosts import Entry, Host
from .images import Image
from .platform import Settings


class Network:
    """A network of the container engine, in which hosts find each other by name."""

    def __init__(self, engine: tuple[str, ...]) -> None:
        self.engine, self.name = engine, f"stand-in-{uuid.uuid4().hex[:10]}"
        self._run("network", "create", self.name)

    @property
    def gateway(self) -> str:
        """The address of this machine in the network."""
        (found,) = json.loads(self._run("network", "inspect", self.name))
        if "subnets" in found:  # podman
            return str(found["subnets"][0]["gateway"])
        return str(found["IPAM"]["Config"][0]["Gateway"])

    def close(self) -> None:
        """Remove the network."""
        subprocess.run([*self.engine, "network", "rm", "-f", self.name], capture_output=True, check=False)

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self.engine, *arguments], capture_output=True, text=True, check=True).stdout


class ContainerHost(Host):
    """A host that is a container."""

    def __init__(self, settings: Settings, name: str, folder: Path, names: list[str], network: Network) -> None:
        super().__init__(settings, name, folder, names)
        self.network = network
        self.container = f"{network.name}-{name}"

    @property
    def interface(self) -> str:
        """The interface of the job's network."""
        return "eth0"

    def start(self, image: Image, entry: Entry, environment: dict[str, str]) -> Any:
        """Start the container; returns its output as a pipe."""
        run = [*self.settings.engine, "run", "--rm", "--name", self.container, "--hostname", self.name]
        run += ["--network", self.network.name, "--network-alias", self.name, "--shm-size", "2g"]
        run += ["-v", f"{self.ml}:/opt/ml", "-v", f"{self.folder}/bin/nvidia-smi:/usr/local/bin/nvidia-smi:ro"]
        run += [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        entrypoint, arguments = entry
        if entrypoint:
            run += ["--entrypoint", entrypoint[0]]
        self.process = subprocess.Popen(
            [*run, image.reference, *entrypoint[1:], *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self.process.stdout

    def terminate(self) -> None:
        """Send SIGTERM to the container's PID 1."""
        self._engine("kill", "--signal", "TERM", self.container)

    def kill(self) -> None:
        """End the container."""
        if self.process is not None and self.process.poll() is None:
            self._engine("kill", "--signal", "KILL", self.container)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:  # the engine's client hangs: its container is removed below
                self.process.kill()
                self.process.wait()

    def close(self) -> None:
        """Leave no container behind."""
        self.kill()
        self._engine("rm", "-f", self.container)

    def _engine(self, *arguments: str) -> None:
        subprocess.run([*self.settings.engine, *arguments], capture_output=True, check=False)
