"""A search over all its tuning jobs: usually one; another one does what an earlier one left undone."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import Interrupted, JobsFailed, RunnerError
from runner.jobs.job import Job, State, read_job, read_manifest, register, state_of
from runner.launch.outcome import conclude
from runner.launchers.cluster import Order
from runner.launchers.sagemaker.inputs import environment
from runner.launchers.sagemaker.request import training_request
from runner.launchers.sagemaker.training_jobs import SageMakerCluster
from runner.schema import TuningSettings
from runner.schema.tuning import MOST_PARENTS
from runner.search.tuning.job import TuningJob
from runner.search.tuning.ranges import Range
from runner.search.tuning.records import TuningRecord
from runner.search.tuning.request import tuning_job_name, tuning_request

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningSearch:
    """A search by SageMaker."""

    key: str
    """Its hash (`search_key`)."""
    base: Job
    """A job with the settings that all trials share, and some values for the others."""
    fixed: Sequence[str]
    """Overrides that all trials share."""
    ranges: Sequence[Range]
    settings: TuningSettings
    processes: int
    """Number of processes of each trial."""
    job_of: Callable[[Mapping[str, str]], Job]
    """Returns the job for chosen values, by hyperparameter name."""

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return self.base.folder.parent

    def name(self, attempt: int) -> str:
        """The name of a tuning job of this search."""
        return tuning_job_name(self.base.experiment.name, self.key, attempt)

    def request(
        self, training: Mapping[str, Any], *, name: str, trials: int, parents: Sequence[str] = (), attempt: int = 1
    ) -> dict[str, Any]:
        """The arguments of `create_hyper_parameter_tuning_job`; see `tuning_request`."""
        seed = self.settings.seed
        # With the same seed, another tuning job would draw what an earlier one drew.
        settings = self.settings.model_copy(update={} if seed is None else {"seed": seed + attempt - 1})
        return tuning_request(
            settings,
            training,
            name=name,
            trials=trials,
            ranges=self.ranges,
            objective=self.base.experiment.objective,
            parents=[*settings.warm_start, *parents][-MOST_PARENTS:],
        )

    def run(self, reached: SageMakerCluster) -> None:
        """Run what is missing, and report the outcome.

        Raises:
            Detached: it continues without this command, as requested.
            Interrupted: Ctrl-C, or somebody stopped the search.
            JobsFailed: at least one trial failed; the message is a table of them.
        """
        known = self._known()
        left = self.settings.n_trials - sum(record.done for record in known)
        jobs = [job for record in known for job in self._jobs(record)]
        last = known[-1] if known else None
        if last is not None and (last.status == "Completed" or left <= 0):
            log.info("tuning job %s has ended, and its results are here", last.name)
        else:
            tuning = self._tuning_job(reached, known, left)
            try:
                last = tuning.run()
            finally:
                jobs += tuning.jobs
        self._conclude(jobs, last)

    def _known(self) -> list[TuningRecord]:
        """The ended tuning jobs of this search, as earlier commands found them."""
        found: list[TuningRecord] = []
        while len(found) < MOST_ATTEMPTS and (record := TuningRecord.read(self.folder, self.name(len(found) + 1))):
            found.append(record)
        return found

    def _jobs(self, record: TuningRecord) -> list[Job]:
        found = []
        for job_id in record.jobs:
            try:
                found.append(read_job(self.folder / job_id))
            except RunnerError as error:
                log.warning("%s", error)
        return found

    def _tuning_job(self, reached: SageMakerCluster, known: Sequence[TuningRecord], trials: int) -> TuningJob:
        attempt = len(known) + 1
        name = self.name(attempt)
        # Only one kind of search learns, and only completed trials give it something to learn from.
        parents = [record.name for record in known if record.done and self.settings.strategy == "Bayesian"]
        if known:
            log.info("%s: %d of %d trials are left", known[-1].name, trials, self.settings.n_trials)
        return TuningJob(
            reached,
            name,
            request=lambda: self.request(
                self._training(reached, name), name=name, trials=trials, parents=parents, attempt=attempt
            ),
            job_of=self.job_of,
            experiment_folder=self.folder,
            ends_early=self.settings.ends_early,
        )

    def _training(self, reached: SageMakerCluster, name: str) -> dict[str, Any]:
        """The request for a training job of the base; its inputs are brought to S3."""
        experiment, settings = self.base.experiment.name, reached.settings
        place = reached.places.training_job(experiment, name)
        with tempfile.TemporaryDirectory(prefix="runner-tuning-") as folder:
            # The base is no trial: among the results it would be mistaken for one.
            sent = dataclasses.replace(self.base, folder=Path(folder) / self.base.id, overrides=tuple(self.fixed))
            register(sent)
            order = Order(
                title=experiment, queue=Path(folder), at_once=1, processes=self.processes, device=settings.device
            )
            channels = reached.inputs.bring([sent], order, place)
        return training_request(
            settings,
            name=name,
            experiment=experiment,
            role_arn=reached.account.role_arn,
            image=reached.image,
            place=place,
            channels=channels,
            environment=environment(settings),
        )

    # --- words ---

    def _conclude(self, jobs: Sequence[Job], last: TuningRecord) -> None:
        for line in self._summary(jobs, last):
            log.info("%s", line)
        if jobs:
            conclude(jobs)
        if last.status == "Failed":
            raise JobsFailed(f"tuning job {last.name} failed: {last.failure_reason or 'SageMaker gives no reason'}")
        if last.status == "Stopped":
            raise Interrupted(f"tuning job {last.name} was stopped; the same command again does what is left")

    def _summary(self, jobs: Sequence[Job], last: TuningRecord) -> list[str]:
        objective = self.base.experiment.objective
        lines = [f"search: {len(last.trials)} trials of tuning job {last.name}, {last.status.lower()}"]
        results = [
            (float(value), job)
            for job in jobs
            if state_of(job.folder) is State.COMPLETED
            and (value := read_manifest(job.folder).get("objective")) is not None
        ]
        if results:
            value, best = (min if objective.direction == "minimize" else max)(results, key=lambda each: each[0])
            own = " ".join(text for text in best.overrides if text not in self.fixed)
            lines.append(f"best: {objective.name} {value:.4g} with {own}, in {best.folder}")
        return lines
