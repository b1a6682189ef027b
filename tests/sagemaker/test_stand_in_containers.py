"""The stand-in with real containers: an image of one static program, and hosts that find each other on a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sagemaker.stand_in import Image, StandIn

PROGRAMS = ("sh", "cat", "ping", "grep", "sleep", "hostname", "true")
HOST = (
    "until said=$(ping -c 1 -w 5 algo-2 2>&1); do sleep 1; done; echo $said | grep -o '1 packets received'; "
    # The other host must still be running to be found.
    "cat /opt/ml/input/data/data/x; echo; hostname > /opt/ml/model/$(hostname); sleep 4"
)
SAVES = "trap 'echo saved > /opt/ml/checkpoints/state; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
# Needed on machines that may not raise limits, or that have version 1 of control groups.
CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Podman with its own store, which contains the image `tiny`."""
    busybox = shutil.which("busybox")
    if os.geteuid() != 0 or busybox is None or shutil.which("podman") is None:
        # The engine belongs to the machine, not the project; test_stand_in.py runs the same jobs as processes.
        pytest.skip("needs root, podman and busybox-static")
    (tmp_path / "containers.conf").write_text(CONF)
    monkeypatch.setenv("CONTAINERS_CONF", str(tmp_path / "containers.conf"))
    programs = tmp_path / "image" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(busybox, programs / "busybox")
    for name in PROGRAMS:
        (programs / name).symlink_to("busybox")
    store = tempfile.mkdtemp()  # podman does not accept long paths
    engine = ("podman", "--root", store, "--runroot", f"{store}/run", "--storage-driver", "vfs")
    archive = shutil.make_archive(str(tmp_path / "tiny"), "tar", tmp_path / "image")
    made = subprocess.run([*engine, "import", archive, "localhost/tiny:1"], capture_output=True, text=True, check=False)
    tried = subprocess.run(
        [*engine, "run", "--rm", "localhost/tiny:1", "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode == 0:
        yield engine
    shutil.rmtree(store)
    if tried.returncode:
        # There is an engine, but the kernel does not let it work, as inside many containers.
        pytest.skip(f"containers do not run here: {made.stderr}{tried.stderr}")


def submit(aws: StandIn, name: str, script: str, hosts: int) -> None:
    """Create a job of the image `tiny` that runs a script."""
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{aws.bucket}/in/"}
    aws.client("sagemaker").create_training_job(
        TrainingJobName=name,
        RoleArn=aws.role,
        AlgorithmSpecification={
            "TrainingImage": aws.add_image("tiny:1", Image((), reference="localhost/tiny:1")),
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["/bin/sh"],
            "ContainerArguments": ["-c", script],
        },
        InputDataConfig=[{"ChannelName": "data", "DataSource": {"S3DataSource": source}}],
        OutputDataConfig={"S3OutputPath": f"s3://{aws.bucket}/out", "CompressionType": "NONE"},
        ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": hosts, "VolumeSizeInGB": 10},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
        CheckpointConfig={"S3Uri": f"s3://{aws.bucket}/checkpoints"},
    )


def test_containers_are_hosts(tmp_path: Path, engine: tuple[str, ...]) -> None:
    with StandIn(tmp_path / "instances", backend="containers", engine=engine, grace_s=5) as aws:
        aws.s3.put_object(Bucket=aws.bucket, Key="in/x", Body=b"content")
        submit(aws, "two", HOST, hosts=2)
        job = aws.wait("two")
        assert job.status == "Completed", (job.failure_reason, aws.printed("two"))
        printed = aws.printed("two")
        assert printed.count("1 packets received") == printed.count("content") == 2
        assert aws.keys("out/") == ["out/two/output/model/algo-1", "out/two/output/model/algo-2"]

        submit(aws, "one", SAVES, hosts=1)
        while "ready" not in aws.printed("one"):
            assert not aws.jobs["one"].has_ended, aws.printed("one")
        aws.client("sagemaker").stop_training_job(TrainingJobName="one")
        assert aws.wait("one").status == "Stopped"
        assert aws.keys("checkpoints/") == ["checkpoints/state"]
    assert aws.faults == []
    assert subprocess.run([*engine, "ps", "-aq"], capture_output=True, text=True, check=True).stdout == ""
