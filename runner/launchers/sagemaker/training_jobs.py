"""SageMaker as a cluster: a worker is a training job named after its jobs, so that none is ever submitted twice."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from runner.aws.account import Account, aws_errors, code_of, may_pass, message_of, one_refusal
from runner.aws.names import Location, Places
from runner.aws.prices import Prices
from runner.aws.storage import Storage
from runner.jobs.job import Job, read_job
from runner.jobs.queue import Queue
from runner.launchers.cluster import Gone, NoRoom, NotSubmitted, Order, OutOfReach
from runner.launchers.lots import all_given_to
from runner.launchers.sagemaker.inputs import Inputs, environment
from runner.launchers.sagemaker.logs import LogTail
from runner.launchers.sagemaker.record import (
    CLUSTER,
    arn_of,
    log_file,
    note_arn,
    record,
    record_file,
    recorded,
    unrecorded_names,
)
from runner.launchers.sagemaker.request import CHECKPOINTS, Channel, training_request
from runner.launchers.sagemaker.results import Collector
from runner.launchers.sagemaker.stopping import stop_searches, stop_training_jobs
from runner.parcel import JOBS
from runner.schema import SageMakerLauncher
from runner.work import WORKER_NAME

log = logging.getLogger(__name__)

RUNNING = ("InProgress", "Stopping")
TAKEN = ("MaxRuntimeExceeded", "MaxWaitTimeExceeded", "Interrupted")
"""Secondary statuses of training jobs that SageMaker stopped, not a person."""


class SageMakerCluster:
    """Training jobs of one account and region."""

    name = CLUSTER
    shares_files = False
    """A training job has its own files: it works through the jobs it was given, and cannot be given more."""

    def __init__(self, settings: SageMakerLauncher, account: Account, *, image: str = "") -> None:
        self.settings, self.account, self.image = settings, account, image
        self.places = Places(account.bucket, settings.prefix)
        self.storage = Storage(account.s3, settings.kms_key)
        self.inputs = Inputs(settings, self.storage, self.places, account.region)
        self.collector = Collector(self.storage, self.places)
        self.prices = Prices(account)
        self._brought: dict[str, list[Channel]] = {}
        self._jobs: dict[str, Sequence[Job]] = {}
        self._tails: dict[str, LogTail] = {}
        self._gone: dict[str, Gone] = {}
        self._apart: dict[str, str] = {}
        """Training jobs in a region or account other than the one queried, with a message for each."""
        self._looked_s = float("-inf")

    # --- submitting ---

    def submit(self, order: Order, *, after: str | None) -> str:
        """Create a training job, or adopt the existing one with the same jobs; returns its name."""
        if after is not None:
            raise NoRoom(f"launcher.concurrency = {self.settings.concurrency} is reached")
        jobs = [read_job(folder) for folder in Queue(order.queue).read()[0]]
        try:
            names = unrecorded_names(order, jobs[0].folder.parent)
            name = next(name for name in names if self._is_made(name, order, jobs))
        except aws_errors() as error:
            raise self._refusal(error) from error
        self._jobs[name] = jobs
        self._gone.pop(name, None)
        return name

    def _is_made(self, name: str, order: Order, jobs: Sequence[Job]) -> bool:
        """Create a training job of that name; returns whether it, or an existing one, works on these jobs."""
        request, queue = self._request(name, order, jobs), Queue(order.queue)
        before = list(queue.about().get("workers", ()))
        # Even if this process dies before the answer, a stop finds what was created.
        queue.tell(workers=[*before, name])
        is_ours = True
        try:
            answer = self.account.sagemaker.create_training_job(**request)
            note_arn(jobs[0].folder.parent, name, answer["TrainingJobArn"])
            log.info("%s", self.console_url(name))
        except aws_errors() as error:
            is_ours = may_pass(error)  # it may have been created nevertheless
            if code_of(error) != "ResourceInUse":
                raise
            is_ours = self._may_take_up(name, self.places.training_job(order.title, name), jobs[0].folder.parent)
        finally:
            if not is_ours:
                queue.tell(workers=before)
        return is_ours

    def _may_take_up(self, name: str, place: Location, experiment_folder: Path) -> bool:
        """Whether to adopt a training job that is unknown here: its results, now or later, must be within reach.

        Names are unique per account: somebody else's training job has its results in another bucket or under another
        prefix. Those of an ended one may be gone, or it may have had none.
        """
        described = self.account.sagemaker.describe_training_job(TrainingJobName=name)
        kept, wanted = described.get("CheckpointConfig", {}).get("S3Uri"), (place / CHECKPOINTS).uri
        if kept != wanted:
            log.info("%s already exists, with its results in %s: using another name", name, kept)
            return False
        if described["TrainingJobStatus"] in RUNNING or self.storage.listing(place / f"{CHECKPOINTS}{JOBS}/"):
            note_arn(experiment_folder, name, described["TrainingJobArn"])
            return True
        log.info("%s has already ended, and nothing of it is in %s: sending it again", name, kept)
        return False

    def _request(self, name: str, order: Order, jobs: Sequence[Job]) -> dict[str, Any]:
        """The request that creates it; everything it needs from here is then in S3."""
        place = self.places.training_job(order.title, name)
        if name not in self._brought:
            self._brought[name] = self.inputs.bring(jobs, order, place)
        return training_request(
            self.settings,
            name=name,
            experiment=order.title,
            role_arn=self.account.role_arn,
            image=self.image,
            place=place,
            channels=self._brought[name],
            environment={WORKER_NAME: name} | environment(self.settings),
        )

    def _refusal(self, error: Exception) -> NotSubmitted:
        """What a rejection means: wait, or give up."""
        message = message_of(error)
        if may_pass(error):
            return NoRoom(message)
        if code_of(error) == "ResourceLimitExceeded":
            limit = re.search(r"is (\d+) Instances", message)
            if limit is None or int(limit[1]) >= self.settings.instances:
                return NoRoom(message)
            return NotSubmitted(
                f"{message} (https://console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas)"
            )
        return NotSubmitted(f"{code_of(error)}: {message}".removeprefix(": "))

    def console_url(self, name: str) -> str:
        """The web page of a training job."""
        region = self.account.region
        return f"https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/jobs/{name}"

    # --- watching ---

    def gone(self, workers: Mapping[str, Sequence[Job]]) -> Mapping[str, Gone]:
        """Those that have ended; what they and the running ones have written is brought here first.

        SageMaker is asked once for all of them, no more often than every `launcher.poll_s`.
        """
        # The results at its end are brought once, for all its jobs, whichever are asked about.
        self._jobs |= {name: all_given_to(name, jobs) for name, jobs in workers.items()}
        for name, jobs in workers.items():
            if name not in self._gone and (gone := recorded(jobs[0].folder.parent, name)):
                self._gone[name] = gone
        unknown = [name for name in workers if name not in self._gone]
        if unknown and monotonic() - self._looked_s >= self.settings.poll_s:
            self._look(unknown)
            self._looked_s = monotonic()
        if apart := [name for name in workers if name in self._apart]:
            raise OutOfReach("\n".join(self._apart[name] for name in apart), apart)
        return {name: self._gone[name] for name in workers if name in self._gone}

    def _look(self, names: Sequence[str]) -> None:
        said: set[str] = set()
        try:
            statuses = self._statuses(names)
            for name in names:
                with one_refusal(name, said):
                    self._look_at(name, statuses.get(name))
        except aws_errors() as error:
            # A temporary network failure is no reason to give up a sweep.
            log.warning("SageMaker cannot be queried: %s", message_of(error))

    def _look_at(self, name: str, status: str | None) -> None:
        if status in RUNNING:
            self._tail(name).look()
            self.collector.look(self._jobs[name], self._place(name))
        else:
            self._end(name)

    def _statuses(self, names: Sequence[str]) -> dict[str, str]:
        """The statuses of training jobs, listed newest first until all of these are found."""
        wanted = set(names)
        common = _common_start(names)
        pages = self.account.sagemaker.get_paginator("list_training_jobs").paginate(
            SortBy="CreationTime",
            SortOrder="Descending",
            PaginationConfig={"PageSize": 100},
            **({"NameContains": common} if common else {}),
        )
        found: dict[str, str] = {}
        for page in pages:
            for each in page["TrainingJobSummaries"]:
                if each["TrainingJobName"] in wanted:
                    found[each["TrainingJobName"]] = each["TrainingJobStatus"]
            if found.keys() >= wanted:
                break
        return found

    def _end(self, name: str) -> None:
        """Bring everything from a training job that has ended, and log how it ended."""
        from botocore.exceptions import ClientError

        jobs = self._jobs[name]
        try:
            described = self.account.sagemaker.describe_training_job(TrainingJobName=name)
        except ClientError as error:
            if code_of(error) not in ("ValidationException", "ResourceNotFound"):
                raise
            if said := self._another_place(name):
                self._apart[name] = said
                return
            self._gone[name] = Gone(words="is not known to SageMaker", began=False)
            return
        if described["TrainingJobStatus"] in RUNNING:
            return  # the list was slightly out of date
        self._tail(name).look()
        began = self.collector.look(jobs, self._place(name), everything=True)
        self.collector.keep_cache(jobs, self._place(name) / CHECKPOINTS)
        price = self.prices.per_hour(described["ResourceConfig"]["InstanceType"])
        gone = gone_of(described, began=began)
        record(jobs, described, gone, usd_per_hour=price.usd if price else None)
        self._gone[name] = gone

    def _another_place(self, name: str) -> str:
        """The message about a training job in a region or account other than the one queried; empty for others."""
        folder = self._jobs[name][0].folder.parent
        _, _, _, region, account_id, *_ = (arn_of(folder, name) or ":::::").split(":")
        if not account_id or (region, account_id) == (self.account.region, self.account.account_id):
            return ""
        return (
            f"training job {name} is in {region} of account {account_id}, and {self.account.region} of "
            f"{self.account.account_id} is asked: set AWS_REGION={region}, with credentials of that account; if "
            f"nobody needs it any more, remove {record_file(folder, name)}"
        )

    def _place(self, name: str) -> Location:
        return self.places.training_job(self._jobs[name][0].settings.name, name)

    def _tail(self, name: str) -> LogTail:
        if name not in self._tails:
            prefix = None if self.settings.logs == "file" else name
            file = log_file(self._jobs[name][0].folder.parent, name)
            self._tails[name] = LogTail(self.account.logs, name, file, prefix)
        return self._tails[name]

    def log(self, worker: str, folder: Path) -> Path:
        """The file with its output."""
        return log_file(folder.parent, worker)

    # --- ending ---

    def cancel(self, workers: Sequence[str]) -> None:
        """Ask training jobs to save and end."""
        stop_training_jobs(self.account, workers)

    def has_ended(self, search: str, folder: Path) -> bool:
        """Whether all results of a tuning job are here."""
        return record_file(folder, search).exists()

    def cancel_searches(self, searches: Sequence[str]) -> None:
        """Ask tuning jobs to end, with all their training jobs."""
        stop_searches(self.account, searches)

    def how_to_cancel(self, workers: Sequence[str]) -> str:
        """Our own command: AWS's stops only one at a time."""
        folders = {str(self._jobs[name][0].folder.parent) for name in workers if name in self._jobs}
        return " ".join(["python -m runner.stop", *sorted(folders)])


def _common_start(names: Sequence[str]) -> str:
    """The longest common prefix of the names, by which the list is filtered."""
    first, last = min(names), max(names)
    length = next((number for number, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
    return first[:length].rstrip("-")


def gone_of(described: Mapping[str, Any], *, began: bool) -> Gone:
    """How a training job ended, from SageMaker's description of it.

    Args:
        began: whether it left anything from its jobs.
    """
    status, secondary = described["TrainingJobStatus"], described.get("SecondaryStatus", "")
    reason = str(described.get("FailureReason") or "")
    if status == "Failed":
        if reason.startswith("CapacityError") or "InternalServerError" in reason:
            return Gone(words=f"failed: {reason}", reason="taken", began=began)
        return Gone(words=f"failed: {reason}" if reason else "failed", began=began)
    if status == "Stopped":
        if secondary in TAKEN:
            return Gone(words=f"was stopped: {secondary}", reason="taken", began=began)
        return Gone(words="was stopped", reason="cancelled", began=began)
    return Gone(words="has ended", began=began)
