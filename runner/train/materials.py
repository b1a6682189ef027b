"""What one job trains on, encoded: its images split into training and held-out ones, its captions, its prompts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable
from typing import Any

from runner.data import Dataset, Item, read_dataset, split
from runner.data.captions import captions_of
from runner.data.views import buckets_of, repeated, views_of
from runner.encodings import prompts_of
from runner.errors import SettingsError
from runner.job import Job
from runner.schema import Experiment
from runner.train.base import Base
from runner.train.encode import encode_captions, encode_views
from runner.train.masks import Masks, masks_of
from runner.train.samples import EMPTY, Posteriors, Samples
from runner.train.text import Conditioner, EncodedText, LiveText
from runner.train.validation import HeldOut

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Materials:
    """The inputs of one job, ready to train on."""

    dataset: Dataset
    training: tuple[Item, ...]
    held_out: tuple[Item, ...]
    prompts: tuple[str, ...]
    captions: tuple[str, ...]
    samples: Samples
    held_out_samples: HeldOut
    conditioner: Conditioner
    cut_captions: tuple[str, ...]
    """Captions of the data that are longer than the text encoders take."""
    buckets: list[dict[str, Any]]
    """How many images each aspect-ratio bucket has (`runner.data.buckets.bucket_table`); empty without buckets."""

    def about(self) -> dict[str, Any]:
        """What the manifest says of the data."""
        return {
            "fingerprint": self.dataset.fingerprint,
            "images": len(self.training),
            "held_out": len(self.held_out),
            "loss_measured_on": "held-out images" if self.held_out else "training images",
            "cut_captions": list(self.cut_captions),
            "table": self.dataset.report.as_dict(),
        } | ({"buckets": self.buckets} if self.buckets else {})


def prepare(job: Job, base: Base) -> Materials:
    """Read, split and encode one job's data.

    Raises:
        DatasetError: something is wrong with the images or captions.
    """
    settings = job.experiment
    dataset = base.place.together(lambda: _planned_dataset(job), what="read the data set")
    training, held_out = split(dataset.items, held_out=settings.validation.held_out)
    measured = held_out or training
    prompts = prompts_of(settings, dataset.items)
    posteriors = _posteriors(settings, base, dataset)
    masks = _masks(settings, base, dataset, posteriors) if settings.loss.masked else None
    negative = settings.validation.negative_prompt
    own = list(dict.fromkeys(caption for item in dataset.items for caption in captions_of(item, settings.dataset)))
    cut = tuple(base.tokenizers.too_long(own))
    if cut and base.place.is_main:
        log.warning(
            "%d of %d captions are longer than the %d tokens the text encoder takes, and are cut; the first: %r",
            *(len(cut), len(own), base.tokenizers.limit, cut[0]),
        )
    captions = dict.fromkeys([*own, *prompts, EMPTY, negative or EMPTY])
    return Materials(
        dataset=dataset,
        training=training,
        held_out=held_out,
        prompts=prompts,
        captions=tuple(captions),
        samples=Samples(
            settings,
            repeated(training),
            posteriors,
            vae_config=base.vae_config,
            num_timesteps=base.noise.num_timesteps,
            masks=masks,
        ),
        held_out_samples=HeldOut(settings, measured, posteriors, base),
        conditioner=_conditioner(tuple(captions), base),
        cut_captions=cut,
        buckets=buckets_of(dataset.items, settings),
    )


def _planned_dataset(job: Job) -> Dataset:
    settings = job.experiment.dataset
    # A copy of what lies in S3 is what was planned with, unless the plan was made on another machine.
    for refresh in (False, True):
        dataset = read_dataset(settings, resolution=job.experiment.resolution, refresh=refresh)
        if dataset.fingerprint == job.identity["dataset"]:
            return dataset
    raise SettingsError(
        f"dataset.path = {', '.join(settings.paths)!r}: the images or captions have changed since the job was "
        "planned; run the command again"
    )


def _posteriors(settings: Experiment, base: Base, dataset: Dataset) -> Posteriors:
    key = ("posteriors", *_cut_key(settings, dataset))
    found: Posteriors | None = base.shared.get(key)
    if found is None:
        views = views_of(dataset.items, settings)
        variant = base.settings.variant
        found = Posteriors(
            encode_views(
                views, vae_folder=base.vae_folder, load_vae=lambda: base.vae, place=base.place, variant=variant
            )
        )
        base.shared[key] = found
    return found


def _masks(settings: Experiment, base: Base, dataset: Dataset, posteriors: Posteriors) -> Masks:
    key = ("masks", *_cut_key(settings, dataset))
    found: Masks | None = base.shared.get(key)
    if found is None:
        found = masks_of(views_of(dataset.items, settings), posteriors, base.place)
        base.shared[key] = found
    return found


def _cut_key(settings: Experiment, dataset: Dataset) -> tuple[Hashable, ...]:
    """What the crops of a data set depend on."""
    data, share = settings.dataset, settings.validation.held_out
    cut = (data.crop, data.variants, data.flip, data.buckets, data.bucket_step, data.bucket_max_aspect)
    return (dataset.fingerprint, settings.resolution, *cut, share)


def _conditioner(captions: tuple[str, ...], base: Base) -> Conditioner:
    if base.trains_text:
        return LiveText(base.family, base.text, captions, device=base.place.device)
    found: EncodedText | None = base.shared.get(("captions", captions))
    if found is None:
        encoded = encode_captions(
            captions,
            family=base.family,
            model_folder=base.folder,
            load_text=lambda: base.text,
            place=base.place,
            variant=base.settings.variant,
        )
        found = EncodedText(encoded, zeros_for_empty=base.zeros_for_empty, device=base.place.device)
        base.shared["captions", captions] = found
    return found
