"""Warm pools: instances that an ended job keeps for a while, and that the next job like it takes over."""

from __future__ import annotations

import time
from typing import Any

from .jobs import TrainingJob
from .quotas import Quotas

SAME = ("RoleArn", "VpcConfig", "EnableInterContainerTrafficEncryption", "EnableNetworkIsolation")


class WarmPools:
    """The pools of the account. Without a quota for them (AWS's default), nothing is kept and nothing is reported."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._kept: list[tuple[TrainingJob, float]] = []

    def keep(self, job: TrainingJob) -> None:
        """Keep the instances of a job that has just ended, if it asks for that and the quota allows it."""
        seconds = job.request["ResourceConfig"].get("KeepAlivePeriodInSeconds", 0)
        used = sum(
            one.instance_count for one, _ in self._kept if one.instance_type == job.instance_type and _is_there(one)
        )
        if not seconds or used + job.instance_count > self._quotas.limit(job.instance_type, "warm_pool"):
            return
        job.warm_pool = {"Status": "Available"}
        self._kept.append((job, time.monotonic() + seconds))

    def claim(self, job: TrainingJob) -> bool:
        """Hand a kept pool to a job like the one that left it; returns whether there was one."""
        self.expire()
        for earlier, _ in self._kept:
            if _is_there(earlier) and _alike(earlier, job):
                earlier.warm_pool = {"Status": "Reused", "ReusedByJob": job.name, **_billed(earlier)}
                job.warm_pool = {"Status": "InUse"}
                return True
        return False

    def expire(self) -> None:
        """Release what has been kept long enough."""
        for job, until_s in self._kept:
            if _is_there(job) and time.monotonic() > until_s:
                job.warm_pool = {"Status": "Terminated", **_billed(job)}
        self._kept = [(job, until_s) for job, until_s in self._kept if _is_there(job)]


def _is_there(job: TrainingJob) -> bool:
    return job.warm_pool is not None and job.warm_pool["Status"] == "Available"


def _billed(job: TrainingJob) -> dict[str, int]:
    ended_s = job.ended.timestamp() if job.ended else time.time()
    return {"ResourceRetainedBillableTimeInSeconds": max(1, int(time.time() - ended_s))}


def _alike(earlier: TrainingJob, later: TrainingJob) -> bool:
    def facts(job: TrainingJob) -> list[Any]:
        resources = job.request["ResourceConfig"]
        size = [resources.get(name) for name in ("InstanceType", "InstanceCount", "VolumeSizeInGB", "VolumeKmsKeyId")]
        image = job.request["AlgorithmSpecification"].get("TrainingImage")
        return [*size, image, bool(resources.get("KeepAlivePeriodInSeconds")), *map(job.request.get, SAME)]

    return facts(earlier) == facts(later)
