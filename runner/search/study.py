"""A search's memory: a study of the maintained optuna, kept in a file in the experiment's folder.

Trials are optuna's; the outcome of their jobs is read from the job folders and reported to it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunnerError, SettingsError
from runner.schema import ObjectiveSettings, SearchSettings
from runner.search.space import Choices, Parameter

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

JOB = "job"
"""Trial attribute with the id of its job."""
RETRY_OF = "retry_of"
"""Trial attribute that names the earlier trial, failed or cut off, whose settings it repeats."""
REFUSED = "refused"
"""Trial attribute that says why no job can have its settings."""
POINTS_KEPT = 50
"""Of a trial's curve. Each is its own transaction, and reads all earlier ones; optuna's samplers use the last."""
NOT_AGAIN = "jobs that are completed are not trained again"


class Study:
    """The trials of one search over all its runs.

    Args:
        file: the database; created if missing.
        space: what the search chooses.
        fixed: the settings that all jobs share; a search with other ones is another study.

    Raises:
        SettingsError: optuna is not installed, or the file is no database; also from the methods, if it is damaged.
        RunnerError: the file cannot be written now, for example because the disk is full; also from the methods.
    """

    def __init__(
        self,
        file: Path,
        *,
        space: Sequence[Parameter],
        fixed: Mapping[str, Any],
        settings: SearchSettings,
        objective: ObjectiveSettings,
    ) -> None:
        try:
            import optuna
            from sqlalchemy import NullPool
            from sqlalchemy.exc import SQLAlchemyError
        except ImportError as error:
            raise SettingsError(
                "hydra/sweeper = 'optuna': needs the package optuna, which is not installed; "
                "pip install 'lora-runner[search]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = {parameter.key: parameter for parameter in space}
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._refusals = file, (SQLAlchemyError, optuna.exceptions.StorageInternalError)
        with self._kept():
            # No connection outlives its purpose, so nobody has to close the last one.
            how = {"connect_args": {"timeout": 60}, "poolclass": NullPool}
            try:
                storage = optuna.storages.RDBStorage(url := f"sqlite:///{file}", engine_kwargs=how)
            except RuntimeError as error:  # another version made the file; the error says what to do
                words = str(error).replace("$STORAGE_URL", url)
                raise SettingsError(f"{file}: {words} Or move it away: {NOT_AGAIN}") from error
            study = optuna.create_study(
                study_name=_name(space, fixed, objective),
                storage=storage,
                direction=objective.direction,
                load_if_exists=True,
            )
            known = len(study.trials)
        # With the same seed for every run, a continued run would draw what the earlier one drew.
        seed = settings.seed + known
        study.sampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if settings.sampler == "random"
            else optuna.samplers.TPESampler(n_startup_trials=settings.startup_trials, seed=seed, constant_liar=True)
        )
        self._study, self._states = study, optuna.trial.TrialState
        self._open: dict[int, Trial] = {}
        self._distributions = {key: _distribution(parameter) for key, parameter in self.space.items()}

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Turn the long errors of the database, or of optuna about it, into one line."""
        try:
            yield
        except self._refusals as error:
            from sqlalchemy.exc import OperationalError, SQLAlchemyError

            said = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
            reason = str(said).splitlines()[0]
            if isinstance(said, OperationalError):  # full, locked or impossible to open, but with nothing wrong in it
                raise RunnerError(
                    f"{self._file}: the memory of the search cannot be written ({reason}); fix that, and run the same "
                    "command again to go on"
                ) from error
            raise SettingsError(
                f"{self._file}: cannot be read as a study ({reason}); move it away: {NOT_AGAIN}"
            ) from error

    def take_up(self) -> None:
        """Enqueue what failed or was cut off in an earlier run, so that a new run of the same command retries it."""
        with self._kept():
            self._take_up()

    def _take_up(self) -> None:
        for trial in self._study.get_trials(deepcopy=False, states=(self._states.RUNNING, self._states.FAIL)):
            if trial.number in self._superseded() or REFUSED in trial.user_attrs:
                continue
            if trial.state is self._states.RUNNING:
                self._study.tell(trial.number, state=self._states.FAIL)
            self._study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})

    def _superseded(self) -> set[int]:
        trials = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs}

    @property
    def count(self) -> int:
        """How many trials count: started or ended, and not enqueued again."""
        with self._kept():
            gone = self._superseded()
            trials = self._study.get_trials(deepcopy=False)
        return sum(trial.state is not self._states.WAITING and trial.number not in gone for trial in trials)

    def ask(self) -> tuple[int, list[str]]:
        """A new trial: its number, and the overrides it stands for."""
        with self._kept():
            trial = self._study.ask(self._distributions)
        self._open[trial.number] = trial
        return trial.number, [f"{key}={self.space[key].text(value)}" for key, value in trial.params.items()]

    def begin(self, number: int, job: str) -> None:
        """A trial of this run has become the job with this id."""
        with self._kept():
            self._open[number].set_user_attr(JOB, job)

    def tell(self, number: int, *, state: str, curve: Mapping[int, float], value: float | None) -> None:
        """Report the outcome of a trial of this run.

        Args:
            state: completed, pruned, or anything else for a failure.
            curve: the objective by optimizer step, as far as it was measured; its last point is the value of a pruned
                trial.
            value: the result of a completed trial.
        """
        trial = self._open.pop(number)
        with self._kept():
            for step, measured in _thinned(curve):
                trial.report(measured, step)
            if state == "pruned" and curve:
                self._study.tell(trial, state=self._states.PRUNED)
            elif state == "completed" and value is not None and math.isfinite(value):
                self._study.tell(trial, value)
            else:
                self._study.tell(trial, state=self._states.FAIL)

    def refuse(self, number: int, reason: str) -> None:
        """No job can have the settings of this trial of this run."""
        trial = self._open.pop(number)
        with self._kept():
            trial.set_user_attr(REFUSED, reason)
            self._study.tell(trial, state=self._states.FAIL)

    def best(self) -> tuple[float, dict[str, Any], str] | None:
        """The best value of a completed trial, its settings and its job's id; None if there is none yet."""
        with self._kept():
            if not self._study.get_trials(deepcopy=False, states=(self._states.COMPLETE,)):
                return None
            best = self._study.best_trial
        assert best.value is not None
        settings = {key: self.space[key].text(value) for key, value in best.params.items()}
        return best.value, settings, best.user_attrs.get(JOB, "")


def _thinned(curve: Mapping[int, float]) -> list[tuple[int, float]]:
    """The finite points; if there are many, an evenly spaced selection that includes the last."""
    points = [(step, value) for step, value in sorted(curve.items()) if math.isfinite(value)]
    return points[:: -max(1, math.ceil(len(points) / POINTS_KEPT))][::-1]


def _distribution(parameter: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Choices):
        return CategoricalDistribution(parameter.values)
    if parameter.integer:
        return IntDistribution(
            int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1)
        )
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _name(space: Sequence[Parameter], fixed: Mapping[str, Any], objective: ObjectiveSettings) -> str:
    """The same name for the same search, so that it does not learn from other settings or another objective."""
    content = {
        "space": sorted(repr(parameter) for parameter in space),
        "fixed": dict(sorted(fixed.items())),
        "objective": objective.model_dump(),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return f"{'-'.join(sorted(parameter.key for parameter in space))}-{digest}"
