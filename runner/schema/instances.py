"""SageMaker's instance types and what each contains, as plain facts.

For planning only: a container counts the GPUs that it finds. GPU memory is as the driver reports it.
"""

from __future__ import annotations

import dataclasses
import difflib

GPUS = {
    "g4dn": ("Tesla T4", 16.1),
    "g5": ("NVIDIA A10G", 24.1),
    "g6": ("NVIDIA L4", 24.1),
    "g6e": ("NVIDIA L40S", 48.3),
    "g7e": ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 102.6),
    "p4d": ("NVIDIA A100-SXM4-40GB", 42.9),
    "p4de": ("NVIDIA A100-SXM4-80GB", 85.9),
    "p5": ("NVIDIA H100 80GB HBM3", 85.5),
    "p5e": ("NVIDIA H200", 150.8),
    "p5en": ("NVIDIA H200", 150.8),
    "p6-b200": ("NVIDIA B200", 192.0),
}
"""For each family with GPUs: their name as the driver reports it, and the memory of each (1e9 bytes)."""

SIZES: dict[str, dict[str, tuple[int, int, int]]] = {
    "g4dn": {
        "xlarge": (1, 4, 16), "2xlarge": (1, 8, 32), "4xlarge": (1, 16, 64), "8xlarge": (1, 32, 128),
        "12xlarge": (4, 48, 192), "16xlarge": (1, 64, 256),
    },
    "g5": {
        "xlarge": (1, 4, 16), "2xlarge": (1, 8, 32), "4xlarge": (1, 16, 64), "8xlarge": (1, 32, 128),
        "12xlarge": (4, 48, 192), "16xlarge": (1, 64, 256), "24xlarge": (4, 96, 384), "48xlarge": (8, 192, 768),
    },
    "g6": {
        "xlarge": (1, 4, 16), "2xlarge": (1, 8, 32), "4xlarge": (1, 16, 64), "8xlarge": (1, 32, 128),
        "12xlarge": (4, 48, 192), "16xlarge": (1, 64, 256), "24xlarge": (4, 96, 384), "48xlarge": (8, 192, 768),
    },
    "g6e": {
        "xlarge": (1, 4, 32), "2xlarge": (1, 8, 64), "4xlarge": (1, 16, 128), "8xlarge": (1, 32, 256),
        "12xlarge": (4, 48, 384), "16xlarge": (1, 64, 512), "24xlarge": (4, 96, 768), "48xlarge": (8, 192, 1536),
    },
    "g7e": {
        "2xlarge": (1, 8, 64), "4xlarge": (1, 16, 128), "8xlarge": (1, 32, 256), "12xlarge": (2, 48, 512),
        "24xlarge": (4, 96, 1024), "48xlarge": (8, 192, 2048),
    },
    "p4d": {"24xlarge": (8, 96, 1152)},
    "p4de": {"24xlarge": (8, 96, 1152)},
    "p5": {"4xlarge": (1, 16, 256), "48xlarge": (8, 192, 2048)},
    "p5e": {"48xlarge": (8, 192, 2048)},
    "p5en": {"48xlarge": (8, 192, 2048)},
    "p6-b200": {"48xlarge": (8, 192, 2048)},
    "c5": {"large": (0, 2, 4), "xlarge": (0, 4, 8), "2xlarge": (0, 8, 16), "4xlarge": (0, 16, 32)},
    "m5": {
        "large": (0, 2, 8), "xlarge": (0, 4, 16), "2xlarge": (0, 8, 32), "4xlarge": (0, 16, 64),
        "12xlarge": (0, 48, 192),
    },
}  # fmt: skip
"""GPUs, virtual processors and GiB of host memory."""


WITH_DISKS = frozenset({"g4dn", "g5", "g6", "g6e", "g7e", "p4d", "p4de", "p5", "p5e", "p5en", "p6-b200"})
"""Families with NVMe disks of their own, according to AWS's table of instance store volumes; others only have volumes.
"""


@dataclasses.dataclass(frozen=True)
class Instance:
    """One instance type."""

    name: str
    gpus: int
    gpu_name: str
    """Empty without GPUs."""
    gpu_memory_gb: float
    """Memory of each of its GPUs (1e9 bytes); 0 without any."""
    cores: int
    memory_gb: float
    """Of the host (1e9 bytes)."""
    has_disks: bool
    """NVMe disks of its own; its hardware encrypts them, and a training job may not name a key for them."""


def _types() -> dict[str, Instance]:
    found = {}
    for family, sizes in SIZES.items():
        gpu_name, gpu_memory_gb = GPUS.get(family, ("", 0.0))
        for size, (gpus, processors, gibibytes) in sizes.items():
            name = f"ml.{family}.{size}"
            found[name] = Instance(
                name, gpus, gpu_name, gpu_memory_gb, processors, gibibytes * 2**30 / 1e9, family in WITH_DISKS
            )
    return found


INSTANCES = _types()


def instance_fault(name: str) -> str | None:
    """What is wrong with the name of an instance type; None if nothing is."""
    if name in INSTANCES:
        return None
    near = difflib.get_close_matches(name, INSTANCES, n=3) or ["ml.g5.xlarge", "ml.g6e.xlarge"]
    return f"is not a known instance type; did you mean {' or '.join(near)}?"
