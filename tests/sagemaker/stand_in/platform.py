"""Shared by all parts: where the stand-in listens, how patient it is, and clients that act as AWS itself."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import boto3
from botocore.config import Config

PLATFORM_KEY = "PLATFORM"
"""The access key for AWS's own calls, which are neither recorded nor refused."""
ACCOUNT = "123456789012"
"""moto's account."""


class Network(Protocol):
    """The network of containers, in which this machine has an address."""

    @property
    def gateway(self) -> str:
        """The address."""


@dataclasses.dataclass
class Settings:
    """How the stand-in behaves."""

    root: Path
    """The folder for the trees of hosts."""
    region: str = "us-east-1"
    backend: Literal["processes", "containers"] = "processes"
    engine: tuple[str, ...] = ("docker",)
    """The command that runs containers, such as `docker` or `podman`."""
    ml_root: Literal["auto", "bound", "variable"] = "auto"
    """How a host's process finds its tree: bound on /opt/ml (needs root), or by the variable SM_ML_ROOT."""
    grace_s: float = 120.0
    """From SIGTERM to SIGKILL; AWS's is 120 s."""
    capacity_patience_s: float = 0.3
    """How long a job without managed spot waits for an instance before it fails."""
    sync_every_s: float = 0.2
    """How often checkpoints are checked."""
    tuning_checkpoints: Literal["shared", "apart"] = "shared"
    """Whether training jobs of a search share the checkpoint folder, or each has its own subfolder, named after it."""
    spot_saving: float = 0.7
    keep_trees: bool = False
    """Whether to keep the trees of ended jobs for inspection."""


@functools.cache
def _session() -> boto3.Session:
    """One session for all stand-ins of a process: each session reads botocore's large service descriptions again."""
    return boto3.Session()


class Platform:
    """The settings and AWS's own clients."""

    def __init__(self, settings: Settings, port: int, listen: Callable[[str, int], int]) -> None:
        self.settings, self.port, self.url = settings, port, f"http://127.0.0.1:{port}"
        self._listen, self._addresses = listen, {"127.0.0.1"}
        self.closing = threading.Event()
        self._session = _session()
        self._lock = threading.Lock()

    def client(self, service: str, key: str = PLATFORM_KEY, secret: str = "x", **extra: Any) -> Any:
        """A boto3 client that talks to the stand-in."""
        quick = Config(retries={"max_attempts": 2}, connect_timeout=5, read_timeout=30, max_pool_connections=50)
        with self._lock:  # boto3 sessions are not thread-safe
            return self._session.client(
                service,
                endpoint_url=self.url,
                region_name=self.settings.region,
                aws_access_key_id=key,
                aws_secret_access_key=secret,
                config=quick,
                **extra,
            )

    def url_from(self, network: Network | None) -> str:
        """The stand-in's URL for a host: from a container network, at this machine's address there."""
        if network is None:
            return self.url
        with self._lock:
            if network.gateway not in self._addresses:
                self._listen(network.gateway, self.port)
                self._addresses.add(network.gateway)
        return f"http://{network.gateway}:{self.port}"

    @functools.cached_property
    def s3(self) -> Any:
        """The object store."""
        return self.client("s3")

    @functools.cached_property
    def logs(self) -> Any:
        """CloudWatch Logs."""
        return self.client("logs")

    @functools.cached_property
    def iam(self) -> Any:
        """Roles."""
        return self.client("iam")

    @functools.cached_property
    def sts(self) -> Any:
        """Credentials of roles."""
        return self.client("sts")

    @functools.cached_property
    def ecr(self) -> Any:
        """Repositories of images."""
        return self.client("ecr")
