"""A search as the launch sees it: it provides configurations when places are free, and learns from the job folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.errors import SettingsError
from runner.jobs.job import FINAL, Job, State, read_manifest
from runner.launch.door import Config
from runner.paths import ExperimentPaths
from runner.plan.packs import is_done
from runner.schema import ObjectiveSettings, SearchSettings
from runner.search.space import Parameter
from runner.search.study import Study
from runner.track import MetricsFile


class OptunaSearch:
    """Chooses the jobs of one command.

    Args:
        folder: the experiment's folder, which also holds the study.
        fixed: the settings that all jobs share, by dotted key.
        compose: turns the overrides of a trial into a configuration.
    """

    def __init__(
        self,
        folder: ExperimentPaths,
        *,
        space: Sequence[Parameter],
        fixed: Mapping[str, Any],
        settings: SearchSettings,
        objective: ObjectiveSettings,
        compose: Callable[[Sequence[str]], Config],
    ) -> None:
        self.settings, self.objective, self._compose, self._folder = settings, objective, compose, folder
        self._study = Study(folder.study, space=space, fixed=fixed, settings=settings, objective=objective)
        self._study.take_up()
        self._numbers: dict[tuple[str, ...], list[int]] = {}
        """Trials that are not jobs yet, by their overrides."""
        self._jobs: dict[int, Job] = {}
        """Trials whose jobs have not ended."""
        self._before: dict[int, dict[str, Any]] = {}
        """Manifests that an earlier command left for retried jobs; they are ignored until they change."""

    @property
    def left(self) -> int:
        """How many trials are still to start."""
        return max(0, self.settings.n_trials - self._study.count)

    def more(self, count: int) -> list[Config]:
        """Up to `count` further configurations, after learning from what has ended."""
        self.learn()
        found = []
        for _ in range(min(count, self.left)):
            number, overrides = self._study.ask()
            config, every = self._compose(overrides)
            self._numbers.setdefault(every, []).append(number)
            found.append((config, every))
        return found

    def started(self, overrides: Sequence[str], job: Job, *, again: bool = False) -> None:
        """A configuration has become this job; the same settings twice are the same job.

        Args:
            again: whether it is tried again, so that its earlier end is not the answer.
        """
        number = self._numbers[tuple(overrides)].pop()
        self._jobs[number] = job
        self._study.begin(number, job.id)
        if again:
            before = read_manifest(job.folder)
            # Another command may have completed it since the check: that is the answer.
            if not (job.has_result and is_done(job, State(before.get("state", State.PENDING)))):
                self._before[number] = before

    def refused(self, overrides: Sequence[str], reason: str) -> None:
        """A configuration is wrong: the trial has failed, and is not retried."""
        self._study.refuse(self._numbers[tuple(overrides)].pop(), reason)

    def learn(self) -> None:
        """Report every job that has ended since to the study."""
        for number, job in list(self._jobs.items()):
            try:
                manifest = read_manifest(job.folder)
            except SettingsError:
                continue  # damaged: its worker rewrites it, or the launcher starts the job afresh
            state = State(manifest.get("state", State.PENDING))
            # A crash that a dying worker reports is not final: other workers may continue its jobs.
            if state in FINAL and not manifest.get("crashed") and manifest != self._before.get(number):
                del self._jobs[number]
                curve = dict(MetricsFile(job.paths.metrics).values(self.objective.name))
                value = next(reversed(curve.values()), None)
                self._study.tell(number, state=state.value, curve=curve, value=value)

    def summary(self) -> list[str]:
        """The findings in words."""
        best = self._study.best()
        lines = [f"search: {self._study.count} of {self.settings.n_trials} trials"]
        if best is not None:
            result, chosen, job = best
            text = " ".join(f"{key}={value}" for key, value in chosen.items())
            lines.append(f"best: {self.objective.name} {result:.4g} with {text}, in {self._folder.folder / job}")
        return lines
