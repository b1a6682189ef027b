"""Turns a composed configuration into a job, or reports everything that is wrong with it; starts nothing.

Knows the schema, the data set and the model's files; does not know Hydra, torch or launchers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from runner.errors import SettingsError
from runner.families.files import check_model, dropout_faults, fingerprint, resolution_faults
from runner.families.prediction import prediction_faults, sampler_faults
from runner.families.targeted import target_faults
from runner.jobs.earlier import find_earlier, layer_faults
from runner.jobs.job import Job, make_job, make_task_job
from runner.schema import DatasetSettings, Experiment, LauncherSettings, ModelSettings
from runner.schema.defaults import variants_of
from runner.schema.job import JobSettings
from runner.schema.launchers import APART
from runner.schema.method import NewTokens, TextualInversion
from runner.schema.reading import read_most
from runner.schema.tasks import TASKS
from runner.schema.texts import readable
from runner.schema.training import OPTIMIZER_PACKAGES
from runner.tasks import check_task, faults_beside
from runner.tasks.composed import settings_of, task_faults
from runner.tasks.evaluate.of_training import evaluation_contents

if TYPE_CHECKING:
    from runner.data import Dataset
    from runner.data.classes import Prior

S = TypeVar("S", bound=BaseModel)

OF_AN_EVALUATION = ("evaluation", "name", "precision", "model", "resolution", "scheduler", "validation")
"""Sections that determine what a training is measured with, and how."""
OF_TARGETS = tuple(f"lora.{key}" for key in ("targets", "blocks", "rank_pattern", "alpha_pattern", "text_encoder"))
"""Keys that say which layers of the model get an adapter."""


class Checker:
    """Checks the jobs of one command; each data set and model is read once for all of them."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.datasets: dict[tuple[DatasetSettings, int | None], Dataset | list[str]] = {}
        self.models: dict[ModelSettings, list[str]] = {}
        self.evaluations: dict[tuple[object, ...], dict[str, Any] | list[str]] = {}

    def job(self, raw: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Job:
        """The job that a resolved configuration describes.

        Raises:
            SettingsError: its text has every fault, one per line.
        """
        faults, raw, unset = readable(raw)
        task = raw["task"].get("name") if isinstance(raw.get("task"), Mapping) else None
        if task != "train" and isinstance(task, str) and task in TASKS:
            return self._task_job(raw, overrides, TASKS[task], faults, unset)
        experiment, said, wrong = read_most(Experiment, raw, unset=unset)
        is_right = partial(_none_of, wrong)
        faults += said
        faults += _missing_packages(experiment) if experiment and is_right("optimizer", "launcher") else []
        dataset = _valid(DatasetSettings, raw.get("dataset", {})) if _none_of(unset, "dataset") else None
        model = _valid(ModelSettings, raw.get("model", {})) if _none_of(unset, "model") else None
        model_faults = self._model_faults(model, used_here=_runs_here(raw)) if model else []
        faults += model_faults
        knows_model = model is not None and not model_faults
        evaluation: dict[str, Any] | list[str] = {}
        if experiment is not None and knows_model:
            if is_right(*OF_AN_EVALUATION):
                evaluation = self._evaluation(experiment)
                faults += evaluation if isinstance(evaluation, list) else []
            faults += _faults_with_model(experiment, is_right)
        # The report about the images depends on the shape in which they are trained, if that is valid.
        side = raw.get("resolution") if is_right("resolution", "dataset.buckets") else None
        images = self._dataset(dataset, side) if dataset else []
        faults += images if isinstance(images, list) else []
        prior = earlier = None
        try:
            if experiment and is_right("lora.init_from"):
                earlier = find_earlier(experiment.lora, fits=is_right("lora"))
            if experiment and earlier and knows_model and is_right("model", "lora"):
                faults += layer_faults(earlier, experiment.lora, experiment.model)
        except SettingsError as error:
            faults += str(error).splitlines()
        if experiment is not None and is_right("dataset", "method"):
            prior, said = self._subjects(experiment, images)
            faults += said
            draws = prior is not None and any(each.to_draw for each in prior.classes)
            if draws and knows_model and is_right("model", "scheduler"):
                faults += sampler_faults(experiment.model, experiment.scheduler.name)
        if faults or experiment is None or isinstance(images, list) or isinstance(evaluation, list):
            raise SettingsError("\n".join(dict.fromkeys(faults)))
        return make_job(
            experiment,
            model=fingerprint(experiment.model),
            dataset=images.fingerprint,
            outputs=self.outputs,
            overrides=overrides,
            prior=prior.identity if prior else None,
            init=earlier.digest if earlier else None,
            evaluation=evaluation,
        )

    def _task_job(
        self,
        raw: Mapping[str, Any],
        overrides: tuple[str, ...],
        kind: type[JobSettings],
        faults: list[str],
        unset: Sequence[str],
    ) -> Job:
        """The job of a task other than training; `faults` and `unset` as `readable` returns them."""
        faults += task_faults(raw, overrides, kind)
        given = settings_of(raw, overrides, kind)
        settings, said, wrong = read_most(kind, given, unset=unset)
        faults += said
        contents = None
        model = _valid(ModelSettings, given.get("model", {})) if _none_of(unset, "model") else None
        faults += self._model_faults(model, used_here=_runs_here(raw)) if model else []
        if settings is not None:
            try:
                if not said and not unset:
                    contents = check_task(settings)
                else:
                    faults += faults_beside(settings, partial(_none_of, wrong))
            except SettingsError as error:
                faults += str(error).splitlines()
        if faults or settings is None or contents is None:
            raise SettingsError("\n".join(faults))
        contents = {"model": fingerprint(settings.model), **contents}
        return make_task_job(settings, contents, outputs=self.outputs, overrides=overrides)

    def dataset_of(self, job: Job) -> Dataset:
        """The data set that a checked job uses."""
        dataset = self._dataset(job.experiment.dataset, job.experiment.resolution)
        assert not isinstance(dataset, list), job.id
        return dataset

    def prior_of(self, job: Job) -> Prior | None:
        """The prior that a checked job preserves for the classes of its subjects."""
        return self._prior(job.experiment, self.dataset_of(job))

    def _subjects(self, experiment: Experiment, images: Dataset | list[str]) -> tuple[Prior | None, list[str]]:
        """(the prior preserved for the subjects' classes, the faults of that and of new words)."""
        from runner.data.classes import missing_folders

        if isinstance(images, list):
            return None, missing_folders(experiment)
        faults = _unused_words(experiment, images)
        try:
            return self._prior(experiment, images), faults
        except SettingsError as error:
            return None, [*faults, *str(error).splitlines()]

    def _prior(self, experiment: Experiment, images: Dataset) -> Prior | None:
        from runner.data.classes import prior_of

        return prior_of(experiment, images, read=self._class_images)

    def _class_images(self, settings: DatasetSettings) -> Dataset:
        found = self._dataset(settings, None)
        if isinstance(found, list):
            raise SettingsError("\n".join(found))
        return found

    def _evaluation(self, experiment: Experiment) -> dict[str, Any] | list[str]:
        """What a training is measured with, or the faults in that; images and networks are read once for all jobs."""
        if experiment.evaluation.metrics is None:
            return {}
        drawn = experiment.resolution, experiment.model, experiment.scheduler, experiment.validation
        key = (experiment.evaluation, experiment.precision, *drawn)
        if key not in self.evaluations:
            try:
                self.evaluations[key] = evaluation_contents(experiment)
            except SettingsError as error:
                self.evaluations[key] = str(error).splitlines()
        return self.evaluations[key]

    def _model_faults(self, settings: ModelSettings, *, used_here: bool) -> list[str]:
        if settings not in self.models:
            self.models[settings] = check_model(settings, used_here=used_here)
        return self.models[settings]

    def _dataset(self, settings: DatasetSettings, resolution: object) -> Dataset | list[str]:
        from runner.data import read_dataset

        side = resolution if isinstance(resolution, int) else None
        # How images are cropped and what is added to captions does not change what is found: such jobs share one look.
        same = {"crop": "center", "flip": False, "variants": 1}
        said = {"caption_dropout": 0.0, "caption_prefix": None, "caption_suffix": None}
        uncut = settings.model_copy(update=same | said)
        key = (uncut, side)
        if key not in self.datasets:
            try:
                self.datasets[key] = read_dataset(settings, resolution=side)
            except SettingsError as error:
                self.datasets[key] = str(error).splitlines()
        return self.datasets[key]


def _none_of(wrong: Sequence[str], *known: str) -> bool:
    """Whether no wrong key equals, contains or lies in one of these, so that their values are what was typed."""
    return not any(
        f"{key}.".startswith(f"{each}.") or f"{each}.".startswith(f"{key}.") for key in wrong for each in known
    )


def _faults_with_model(experiment: Experiment, is_right: Callable[..., bool]) -> list[str]:
    """What does not fit a checked model, one fault per line, as far as the settings involved are valid themselves."""
    faults = prediction_faults(experiment) if is_right("model", "scheduler", "validation", "evaluation") else []
    if is_right("model", "resolution", "dataset"):
        longest_px = max(max(shape) for shape in experiment.shapes)
        faults += resolution_faults(experiment.model, experiment.resolution, longest_px=longest_px)
    if is_right("model", "lora.text_encoder", "dataset.caption_dropout", "method"):
        faults += dropout_faults(experiment)
    if is_right("model", *OF_TARGETS, "method.name") and not isinstance(experiment.method, TextualInversion):
        faults += target_faults(experiment.lora, experiment.model)  # the other method adapts no layers
    return faults


def _valid(kind: type[S], section: object) -> S | None:
    # The faults of a section itself are reported with the whole; its content cannot be checked.
    try:
        return kind.model_validate(section)
    except ValidationError:
        return None


def launcher_of(raw: Mapping[str, Any]) -> LauncherSettings | None:
    """Where a configuration with faults elsewhere would run; None if this part is wrong too."""
    section = raw.get("launcher")
    if not isinstance(section, Mapping):
        return None
    try:
        faults, *_ = readable(section)
        settings = None if faults else _valid(variants_of("launcher")[str(section.get("name"))], section)
    except (SettingsError, KeyError):
        return None
    return cast("LauncherSettings | None", settings)


def _runs_here(raw: Mapping[str, Any]) -> bool:
    """Whether jobs see this machine's files rather than those of another machine that fetches its own."""
    launcher = raw.get("launcher")
    return not isinstance(launcher, Mapping) or launcher.get("name") not in APART


def _unused_words(experiment: Experiment, dataset: Dataset) -> list[str]:
    """Faults of new words that are in no caption, so that nothing would train them."""
    from runner.data.captions import captions_of, shown

    if not isinstance(experiment.method, NewTokens):
        return []
    captions = [caption for item in dataset.items for caption in captions_of(item, experiment.dataset)]
    return [
        f"method.tokens = {token!r}: is in none of the {len(captions)} captions, such as {shown(captions[0])}; write "
        f"it into them, or before all of them: 'dataset.caption_prefix=\"{token}\"'"
        for token in experiment.method.tokens
        if not any(token in caption for caption in captions)
    ]


def _missing_packages(experiment: Experiment) -> list[str]:
    """Packages that the chosen optimizer needs and that this machine, where the job will run, lacks."""
    name = experiment.optimizer.name
    package = OPTIMIZER_PACKAGES.get(name)
    if package is None or experiment.launcher.name != "local" or find_spec(package) is not None:
        return []
    said = f"optimizer = {name!r}: needs the package {package}, which is not installed; "
    return [said + "pip install 'lora-runner[optimizers]', or choose optimizer=adamw"]
