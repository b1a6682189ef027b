"""What one job trains on, encoded: its images (split into training and held-out), its captions, its prompts."""

from __future__ import annotations

import dataclasses
import logging
from collections import ChainMap
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

from runner.data import Dataset, Item, read_dataset, split
from runner.data.captions import as_measured, captions_of, shown
from runner.data.classes import Prior, prior_of
from runner.data.prompts import prompts_of
from runner.data.report import MANIFEST_ROWS
from runner.data.views import View, buckets_of, class_views_of, held_out_crop, repeated, views_of
from runner.errors import SettingsError
from runner.jobs.adapter_file import AdapterFile
from runner.jobs.earlier import find_earlier
from runner.jobs.job import Job
from runner.schema import Experiment
from runner.schema.method import DreamBooth, NewTokens
from runner.train.base import Base
from runner.train.inputs.class_images import draw_class_images
from runner.train.inputs.encode import encode_captions, encode_views
from runner.train.inputs.masks import Masks, masks_of
from runner.train.inputs.on_disk import Stored
from runner.train.inputs.pairing import Pairing
from runner.train.inputs.prior import OfBase, OfImages, Stream, WithPrior
from runner.train.inputs.samples import EMPTY, Posteriors, PosteriorsInMemory, Samples
from runner.train.inputs.schedule import Schedule
from runner.train.inputs.text import Conditioner, EncodedText, LiveText, StoredText
from runner.train.inputs.tokens import TokenText, as_long
from runner.train.start import Kept, earlier_items
from runner.train.validation import HeldOut

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Captions of the data that are longer than the text encoders allow."""

    captions: tuple[str, ...]


@dataclasses.dataclass
class Materials:
    """The inputs of one job, ready to train on."""

    dataset: Dataset
    training: tuple[Item, ...]
    held_out: tuple[Item, ...]
    prompts: tuple[str, ...]
    captions: tuple[str, ...]
    samples: Stream
    held_out_samples: HeldOut
    conditioner: Conditioner
    cut: Cut
    buckets: Sequence[dict[str, Any]] = ()
    """How many images each aspect-ratio bucket has (`runner.data.buckets.bucket_table`); empty without buckets."""
    class_images: int = 0
    """Number of class images trained along with the subject's."""
    earlier: AdapterFile | None = None
    """The adapter the job starts from, ..."""
    kept: Kept | None = None
    """... and how much of its training is kept, if that can be measured."""

    def about(self) -> dict[str, Any]:
        """The manifest's entry about the data: of long lists of files and captions, the first ones and a count."""
        more = len(self.cut.captions) - MANIFEST_ROWS
        return {
            "fingerprint": self.dataset.fingerprint,
            "images": len(self.training),
            "held_out": len(self.held_out),
            "loss_measured_on": "held-out images" if self.held_out else "training images",
            "class_images": self.class_images,
            "cut_captions": list(self.cut.captions[:MANIFEST_ROWS]),
            **({"more_cut_captions": more} if more > 0 else {}),
            "table": self.dataset.report.as_dict(limit=MANIFEST_ROWS),
        } | ({"buckets": list(self.buckets)} if self.buckets else {})

    def all_images(self) -> dict[str, Any] | None:
        """What the manifest has no room for; None if it holds everything."""
        about = self.about()
        if "more_cut_captions" not in about and "more_rows" not in about["table"]:
            return None
        return {"cut_captions": list(self.cut.captions), "table": self.dataset.report.as_dict()}


def prepare(job: Job, base: Base) -> Materials:
    """Read, split and encode one job's data.

    Raises:
        DatasetError: something is wrong with the images or captions.
    """
    settings = job.experiment
    dataset, prior = base.place.together(lambda: _planned(job, base), what="read the data set")
    training, held_out = split(dataset.items, held_out=settings.validation.held_out)
    measured = as_measured(held_out or training, settings.dataset)
    prompts = prompts_of(settings, dataset.items)
    earlier = _planned_start(job)
    before = earlier_items(earlier, settings) if earlier else ()
    negative = settings.validation.negative_prompt
    of_images = (caption for item in dataset.items for caption in captions_of(item, settings.dataset))
    said_here = list(dict.fromkeys([*of_images, *(prior.prompts if prior else ())]))
    words = settings.method if isinstance(settings.method, NewTokens) else None
    said = {caption: as_long(caption, words) if words else caption for caption in said_here}
    cut = _cut(said, base)
    if cut.captions and base.place.is_main:
        log.warning(
            "%d of %d captions are longer than the %d tokens the text encoder takes, and are cut; the first: %s",
            *(len(cut.captions), len(said_here), base.tokenizers.limit, shown(cut.captions[0])),
        )
    captions = tuple(
        dict.fromkeys([*said_here, *prompts, *(item.caption for item in before), EMPTY, negative or EMPTY])
    )
    conditioner = _conditioner(settings, captions, base)
    views = views_of(dataset.items, settings)
    key = (dataset.fingerprint, settings.validation.held_out, *_cropping(settings))
    on_disk = settings.dataset.streams
    posteriors = _own_posteriors(views, prior, base, key=("posteriors", *key), on_disk=on_disk)
    masks = _masks(views, posteriors, base, key=("masks", *key)) if settings.loss.masked else None
    own = _samples(settings, repeated(training), posteriors, base, masks=masks)
    samples, class_images = _beside(job, prior, own, dataset.items, base, conditioner)
    return Materials(
        dataset=dataset,
        training=training,
        held_out=held_out,
        prompts=prompts,
        captions=captions,
        samples=samples,
        held_out_samples=HeldOut(settings, measured, posteriors, base),
        conditioner=conditioner,
        cut=cut,
        buckets=buckets_of(dataset.items, settings),
        class_images=class_images,
        earlier=earlier,
        kept=_kept(before, settings, base) if before else None,
    )


def _planned_start(job: Job) -> AdapterFile | None:
    earlier = find_earlier(job.experiment.lora)
    if earlier is not None and earlier.digest != job.identity.get("init"):
        raise SettingsError(
            f"lora.init_from = {job.experiment.lora.init_from!r}: has changed since the job was planned; run the "
            "command again"
        )
    return earlier


def _kept(items: Sequence[Item], settings: Experiment, base: Base) -> Kept:
    views = [View(item, held_out_crop(item, settings)) for item in items]
    key = ("earlier posteriors", tuple(item.id for item in items), *_cropping(settings))
    return Kept(HeldOut(settings, items, _posteriors([views], base, key=key), base))


def _planned(job: Job, base: Base) -> tuple[Dataset, Prior | None]:
    settings, resolution = job.experiment.dataset, job.experiment.resolution
    planned = job.identity["dataset"], job.identity.get("prior")
    # If another job of the pack has loaded this data, use that, whatever the files look like by now.
    key = ("data set", settings, resolution, job.identity["dataset"])
    # Try the local copy of data in S3 first; it may be older than the plan if that was made on another machine.
    for refresh in (False, True):
        shared: Dataset | None = base.shared.get(key)
        dataset = shared or read_dataset(settings, resolution=resolution, refresh=refresh)
        prior = prior_of(job.experiment, dataset, read=partial(read_dataset, refresh=refresh))
        if (dataset.fingerprint, prior and prior.identity) == planned:
            base.shared[key] = dataset
            return dataset, prior
    raise SettingsError(
        f"dataset.path = {', '.join(settings.paths)!r}: the images or captions, or those of the class, have changed "
        "since the job was planned; run the command again"
    )


def _cut(said: Mapping[str, str], base: Base) -> Cut:
    """The captions that are too long, judged by the text that is read for each; every encoder checks every caption."""
    key = ("cut captions", tuple(said.items()))
    found: Cut | None = base.shared.get(key)
    if found is None:
        too_long = set(base.tokenizers.too_long(list(dict.fromkeys(said.values()))))
        found = base.shared[key] = Cut(tuple(caption for caption, read in said.items() if read in too_long))
    return found


def _beside(
    job: Job, prior: Prior | None, own: Samples, items: Sequence[Item], base: Base, conditioner: Conditioner
) -> tuple[Stream, int]:
    """(a job's samples together with what preserves their class, number of class images)."""
    settings = job.experiment
    if prior is None:
        return own, 0
    assert isinstance(settings.method, DreamBooth)
    weight = settings.method.prior_loss_weight
    classes = [prior.class_of(item) for item in own.items]
    if settings.method.prior == "base":
        return WithPrior(own, OfBase(own, [prior.classes[each].prompt for each in classes]), weight=weight), 0
    class_items: list[Item] = []
    sizes, parts = [], []
    for each in prior.classes:
        # They are the same for every job, so they must not depend on encoders that one of the jobs trains.
        by = _encoded_text((each.prompt, EMPTY), base) if base.live_text else conditioner
        drawn = draw_class_images(job, each, base, by) if each.to_draw else ()
        # Separately: what is encoded together affects the last digits, which must not depend on where the images lie.
        parts += [class_views_of(part, items, settings) for part in (each.items, drawn) if part]
        sizes.append(len(each.items) + len(drawn))
        class_items += sorted([*each.items, *drawn], key=lambda item: item.id)
    key = ("class posteriors", *(tuple(view.key for view in part) for part in parts))
    of_class = _posteriors(parts, base, key=key)
    schedule = None
    if len(sizes) > 1:
        assert isinstance(own.schedule, Schedule)
        schedule = Pairing(own.schedule, classes, sizes, purpose="class order")
    of_images = OfImages(_samples(settings, class_items, of_class, base, stream="class ", schedule=schedule))
    return WithPrior(own, of_images, weight=weight), len(class_items)


def _samples(
    settings: Experiment,
    items: Sequence[Item],
    posteriors: Posteriors,
    base: Base,
    *,
    masks: Masks | None = None,
    stream: str = "",
    schedule: Pairing | None = None,
) -> Samples:
    return Samples(
        settings,
        items,
        posteriors,
        vae_config=base.vae_config,
        process=base.noise,
        masks=masks,
        stream=stream,
        schedule=schedule,
    )


def _cropping(settings: Experiment) -> tuple[Hashable, ...]:
    """What the crops of an image depend on."""
    data = settings.dataset
    buckets = (data.buckets, data.bucket_step, data.bucket_max_aspect)
    return (settings.resolution, data.crop, data.variants, data.flip, *buckets)


def _masks(views: Sequence[View], posteriors: Posteriors, base: Base, *, key: tuple[Hashable, ...]) -> Masks:
    found: Masks | None = base.shared.get(key)
    if found is None:
        found = base.shared[key] = masks_of(views, posteriors, base.place)
    return found


def _own_posteriors(
    views: Sequence[View], prior: Prior | None, base: Base, *, key: tuple[Hashable, ...], on_disk: bool
) -> Posteriors:
    """Posteriors of the subjects' images; with several classes, one class at a time, as they may be sent elsewhere."""
    if prior is None or len(prior.classes) == 1:
        return _posteriors([views], base, key=key, on_disk=on_disk)
    classes = tuple(prior.class_of(view.item) for view in views)
    parts = [
        [view for view, each in zip(views, classes, strict=True) if each == number]
        for number in range(len(prior.classes))
    ]
    return _posteriors(parts, base, key=(*key, classes), on_disk=on_disk)


def _posteriors(
    parts: Sequence[Sequence[View]], base: Base, *, key: tuple[Hashable, ...], on_disk: bool = False
) -> Posteriors:
    """The posteriors of several parts as one; each part is encoded separately."""
    found: Posteriors | None = base.shared.get((on_disk, *key))
    if found is None:
        each = [
            encode_views(
                views,
                vae_folder=base.vae_folder,
                load_vae=lambda: base.vae,
                place=base.place,
                variant=base.settings.variant,
                on_disk=on_disk,
            )
            for views in parts
        ]
        if any(isinstance(part, Stored) for part in each):
            found = each[0] if len(each) == 1 else ChainMap(*each)  # type: ignore[arg-type] # nothing writes to it
        else:
            found = PosteriorsInMemory(pair for part in each for pair in part.items())
        base.shared[on_disk, *key] = found
    return found


def _conditioner(settings: Experiment, captions: tuple[str, ...], base: Base) -> Conditioner:
    if isinstance(settings.method, NewTokens):
        return TokenText(
            base.family, base.text, base.placed_tokens, settings.method, captions, device=base.place.device
        )
    if base.live_text:
        return LiveText(base.family, base.text, captions, device=base.place.device)
    return _encoded_text(captions, base, on_disk=settings.dataset.streams)


def _encoded_text(captions: tuple[str, ...], base: Base, *, on_disk: bool = False) -> Conditioner:
    found: EncodedText | StoredText | None = base.shared.get(("captions", on_disk, captions))
    if found is None:
        encoded = encode_captions(
            captions,
            family=base.family,
            model_folder=base.folder,
            load_text=base.frozen_text,
            place=base.place,
            variant=base.settings.variant,
            on_disk=on_disk,
        )
        base.set_text_aside()
        kind = StoredText if isinstance(encoded, Stored) else EncodedText
        found = kind(encoded, zeros_for_empty=base.zeros_for_empty, device=base.place.device)
        base.shared["captions", on_disk, captions] = found
    return found
