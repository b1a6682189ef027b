"""A search as the launch sees it: it gives configurations when places are free, and learns from the job folders."""

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
        folder: the experiment's; the study is kept in it.
        fixed: the settings that all jobs share, by dotted key.
        compose: makes a configuration of the overrides of a trial.
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
        """What the manifests of those that are done again said of an earlier command, until they are begun with."""

    @property
    def left(self) -> int:
        """Trials that are still to begin."""
        return max(0, self.settings.n_trials - self._study.count)

    def more(self, count: int) -> list[Config]:
        """Up to `count` further configurations, after what has ended was learnt from."""
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
            again: whether how it ended before is not the answer, because it is tried again.
        """
        number = self._numbers[tuple(overrides)].pop()
        self._jobs[number] = job
        self._study.begin(number, job.id)
        if again:
            before = read_manifest(job.folder)
            # Another command may have completed it since it was looked at: that is the answer.
            if not (job.has_result and is_done(job, State(before.get("state", State.PENDING)))):
                self._before[number] = before

    def refused(self, overrides: Sequence[str], reason: str) -> None:
        """A configuration is wrong: a trial that failed, and is not asked for again."""
        self._study.refuse(self._numbers[tuple(overrides)].pop(), reason)

    def learn(self) -> None:
        """Tell the study of every job that has ended since."""
        for number, job in list(self._jobs.items()):
            try:
                manifest = read_manifest(job.folder)
            except SettingsError:
                continue  # damaged: its worker writes it anew, or the launcher begins anew with the job
            state = State(manifest.get("state", State.PENDING))
            # What a worker that is about to end says of its crash is not the last word: others take its jobs up again.
            if state in FINAL and not manifest.get("crashed") and manifest != self._before.get(number):
                del self._jobs[number]
                curve = dict(MetricsFile(job.paths.metrics).values(self.objective.name))
                value = next(reversed(curve.values()), None)
                self._study.tell(number, state=state.value, curve=curve, value=value)

    def summary(self) -> list[str]:
        """What it has found, in words."""
        best = self._study.best()
        lines = [f"search: {self._study.count} of {self.settings.n_trials} trials"]
        if best is not None:
            result, chosen, job = best
            text = " ".join(f"{key}={value}" for key, value in chosen.items())
            lines.append(f"best: {self.objective.name} {result:.4g} with {text}, in {self._folder.folder / job}")
        return lines
