"""The encodings that a job needs, by their names in the cache: known before anything is encoded.

Does not use torch: the plan counts what is already cached, the worker encodes the rest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Sequence
from pathlib import Path

from runner.cache.store import TensorCache, entry_key
from runner.data import Item
from runner.data.captions import captions_of
from runner.data.classes import Prior
from runner.data.prompts import prompts_of
from runner.data.views import View, class_views_of, views_of
from runner.families.files import local_folder, model_folder, vae_folder
from runner.families.known import FAMILIES
from runner.families.layout import index_of
from runner.jobs.job import Job
from runner.paths import cache_dir
from runner.schema import Experiment, ModelSettings
from runner.schema.method import DreamBooth
from runner.system.hashes import folder_hash

LATENT_PX = 8
"""Image pixels per side of one latent position, for all families' own VAEs."""
NUMBER_BYTES = 4
"""Encodings are kept in fp32."""


def posterior_cache() -> TensorCache:
    """The store of VAE posteriors: mean and standard deviation of each crop."""
    return TensorCache(cache_dir() / "posteriors", names=("mean", "std"))


def caption_cache() -> TensorCache:
    """The store of text embeddings."""
    return TensorCache(cache_dir() / "captions", names=("embeds",))


def posterior_key(view: View, *, vae: str, variant: str | None) -> str:
    """The entry name of a crop's posterior; `vae` is the hash of the VAE's files."""
    return entry_key("posterior", vae=vae, variant=variant, image=view.item.id, crop=view.crop.content())


def caption_key(caption: str, *, encoders: Sequence[str], variant: str | None, family: str) -> str:
    """The entry name of a caption's embeddings; `encoders` are the hashes of the encoders' and tokenizers' files."""
    return entry_key("caption", encoders=list(encoders), variant=variant, family=family, caption=caption)


def encoder_hashes(model: Path) -> list[str]:
    """Hashes of a model's text encoders and tokenizers, without those that its index leaves out."""
    index = index_of(model)
    left_out = {name for name, kind in index.items() if isinstance(kind, list) and kind[:1] == [None]}
    names = sorted(folder.name for folder in model.iterdir() if folder.name.startswith(("text_", "tokenizer")))
    return [folder_hash(model / name) for name in names if name not in left_out]


def class_images_folder(experiment: Experiment, prompt: str, *, model: str) -> Path:
    """The folder for the images of a class that the base model draws; `model` is its fingerprint."""
    method = experiment.method
    assert isinstance(method, DreamBooth), method
    key = entry_key(
        "class images",
        # Describes the method where it has changed: images drawn in an earlier way are not reused.
        drawn="by frozen encoders, unclipped",
        model=model,
        prediction=[experiment.model.prediction_type, experiment.model.zero_terminal_snr],
        prompt=prompt,
        resolution=experiment.resolution,
        precision=experiment.precision,
        quantization=experiment.model.quantization,
        sampler=[experiment.scheduler.name, experiment.scheduler.eta],
        steps=method.class_inference_steps,
        guidance=FAMILIES[experiment.model.family].guidance(method.class_guidance_scale),
    )
    return cache_dir() / "class-images" / key


def class_image_name(index: int) -> str:
    """The file name of one of them, which is drawn from the seed `index`."""
    return f"{index:05d}.png"


@dataclasses.dataclass(frozen=True)
class CacheWork:
    """How much of what jobs need is already encoded."""

    images: int = 0
    images_missing: int = 0
    captions: int = 0
    captions_missing: int = 0
    class_images_missing: int = 0
    """Class images that the base model draws first; each is then encoded as well."""
    missing_gb: float = 0.0
    """Approximate size of the missing encodings, in units of 1e9 bytes."""

    def line(self) -> str:
        """In words."""
        drawn = f"; {self.class_images_missing} class images to draw" if self.class_images_missing else ""
        return (
            f"cache: {self.images} crops, {self.images_missing} of them to encode; "
            f"{self.captions} captions, {self.captions_missing} to encode{drawn}"
        )


@dataclasses.dataclass(frozen=True)
class Need:
    """A job, with the data it works on."""

    job: Job
    items: Sequence[Item]
    prior: Prior | None = None


@dataclasses.dataclass(frozen=True)
class Keys:
    """The names of all encodings that a job uses, and the files of class images that the base model draws for it."""

    posteriors: set[str]
    captions: set[str]
    to_draw: set[Path]


class KeyFinder:
    """Finds what jobs use; jobs that differ only in what no encoding depends on, such as seeds, share a lookup."""

    def __init__(self) -> None:
        self._hashes: dict[ModelSettings, tuple[str, list[str]]] = {}
        self._found: dict[tuple[Hashable, ...], Keys] = {}

    def keys_of(self, need: Need) -> Keys | None:
        """What a job uses; None if its model's files are not on this machine yet."""
        experiment, identity = need.job.experiment, need.job.identity
        model = experiment.model
        if model not in self._hashes:
            folder = model_folder(model)
            vae = local_folder(model.vae) if model.vae else None
            if folder is None or (model.vae and vae is None):
                return None
            self._hashes[model] = folder_hash(vae_folder(folder, vae)), encoder_hashes(folder)
        contents = json.dumps([identity["model"], identity["dataset"], identity.get("prior")])
        of_data = experiment.dataset, experiment.resolution, experiment.validation, experiment.live_text
        of_drawing = (experiment.method, experiment.precision, experiment.scheduler) if need.prior else None
        same = contents, model, of_data, of_drawing
        if same not in self._found:
            self._found[same] = _keys_of(need, *self._hashes[model])
        return self._found[same]


def _keys_of(need: Need, vae_hash: str, encoders: Sequence[str]) -> Keys:
    experiment, items, prior = need.job.experiment, need.items, need.prior
    model = experiment.model
    views, to_draw = views_of(items, experiment), set[Path]()
    if prior is not None:
        for each in prior.classes:
            views += class_views_of(each.items, items, experiment)
            folder = class_images_folder(experiment, each.prompt, model=need.job.identity["model"])
            to_draw |= {folder / class_image_name(index) for index in range(each.to_draw)}
    posteriors = {posterior_key(view, vae=vae_hash, variant=model.variant) for view in views}
    captions = set()
    if not experiment.live_text:
        words = {caption for item in items for caption in captions_of(item, experiment.dataset)}
        words |= {
            *prompts_of(experiment, items),
            "",
            experiment.validation.negative_prompt or "",
            *(prior.prompts if prior else ()),
        }
        captions = {
            caption_key(text, encoders=encoders, variant=model.variant, family=f"runner.families.{model.family}")
            for text in words
        }
    return Keys(posteriors, captions, to_draw)


def cache_work(needs: Sequence[Need]) -> CacheWork | None:
    """Count what some jobs need and what is missing; None if a model's files are not on this machine yet."""
    posteriors: dict[str, int] = {}
    captions: dict[str, int] = {}
    to_draw: set[Path] = set()
    finder = KeyFinder()
    found = [(finder.keys_of(need), need.job.experiment) for need in needs]
    for keys, experiment in {id(keys): (keys, experiment) for keys, experiment in found}.values():
        if keys is None:
            return None
        posteriors |= dict.fromkeys(keys.posteriors, _posterior_bytes(experiment))
        captions |= dict.fromkeys(keys.captions, FAMILIES[experiment.model.family].caption_numbers * NUMBER_BYTES)
        to_draw |= keys.to_draw
    new_posteriors = [size for key, size in posteriors.items() if not posterior_cache().has(key)]
    new_captions = [size for key, size in captions.items() if not caption_cache().has(key)]
    return CacheWork(
        images=len(posteriors),
        images_missing=len(new_posteriors),
        captions=len(captions),
        captions_missing=len(new_captions),
        class_images_missing=sum(not file.is_file() for file in to_draw),
        missing_gb=(sum(new_posteriors) + sum(new_captions)) / 1e9,
    )


def _posterior_bytes(experiment: Experiment) -> int:
    """Size of the mean and standard deviation of a crop of the usual area, for the usual VAE of its family."""
    side = experiment.resolution // LATENT_PX
    return 2 * FAMILIES[experiment.model.family].latent_channels * side * side * NUMBER_BYTES
