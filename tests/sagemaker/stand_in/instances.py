"""Instance types with their GPUs and price, and the `nvidia-smi` that a host of a type finds on its PATH."""

from __future__ import annotations

import dataclasses
import shlex
import uuid
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class InstanceType:
    """The hardware of one instance."""

    gpus: int
    gpu: str = ""
    memory_mib: int = 0
    """Memory of each GPU."""
    price: float = 1.0
    """US dollars per hour of training; round figures, not AWS's."""


A10G = ("NVIDIA A10G", 23028)
L4 = ("NVIDIA L4", 23034)
L40S = ("NVIDIA L40S", 46068)
A100 = ("NVIDIA A100-SXM4-40GB", 40960)
A100_80 = ("NVIDIA A100-SXM4-80GB", 81920)
H100 = ("NVIDIA H100 80GB HBM3", 81559)
T4 = ("Tesla T4", 15360)


def instance_types() -> dict[str, InstanceType]:
    """The types that the stand-in knows; a test may add its own."""
    types = {
        "ml.m5.large": InstanceType(0, price=0.1),
        "ml.m5.xlarge": InstanceType(0, price=0.25),
        "ml.c5.xlarge": InstanceType(0, price=0.2),
        "ml.g4dn.xlarge": InstanceType(1, *T4, 0.7),
        "ml.g4dn.12xlarge": InstanceType(4, *T4, 5.0),
        "ml.p4d.24xlarge": InstanceType(8, *A100, 37.0),
        "ml.p4de.24xlarge": InstanceType(8, *A100_80, 47.0),
        "ml.p5.4xlarge": InstanceType(1, *H100, 8.0),
        "ml.p5.48xlarge": InstanceType(8, *H100, 63.0),
    }
    for family, gpu, price in (("g5", A10G, 1.4), ("g6", L4, 1.1), ("g6e", L40S, 2.4)):
        for size, gpus, factor in (("xlarge", 1, 1), ("2xlarge", 1, 1.1), ("4xlarge", 1, 1.4), ("8xlarge", 1, 2)):
            types[f"ml.{family}.{size}"] = InstanceType(gpus, *gpu, price * factor)
        for size, gpus, factor in (("12xlarge", 4, 5), ("24xlarge", 4, 7), ("48xlarge", 8, 14)):
            types[f"ml.{family}.{size}"] = InstanceType(gpus, *gpu, price * factor)
    return types


def write_nvidia_smi(file: Path, instance: InstanceType, host: str) -> None:
    """Write a command that lists the type's GPUs, in the two forms that programs ask for; without a GPU, it fails."""
    identities = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"{file}/{host}/{index}")) for index in range(instance.gpus)]
    listed = [f"GPU {index}: {instance.gpu} (UUID: GPU-{name})" for index, name in enumerate(identities)]
    asked = [f"{index}, GPU-{name}, {instance.gpu}, {instance.memory_mib}" for index, name in enumerate(identities)]
    if instance.gpus:
        body = (
            'case "$*" in\n'
            f"-L|--list-gpus) printf '%s\\n' {shlex.join(listed)} ;;\n"
            "--query-gpu=index,uuid,name,memory.total\\ --format=csv,noheader,nounits)\n"
            f"  printf '%s\\n' {shlex.join(asked)} ;;\n"
            '*) echo "the stand-in\'s nvidia-smi does not know: $*" >&2; exit 2 ;;\n'
            "esac\n"
        )
    else:
        body = 'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."\nexit 9\n'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}")
    file.chmod(0o755)
