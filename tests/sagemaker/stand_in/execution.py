"""The life of a job: wait for instances, prepare hosts, run them, see how they end; if spot was interrupted, again."""

from __future__ import annotations

import shutil
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .account import Account
from .capacity import CAPACITY_ERROR
from .checkpoints import CheckpointFolder
from .containers import ContainerHost, Network
from .hosts import Host
from .images import Image, entry_of
from .instances import InstanceType
from .jobs import TrainingJob
from .layout import JobError, lay_out, local_path
from .log_streams import TRAINING_GROUP, LogStream, create_group
from .s3_files import upload_results

POLL_S = 0.05
AFTER_A_FAILURE_S = 5.0
"""What the other hosts of a job get once one has failed."""
REASON_CHARACTERS = 1024


class Execution(threading.Thread):
    """Runs one job to its end."""

    def __init__(
        self,
        account: Account,
        job: TrainingJob,
        image: Image,
        instance: InstanceType,
        ended: Callable[[TrainingJob], None],
    ) -> None:
        """`ended` is called for a job that completes, before its status says so."""
        super().__init__(daemon=True, name=f"job {job.name}")
        self.platform, self.permissions, self.capacity = account.platform, account.permissions, account.capacity
        self.job, self.image, self.instance, self.ended = job, image, instance, ended
        self.faults = account.faults
        self.folder = account.platform.settings.root / job.name
        self.hosts: list[Host] = []
        self.checkpoints: list[CheckpointFolder] = []
        self.first_failed: Host | None = None
        self._network: Network | None = None

    def run(self) -> None:
        """Run until the job has ended, however it ends."""
        job = self.job
        try:
            while self._wait_for_instances():
                how = self._attempt()
                if how != "Interrupted":
                    self._finish(how)
                    break
                job.interrupt.clear()
                job.to("InProgress", "Interrupted")
                job.to("InProgress", "Starting")
        except JobError as error:
            job.fail(str(error))
        except Exception as error:  # noqa: BLE001
            if not self.platform.closing.is_set():
                self.faults.append(traceback.format_exc())
            job.fail(f"InternalServerError: {type(error).__name__}: {error}")
        finally:
            self._close_hosts()
            if not self.platform.settings.keep_trees:
                shutil.rmtree(self.folder, ignore_errors=True)
            job.finished.set()

    # Before it runs

    def _wait_for_instances(self) -> bool:
        """Wait until there is capacity; False if the job ended instead."""
        job, began_s = self.job, time.monotonic()
        while not self.capacity.has(job.instance_type):
            if job.stop.is_set() or self.platform.closing.is_set():
                break
            if job.spot and self._waited_too_long():
                job.to("Stopped", "MaxWaitTimeExceeded")
                return False
            if not job.spot and time.monotonic() - began_s > self.platform.settings.capacity_patience_s:
                self.capacity.count_failure(job.instance_type)
                raise JobError(CAPACITY_ERROR)
            time.sleep(POLL_S)
        if job.stop.is_set() or self.platform.closing.is_set():
            job.to("Stopped", "Stopped")
            return False
        return True

    def _waited_too_long(self) -> bool:
        limit = self.job.request["StoppingCondition"].get("MaxWaitTimeInSeconds")
        return limit is not None and time.monotonic() - self.job.created_s > limit

    def _prepare(self) -> None:
        """Make the trees with inputs and checkpoints, for hosts that have not started."""
        job, settings = self.job, self.platform.settings
        shutil.rmtree(self.folder, ignore_errors=True)
        job.to(job.status, "Downloading")
        if settings.backend == "containers":
            self._network = Network(settings.engine)
        for host in self.hosts:  # left from an interrupted attempt
            host.close()
        self.hosts, self.checkpoints, self.first_failed = [], [], None
        for name in job.hosts:
            folder = self.folder / name
            folder.mkdir(parents=True)
            host = (
                ContainerHost(settings, name, folder, job.hosts, self._network)
                if self._network
                else Host(settings, name, folder, job.hosts)
            )
            host.equip(self.instance)
            lay_out(self.platform.s3, self.permissions, job, host)
            self.hosts.append(host)
            if config := job.request.get("CheckpointConfig"):
                follower = CheckpointFolder(self.platform.s3, local_path(host.ml, config), config["S3Uri"])
                follower.fetch()
                self.checkpoints.append(follower)

    def _environment(self) -> dict[str, str]:
        """The variables that SageMaker sets in a container, and those of the request."""
        job = self.job
        assumed = self.platform.sts.assume_role(RoleArn=job.request["RoleArn"], RoleSessionName="SageMaker")
        keys = assumed["Credentials"]
        self.permissions.roles_of_keys[keys["AccessKeyId"]] = job.role
        return {
            "TRAINING_JOB_NAME": job.name,
            "TRAINING_JOB_ARN": job.arn,
            "AWS_REGION": self.platform.settings.region,
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys["SessionToken"],
            "AWS_ENDPOINT_URL": self.platform.url_from(self._network),
            **job.request.get("Environment", {}),
        }

    # While it runs

    def _attempt(self) -> str:
        """Run all hosts once; returns why they were made to end, empty if they ended by themselves."""
        job = self.job
        self._prepare()
        environment = self._environment()
        job.to(job.status, "Training")
        job.attempts += 1
        began_s, logs = time.monotonic(), []
        create_group(self.platform.logs, TRAINING_GROUP)
        entry = entry_of(job.request["AlgorithmSpecification"], "train")
        allowed = self.permissions.allows("logs:CreateLogStream", job.role)
        try:
            for host in self.hosts:
                pipe = host.start(self.image, entry, environment)
                stream = f"{job.name}/{host.name}-{int(time.time()) + job.attempts - 1}"
                client = self.platform.logs if allowed else None
                logs.append(LogStream(client, TRAINING_GROUP, stream, pipe, job.metrics.read))
            how = self._watch(began_s)
        finally:
            for host in self.hosts:
                host.kill()
            job.training_s += time.monotonic() - began_s
        for log in logs:
            log.join()
        for follower in self.checkpoints:
            follower.push()
        return how

    def _watch(self, began_s: float) -> str:
        how, deadline_s = "", float("inf")
        while running := [host for host in self.hosts if host.exit_code is None]:
            time.sleep(POLL_S)
            now_s = time.monotonic()
            if not how:
                how = self._reason_to_end(began_s)
                if how:
                    grace_s = AFTER_A_FAILURE_S if how == "HostFailed" else self.platform.settings.grace_s
                    deadline_s = now_s + min(grace_s, self.platform.settings.grace_s)
                    for host in running:
                        host.terminate()
            if now_s > deadline_s or self.platform.closing.is_set():
                for host in running:
                    host.kill()
            for follower in self.checkpoints:
                follower.push_every(self.platform.settings.sync_every_s)
        if not how:
            self._note_failure()
        return "" if how == "HostFailed" else how

    def _reason_to_end(self, began_s: float) -> str:
        job = self.job
        if self._note_failure():
            return "HostFailed"
        if job.stop.is_set():
            return "Stopped"
        if job.interrupt.is_set():
            return "Interrupted"
        ran_s = job.training_s + time.monotonic() - began_s
        if ran_s > job.request["StoppingCondition"].get("MaxRuntimeInSeconds", 86400):
            return "MaxRuntimeExceeded"
        return "MaxWaitTimeExceeded" if job.spot and self._waited_too_long() else ""

    def _note_failure(self) -> bool:
        for host in self.hosts:
            if host.exit_code and self.first_failed is None:
                self.first_failed = host
        return self.first_failed is not None

    # When it has run

    def _finish(self, how: str) -> None:
        """Upload what the hosts left, and set the final state."""
        job, failed = self.job, self.first_failed
        job.to(job.status, "Uploading")
        if failed is None or how:
            self._upload([host.ml / "model" for host in self.hosts], "model")
        self._upload([host.ml / "output" / "data" for host in self.hosts], "output")
        if how:
            job.to("Stopped", how)
        elif failed is not None:
            job.fail(_reason(self.hosts, failed))
        else:
            with job.lock:
                self.ended(job)
                job.to("Completed", "Completed")

    def _upload(self, folders: list[Path], name: str) -> None:
        job, s3 = self.job, self.platform.s3
        compressed = job.request["OutputDataConfig"].get("CompressionType", "GZIP") != "NONE"
        if not self.permissions.allows("s3:PutObject", job.role):
            raise JobError("ClientError: Artifact upload failed:Access denied")
        try:
            upload_results(s3, folders, job.output_uri, name, compressed, self.folder)
        except s3.exceptions.NoSuchBucket as error:
            raise JobError("ClientError: Artifact upload failed:The specified bucket does not exist") from error

    def _close_hosts(self) -> None:
        for host in self.hosts:
            host.close()
        if self._network is not None:
            self._network.close()


def _reason(hosts: list[Host], failed: Host) -> str:
    """What Describe says about a failure: the file written by the failed host or another one, and the exit code."""
    files = [host.ml / "output" / "failure" for host in (failed, *hosts)]
    text: Any = next((file.read_text(errors="replace") for file in files if file.is_file()), "")
    head, tail = "AlgorithmError: ", f", exit code: {failed.exit_code}"
    return f"{head}{text[: REASON_CHARACTERS - len(head) - len(tail)]}{tail}"
