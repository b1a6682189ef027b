"""One tuning job from request to end: created or resumed, watched, with its trials brought here as jobs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from time import sleep
from typing import Any

from runner.aws.account import aws_errors, code_of, may_pass, message_of, one_refusal, understood
from runner.errors import Detached, Interrupted, RunnerError, SettingsError
from runner.jobs.job import Job, state_of
from runner.launchers.cluster import NotStopped
from runner.launchers.dispatch import is_to_end
from runner.launchers.sagemaker.record import CLUSTER
from runner.launchers.sagemaker.request import CHECKPOINTS
from runner.launchers.sagemaker.training_jobs import SageMakerCluster
from runner.launchers.sagemaker.trials import Trials, begin
from runner.launchers.searches import Search, note, searches_of, strike_out
from runner.paths import ExperimentPaths
from runner.schema import SageMakerLauncher
from runner.search.tuning.records import TuningRecord
from runner.status import live_table
from runner.system.exclusive import alone

log = logging.getLogger(__name__)

ENDED = ("Completed", "Failed", "Stopped", "DeleteFailed")
STOPPED = ("Stopping", "Stopped")
WORKING = ("InProgress", "Stopping")


@dataclasses.dataclass
class _Trial:
    """A training job of the search."""

    job: Job | None
    """None if the chosen values are not valid settings."""
    status: str
    has_ended: bool = False


class TuningJob:
    """A tuning job of SageMaker.

    Args:
        request: builds the request that creates it; called only if no tuning job of that name exists.
        job_of: returns the job for chosen values, by hyperparameter name.
        experiment_folder: the folder that holds its jobs' folders.
        ends_early: whether SageMaker may end trials before their last step.
    """

    def __init__(
        self,
        reached: SageMakerCluster,
        name: str,
        *,
        request: Callable[[], Mapping[str, Any]],
        job_of: Callable[[Mapping[str, str]], Job],
        experiment_folder: Path,
        ends_early: bool,
    ) -> None:
        self.reached, self.name, self.job_of, self.ends_early = reached, name, job_of, ends_early
        self.folder, self._request = experiment_folder, request
        self.client = reached.account.sagemaker
        # With the region in use: it may be stopped from a shell where another region is set.
        settings = reached.settings.model_copy(update={"region": reached.account.region})
        self._search = Search(name, settings, experiment_folder)
        self._brings = Trials(reached, name, experiment_folder.name)
        self._trials: dict[str, _Trial] = {}
        self._said: dict[Path, str] = {}

    @property
    def jobs(self) -> list[Job]:
        """The jobs of its trials so far, each once."""
        return list({trial.job.folder: trial.job for trial in self._trials.values() if trial.job}.values())

    def run(self) -> TuningRecord:
        """Create or resume it, and wait for its end.

        Raises:
            Detached: it continues without this command, as requested.
            Interrupted: Ctrl-C; it continues, unless the person at the terminal wants otherwise.
            NoAccess: the permission to create it is missing.
            SettingsError: one of that name exists whose results go to another place.
        """
        self._create()
        try:
            with live_table(lambda: [job.folder for job in self.jobs]):
                return self._watch()
        except KeyboardInterrupt:
            self._leave()
            raise Interrupted("stopped waiting") from None

    def _create(self) -> None:
        from botocore.exceptions import ClientError

        # A command that stops the experiment waits until it exists, and finds it by its record.
        turn = alone(ExperimentPaths(self.folder).turn(CLUSTER), doing=f"submitting a search of {self.folder.name}")
        with turn, understood("sagemaker:CreateHyperParameterTuningJob and DescribeHyperParameterTuningJob"):
            try:
                self._refuse_foreign(self._describe())
                note(self._search, CLUSTER)
                log.info("already submitted: tuning job %s", self.name)
            except ClientError as error:
                if code_of(error) not in ("ResourceNotFound", "ValidationException"):
                    raise
                self._refuse_another_region()
                self._send()
        region = self.reached.account.region
        log.info(
            "https://%s.console.aws.amazon.com/sagemaker/home?region=%s#/hyper-tuning-jobs/%s",
            region,
            region,
            self.name,
        )

    def _refuse_foreign(self, described: Mapping[str, Any]) -> None:
        """Refuse somebody else's search: names are unique per account, and its results go to another place.

        Raises:
            SettingsError: the search is somebody else's.
        """
        kept = described["TrainingJobDefinition"].get("CheckpointConfig", {}).get("S3Uri")
        if kept != (wanted := (self._brings.place / CHECKPOINTS).uri):
            raise SettingsError(
                f"tuning job {self.name} is there already, and its results come to {kept}, not to {wanted}: set "
                "launcher.bucket and launcher.prefix as it has them, or give this search another name"
            )

    def _refuse_another_region(self) -> None:
        """Raises SettingsError if it was started in a region other than the one in use."""
        here = self.reached.account.region
        begun = [each for each in searches_of([self.folder]) if each.name == self.name]
        for region in [each.settings.region for each in begun if isinstance(each.settings, SageMakerLauncher)]:
            if region not in (None, here):
                raise SettingsError(
                    f"launcher.region: tuning job {self.name} was begun in {region}, and {here} is asked; set "
                    f"launcher.region={region}, or give this search another name"
                )

    def _send(self) -> None:
        from botocore.exceptions import ClientError

        request = self._request()
        note(self._search, CLUSTER)
        try:
            self.client.create_hyper_parameter_tuning_job(**request)
            log.info("submitted: tuning job %s", self.name)
        except ClientError as error:
            if code_of(error) == "ResourceInUse":  # another command was faster
                log.info("already submitted: tuning job %s", self.name)
                return
            if not may_pass(error):  # otherwise it may exist nevertheless, and a stop must find it
                strike_out(self._search, CLUSTER)
            if "AccessDenied" in code_of(error):
                raise
            raise RunnerError(f"SageMaker has refused the search: {message_of(error)}") from error

    # --- watching ---

    def _watch(self) -> TuningRecord:
        while True:
            if (described := self._look()) is not None:
                return self._conclude(described)
            if not self.reached.settings.wait:
                raise Detached(self._how_it_goes_on())
            sleep(self.reached.settings.poll_s)

    def _look(self) -> Mapping[str, Any] | None:
        """Bring what is new; returns the description of the tuning job once nothing more will come."""
        try:
            described = self._describe()
            status = str(described["HyperParameterTuningJobStatus"])
            said: set[str] = set()
            for summary in self._summaries():
                with one_refusal(str(summary["TrainingJobName"]), said):
                    self._look_at(summary, status)
        except aws_errors() as error:
            # A temporary network failure is no reason to give up a search.
            log.warning("SageMaker cannot be queried: %s", message_of(error))
            return None
        is_over = status in ENDED and all(trial.has_ended for trial in self._trials.values())
        return described if is_over else None

    def _describe(self) -> Mapping[str, Any]:
        answer = self.client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=self.name)
        return dict(answer)

    def _summaries(self) -> list[Mapping[str, Any]]:
        pages = self.client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName=self.name,
            SortBy="CreationTime",
            SortOrder="Ascending",
            PaginationConfig={"PageSize": 100},
        )
        return [summary for page in pages for summary in page["TrainingJobSummaries"]]

    def _look_at(self, summary: Mapping[str, Any], tuning_status: str) -> None:
        name, status = str(summary["TrainingJobName"]), str(summary["TrainingJobStatus"])
        trial = self._trials.get(name)
        if trial is None:
            trial = self._trials[name] = _Trial(self._job(summary), status)
            if trial.job is not None:
                begin(trial.job, self.name, name)
        trial.status = status
        if trial.has_ended:
            return
        if trial.job is None:
            trial.has_ended = status not in WORKING
            if trial.has_ended:
                log.warning("%s: %s", name, summary.get("FailureReason") or status)
            return
        if status in WORKING:
            self._brings.look(trial.job, name)
        else:
            early = self.ends_early and tuning_status not in STOPPED
            trial.has_ended = self._brings.end(trial.job, name, may_be_early=early)
        state = state_of(trial.job.folder).value
        if self._said.get(trial.job.folder) != state:
            self._said[trial.job.folder] = state
            values = summary["TunedHyperParameters"].items()
            log.info("%s  %s  %s", trial.job.id, state, " ".join(f"{key}={value}" for key, value in values))

    def _job(self, summary: Mapping[str, Any]) -> Job | None:
        try:
            return self.job_of(summary["TunedHyperParameters"])
        except RunnerError as error:
            log.warning("%s: %s", summary["TrainingJobName"], error)
            return None

    def _conclude(self, described: Mapping[str, Any]) -> TuningRecord:
        record = TuningRecord(
            name=self.name,
            arn=str(described["HyperParameterTuningJobArn"]),
            status=str(described["HyperParameterTuningJobStatus"]),
            failure_reason=described.get("FailureReason"),
            trials={name: trial.status for name, trial in self._trials.items()},
            jobs=tuple(job.id for job in self.jobs),
        )
        record.write(self.folder)
        return record

    # --- leaving ---

    def _leave(self) -> None:
        """Say how it continues; on a terminal, ask whether it should."""
        log.info("%s", self._how_it_goes_on())
        if is_to_end("Leave it running?"):
            try:
                self.reached.cancel_searches([self.name])
            except NotStopped as error:
                log.error("%s", error)
            else:
                log.info("asked to stop: tuning job %s", self.name)

    def _how_it_goes_on(self) -> str:
        return "\n".join(
            [
                f"tuning job {self.name} goes on without this command.",
                "The same command again waits for the results, and submits nothing twice.",
                f"To look: python -m runner.status. To stop it: python -m runner.stop {self.folder}",
            ]
        )
