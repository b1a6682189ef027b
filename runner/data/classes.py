"""What a subject is one of: the class prompt, images of the class that are there, and how many are to be drawn.

Knows settings and data sets; drawing is for those who have the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from runner.data.dataset import Dataset, fingerprint_of, read_dataset
from runner.data.item import Item
from runner.errors import SettingsError
from runner.s3 import is_s3
from runner.schema import DatasetSettings, Experiment
from runner.schema.method import DreamBooth


@dataclasses.dataclass(frozen=True)
class Prior:
    """What a DreamBooth job keeps of the class."""

    prompt: str
    items: tuple[Item, ...]
    """Images of the class that the user has, captioned with the class prompt."""
    to_draw: int
    """Images that the base model draws beside them."""

    @property
    def identity(self) -> dict[str, str | None]:
        """What tells it from others: the prompt and the fingerprint of the given images.

        What is drawn beside them follows from the settings and the base model.
        """
        return {"prompt": self.prompt, "images": fingerprint_of(self.items) if self.items else None}


def prior_of(
    experiment: Experiment, dataset: Dataset, *, read: Callable[[DatasetSettings], Dataset] = read_dataset
) -> Prior | None:
    """The prior that a job keeps, or None if it keeps none.

    Args:
        experiment: its settings.
        dataset: its images, whose `dataset_info.json` may name the class.
        read: reads the images of the class.

    Raises:
        SettingsError: nothing says what the class is, or where its images come from, or these have faults.
    """
    method = experiment.method
    if not isinstance(method, DreamBooth) or method.prior == "none":
        return None
    prompt = (method.class_prompt or dataset.class_prompt or "").strip()
    if not prompt:
        raise SettingsError(
            "method.class_prompt = null: a prior needs one, such as 'a photo of a dog'; set it, put class_prompt into "
            "dataset_info.json, or set method.prior=none"
        )
    if method.prior == "base":
        return Prior(prompt, (), 0)
    items = _class_images(_class_folder(experiment, method, dataset), prompt, read)
    to_draw = max(0, method.num_class_images - len(items))
    if not items and not to_draw:
        raise SettingsError(
            "method.num_class_images = 0: there are no images of the class either; set method.class_data_dir, or let "
            "the base model draw some"
        )
    return Prior(prompt, items, to_draw)


def _class_folder(settings: Experiment, method: DreamBooth, dataset: Dataset) -> str | None:
    path = method.class_data_dir
    if path is None:
        return None if dataset.class_folder is None else str(dataset.class_folder)
    if is_s3(path):
        return path
    folder = Path(path).expanduser().resolve()
    subjects = [Path(each).expanduser().resolve() for each in settings.dataset.paths]
    if not folder.exists():
        raise SettingsError(f"method.class_data_dir = {path!r}: there is no such folder; correct or remove it")
    known = dataset.class_folder is not None and folder.is_relative_to(dataset.class_folder.resolve())
    if any(folder.is_relative_to(subject) for subject in subjects) and not known:
        raise SettingsError(
            f"method.class_data_dir = {path!r}: lies in dataset.path, where its images are trained as the subject's; "
            "move it out, or name it as class_data_dir in dataset_info.json"
        )
    return path


def _class_images(folder: str | None, prompt: str, read: Callable[[DatasetSettings], Dataset]) -> tuple[Item, ...]:
    if folder is None:
        return ()
    settings = DatasetSettings(path=folder, instance_prompt=prompt)
    try:
        found = read(settings)
    except SettingsError as error:
        raise SettingsError(str(error).replace("dataset.path", "method.class_data_dir")) from error
    return tuple(dataclasses.replace(item, caption=prompt, more_captions=()) for item in found.items)
