"""The classes that subjects belong to: class prompts, existing images of the classes, and how many to draw.

Each of several sources may have its own subject and class. This module knows settings and data sets; drawing is done
where the model is loaded.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from runner.data.dataset import Dataset, fingerprint_of, read_dataset
from runner.data.faults import without_settings
from runner.data.item import Item
from runner.errors import SettingsError
from runner.paths import path_of
from runner.s3 import is_s3
from runner.schema import DatasetSettings, Experiment
from runner.schema.method import DreamBooth

log = logging.getLogger(__name__)

NO_PROMPT = (
    "method.class_prompt = null: a prior needs one, such as 'a photo of a dog'; set it, put class_prompt into "
    "dataset_info.json, or set method.prior=none"
)


@dataclasses.dataclass(frozen=True)
class SubjectClass:
    """A class, and the images that preserve it."""

    prompt: str
    items: tuple[Item, ...]
    """The user's own images of the class, captioned with the class prompt."""
    to_draw: int
    """Number of images for the base model to draw in addition."""
    subjects: tuple[Item, ...]
    """The images of the subjects that belong to this class."""

    @property
    def identity(self) -> dict[str, str | None]:
        """What distinguishes it: the prompt and the fingerprint of the given images.

        The images drawn in addition follow from the settings and the base model.
        """
        return {"prompt": self.prompt, "images": fingerprint_of(self.items) if self.items else None}


@dataclasses.dataclass(frozen=True)
class Prior:
    """What a DreamBooth job preserves: the classes of its subjects."""

    classes: tuple[SubjectClass, ...]
    """The distinct classes, in an order that depends only on their content."""
    of_source: Mapping[int, int]
    """Source -> index of the class that its images belong to."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The class prompts, in order."""
        return tuple(dict.fromkeys(each.prompt for each in self.classes))

    @property
    def identity(self) -> Any:
        """What distinguishes it: the class's identity, or a list of several, each with its subjects."""
        if len(self.classes) == 1:
            return self.classes[0].identity
        return [each.identity | {"subjects": fingerprint_of(each.subjects)} for each in self.classes]

    def class_of(self, item: Item) -> int:
        """Index of the class that an image of the data set belongs to."""
        return self.of_source[item.source]

    def lines(self) -> Iterator[str]:
        """For people: the class of each source's subject, if there are several classes."""
        for source, number in self.of_source.items() if len(self.classes) > 1 else ():
            each = self.classes[number]
            beside = f": {len(each.items)} images given, {each.to_draw} of the base model's"
            yield f"class of sources.{source}: {each.prompt!r}{beside if each.items or each.to_draw else ''}"


def prior_of(
    experiment: Experiment, dataset: Dataset, *, read: Callable[[DatasetSettings], Dataset] = read_dataset
) -> Prior | None:
    """The prior that a job trains with, or None if it has none.

    Args:
        dataset: its images; its `dataset_info.json` may name the class, for each of several sources its own.

    Raises:
        SettingsError: the class or the origin of its images is not specified, or its images have faults.
    """
    method = experiment.method
    if not isinstance(method, DreamBooth) or method.prior == "none":
        return None
    with_images = {item.source for item in dataset.items}
    said = [each for each in _all_said(experiment, method, dataset) if each.source in with_images]
    given: list[tuple[Item, ...]] = [()] * len(said)
    faults = _without_prompt(said)
    if method.prior == "images":
        faults += _of_a_shared_folder(said)
        given, wrong = _given(said, experiment, method, dataset, read)
        faults += wrong
    if faults:
        raise SettingsError("\n".join(dict.fromkeys(faults)))
    keys = [(each.prompt, fingerprint_of(items) if items else "") for each, items in zip(said, given, strict=True)]
    distinct = sorted(set(keys))
    of_source = {each.source: distinct.index(key) for each, key in zip(said, keys, strict=True)}
    _refuse_one_image_in_two_classes(dataset.items, of_source)
    classes = []
    for number, key in enumerate(distinct):
        items = given[keys.index(key)]
        to_draw = max(0, method.num_class_images - len(items)) if method.prior == "images" else 0
        subjects = tuple(item for item in dataset.items if of_source[item.source] == number)
        classes.append(SubjectClass(key[0], items, to_draw, subjects))
    return Prior(tuple(classes), of_source)


@dataclasses.dataclass(frozen=True)
class _Said:
    """What is specified about the class of one source's subject."""

    source: int
    section: str
    """The settings of the source: `method` for a single one, `dataset.sources.1` for one of several."""
    path: str
    prompt: str
    folder: str | None
    folder_key: str
    """The setting that names the folder, or that would if `dataset_info.json` did not."""
    described: bool
    """Whether `dataset_info.json` names it."""


def _all_said(experiment: Experiment, method: DreamBooth, dataset: Dataset) -> list[_Said]:
    """What is specified for each source: in its own settings, else in the method's, else in `dataset_info.json`."""
    settings, found = experiment.dataset, []
    for number, (path, described) in enumerate(zip(settings.paths, dataset.described, strict=True)):
        source = settings.sources[number] if settings.sources else None
        section = f"dataset.sources.{number}" if len(settings.paths) > 1 else "method"
        own_prompt, own_folder = (source.class_prompt, source.class_data_dir) if source else (None, None)
        prompt = (own_prompt or method.class_prompt or described.class_prompt or "").strip()
        # The method's folder belongs to the method's class: a source that names another class has other images too.
        folder, key = own_folder, f"dataset.sources.{number}.class_data_dir"
        if folder is None and own_prompt is None:
            folder, key = method.class_data_dir, "method.class_data_dir"
        in_file = folder is None
        if in_file:
            folder = None if described.class_folder is None else str(described.class_folder)
            key = f"{section}.class_data_dir"
        found.append(_Said(number, section, path, prompt, folder, key, in_file))
    return found


def _without_prompt(said: Sequence[_Said]) -> list[str]:
    missing = [each for each in said if not each.prompt]
    if len(missing) == len(said):
        return [NO_PROMPT]
    return [
        f"{each.section}.class_prompt = null: a prior needs the class of each subject, other sources have one, "
        f"and nothing says that of {each.path!r}; set it, put class_prompt into its dataset_info.json, or set "
        "method.class_prompt for all sources without one"
        for each in missing
    ]


def _of_a_shared_folder(said: Sequence[_Said]) -> list[str]:
    shared = [each for each in said if each.folder_key == "method.class_data_dir" and not each.described]
    prompts = sorted({each.prompt for each in shared if each.prompt})
    if len(prompts) < 2:
        return []
    fault = (
        f"method.class_data_dir = {shared[0].folder!r}: is one folder for several classes "
        f"({', '.join(map(repr, prompts))}); give each of dataset.sources a class_data_dir of its own"
    )
    return [fault]


def _given(
    said: Sequence[_Said],
    experiment: Experiment,
    method: DreamBooth,
    dataset: Dataset,
    read: Callable[[DatasetSettings], Dataset],
) -> tuple[list[tuple[Item, ...]], list[str]]:
    """(the user's images of each source's class, faults)."""
    known: dict[tuple[str | None, str], tuple[Item, ...]] = {}
    given, faults = list[tuple[Item, ...]](), list[str]()
    for each in said:
        key = each.folder, each.prompt
        try:
            if key not in known:
                _check_folder(each, experiment.dataset, dataset)
                known[key] = _class_images(each, experiment.dataset, read)
            given.append(known[key])
            if not known[key] and not method.num_class_images:
                of_which = f" {each.prompt!r}" if each.section != "method" else ""
                raise SettingsError(
                    f"method.num_class_images = 0: there are no images of the class{of_which} either; set "
                    f"{each.section}.class_data_dir, or let the base model draw some"
                )
        except SettingsError as error:
            faults.append(str(error))
    return given, faults


def missing_folders(experiment: Experiment) -> list[str]:
    """Folders of classes that the settings name but that do not exist; checked without the data set."""
    method, sources = experiment.method, experiment.dataset.sources or ()
    if not isinstance(method, DreamBooth) or method.prior != "images":
        return []
    named = [(f"dataset.sources.{number}.class_data_dir", each.class_data_dir) for number, each in enumerate(sources)]
    return [
        _not_there(key, path)
        for key, path in [("method.class_data_dir", method.class_data_dir), *named]
        if path is not None and not is_s3(path) and not path_of(path).exists()
    ]


def _not_there(key: str, path: str) -> str:
    return f"{key} = {path!r}: there is no such folder; correct or remove it"


def _check_folder(said: _Said, settings: DatasetSettings, dataset: Dataset) -> None:
    path = said.folder
    if path is None or said.described or is_s3(path):
        return
    folder = path_of(path).resolve()
    if not folder.exists():
        raise SettingsError(_not_there(said.folder_key, path))
    named = [each.class_folder.resolve() for each in dataset.described if each.class_folder is not None]
    if any(folder.is_relative_to(each) for each in named):
        return
    for number, subject in enumerate(settings.paths):
        place = path_of(subject).resolve()
        of_subject = f"dataset.sources.{number}.path" if len(settings.paths) > 1 else "dataset.path"
        if place != folder and place.is_relative_to(folder) and place.exists():
            raise SettingsError(
                f"{said.folder_key} = {path!r}: holds {of_subject} = {subject!r}, whose images would be trained as "
                "those of the class, too; move one out of the other"
            )
        if folder.is_relative_to(place):
            raise SettingsError(
                f"{said.folder_key} = {path!r}: is in {of_subject}, where its images are trained as the subject's; "
                "move it out, or name it as class_data_dir in dataset_info.json"
            )


def _class_images(said: _Said, data: DatasetSettings, read: Callable[[DatasetSettings], Dataset]) -> tuple[Item, ...]:
    if said.folder is None:
        return ()
    settings = DatasetSettings(
        path=said.folder,
        instance_prompt=said.prompt or "without a prompt",  # a missing one is reported elsewhere
        skip_unreadable=data.skip_unreadable,
        min_side_px=data.min_side_px,
    )
    try:
        found = read(settings).without_masks()
    except SettingsError as error:
        raise SettingsError(without_settings(str(error)).replace("dataset.path", said.folder_key)) from error
    left_out = [row for row in found.report.rows if row.outcome == "dropped"]
    if left_out:
        shown = "; ".join(f"{row.file}: {', '.join(row.notes)}" for row in left_out[:5])
        log.warning("%s = %r: %d images are left out, such as %s", said.folder_key, said.folder, len(left_out), shown)
    return tuple(dataclasses.replace(item, caption=said.prompt, more_captions=()) for item in found.items)


def _refuse_one_image_in_two_classes(items: Sequence[Item], of_source: Mapping[int, int]) -> None:
    """Such samples could not be told apart once the data set is sent elsewhere."""
    first: dict[tuple[str, ...], Item] = {}
    for item in items:
        other = first.setdefault((item.id, *item.captions), item)
        if of_source[other.source] != of_source[item.source]:
            raise SettingsError(
                f"dataset.sources: {other.file} and {item.file} are the same image with the same caption, and of "
                "different classes; leave it out of one of them, or give it another caption there"
            )
