"""Frozen results, computed once through the cache: VAE posteriors of crops and text embeddings of captions.

Always encodes in fp32, whatever the training precision, so that all precisions share entries and no VAE overflows.

# Shape suffixes: B crops or captions in a batch, H W pixels, h w latent pixels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from runner.cache.encodings import caption_cache, caption_key, encoder_hashes, posterior_cache, posterior_key
from runner.cache.store import TensorCache
from runner.data import Crop, render
from runner.data.captions import shown
from runner.data.dataset import reading_place
from runner.data.views import View
from runner.errors import DatasetError
from runner.families.family import Family, Text, TextStack
from runner.schema.shapes import Shape
from runner.system.hashes import folder_hash
from runner.system.machine import host_memory_gb
from runner.train.inputs.on_disk import OnDisk, Stored
from runner.train.inputs.shared_out import SharedWork, share_out
from runner.train.memory import is_full
from runner.train.place import Place

log = logging.getLogger(__name__)

PIXELS_PER_BATCH = 1024 * 1024
CAPTIONS_PER_BATCH = 32
"""On a GPU. On a CPU it is one, which is just as fast, so that an encoding does not depend on its batch."""
ENTRIES_PER_TURN = 64
"""Entries a worker encodes before it checks again what others have done."""

MEMORY_SHARE = 0.25
"""The share of the host's memory that encoded images may take, and captions as much again; captions exist twice while
they are being arranged."""


def encode_views(
    views: Iterable[View],
    *,
    vae_folder: Path,
    load_vae: Callable[[], AutoencoderKL],
    place: Place,
    variant: str | None = None,
    on_disk: bool = False,
) -> Mapping[tuple[str, Crop], tuple[Tensor, Tensor]]:
    """Encode every view with the VAE: its posterior's (mean, standard deviation), each `[C, h, w]`, fp32 on the CPU.

    Args:
        on_disk: read each entry when it is needed, instead of keeping all in memory if they fit.
        vae_folder: the VAE's files; their content is part of the cache key.
        load_vae: called only if something is missing.
        variant: which of the files in the folder to read, if there are several.
    """
    identity = folder_hash(vae_folder)
    # In the order on disk: reading a row of a table reads its whole group. A data set that was sent elsewhere has
    # the same order there.
    in_order = sorted(views, key=lambda view: reading_place(view.item))
    wanted: dict[str, View] = {}
    for view in in_order:  # of copies of one image, keep the first, which comes next on the disk
        wanted.setdefault(posterior_key(view, vae=identity, variant=variant), view)
    cache = posterior_cache()

    def encode(keys: Sequence[str]) -> None:
        vae = load_vae()
        # On a CPU one at a time, like captions: in batches, the last bits depend on what else was missing at that
        # moment, so a job that resumes with a half-full cache would train to a different result.
        most_px = 0 if place.device.type == "cpu" else PIXELS_PER_BATCH
        for part in _alike(keys, wanted, most_px):
            place.heed()
            pixels_B3HW = torch.stack(list(part.values())).to(place.device)
            with torch.no_grad():
                posterior = vae.encode(pixels_B3HW).latent_dist
            for key, mean, std in zip(part, posterior.mean.cpu(), posterior.std.cpu(), strict=True):
                _refuse_non_finite(mean, std, what=f"the VAE's encoding of {wanted[key].item.file}")
                cache.put(key, {"mean": mean, "std": std})

    entries = complete(cache, list(wanted), encode, place=place, what="images", on_disk=on_disk or None)
    if isinstance(entries, OnDisk):
        names = {view.key: key for key, view in wanted.items()}  # copies have the same key
        return Stored(names, entries, lambda entry: (entry["mean"], entry["std"]))
    return {wanted[key].key: (entry["mean"], entry["std"]) for key, entry in entries.items()}


def encode_captions(
    captions: Iterable[str],
    *,
    family: Family,
    model_folder: Path,
    load_text: Callable[[], TextStack],
    place: Place,
    variant: str | None = None,
    on_disk: bool = False,
) -> Mapping[str, Text]:
    """The embeddings of every caption, without a batch dimension, fp32 on the CPU; `on_disk` as in `encode_views`."""
    encoders = encoder_hashes(model_folder)
    name = family.__name__ if hasattr(family, "__name__") else type(family).__name__
    wanted = {caption_key(caption, encoders=encoders, variant=variant, family=name): caption for caption in captions}
    cache = caption_cache()

    def encode(keys: Sequence[str]) -> None:
        encoded = encode_at_once([wanted[key] for key in keys], family, load_text, place)
        for key, (_, entry) in zip(keys, encoded, strict=True):
            cache.put(key, entry)

    entries = complete(cache, list(wanted), encode, place=place, what="captions", on_disk=on_disk or None)
    if isinstance(entries, OnDisk):
        return Stored({caption: key for key, caption in wanted.items()}, entries, lambda entry: entry)
    return {wanted[key]: entry for key, entry in entries.items()}


def encode_at_once(
    captions: Sequence[str], family: Family, load_text: Callable[[], TextStack], place: Place
) -> Iterator[tuple[str, Text]]:
    """The embeddings of captions as `encode_captions` returns them, without a cache; loads nothing if there are none.

    If the text encoders do not fit on the GPU, the CPU encodes: with T5 they need 20 GB in fp32.
    """
    if not captions:
        return
    text = load_text()
    device = torch.device("cpu") if text.beyond_gpu else place.device
    batch = 1 if device.type == "cpu" else CAPTIONS_PER_BATCH
    for start in range(0, len(captions), batch):
        place.heed()
        part = captions[start : start + batch]
        rows = _encoded(part, family, text, device)
        if rows is None:
            log.warning("the text encoders do not fit in the GPU's memory: captions are encoded on the CPU")
            text.beyond_gpu, device = True, torch.device("cpu")
            rows = _encoded(part, family, text, device)
        assert rows is not None
        for index, caption in enumerate(part):
            entry = {name: tensor[index].cpu() for name, tensor in rows.items()}
            _refuse_non_finite(*entry.values(), what=f"the encoding of the caption {shown(caption)}")
            yield caption, entry


def _encoded(captions: Sequence[str], family: Family, text: TextStack, device: torch.device) -> Text | None:
    """The embeddings of a few captions; None if they do not fit on the GPU."""
    try:
        for encoder in text.encoders:
            encoder.to(device)
        ids = [each.to(device) for each in text.tokenizers.ids(captions)]
        with torch.no_grad():
            return family.encode_text(text, ids)
    except RuntimeError as error:
        if device.type == "cpu" or not is_full(error):
            raise
        return None


def complete(
    cache: TensorCache,
    keys: Sequence[str],
    encode: Callable[[Sequence[str]], None],
    *,
    place: Place,
    what: str,
    on_disk: bool | None = False,
) -> Mapping[str, dict[str, Tensor]]:
    """Every entry of a cache; missing ones are encoded first, each by one of the processes that share the cache.

    Args:
        on_disk: read entries when they are needed instead of keeping them in memory. None: only if they do not fit.

    Raises:
        Interrupted: a signal asked to stop; what was encoded so far is in the cache.
    """

    def begin(missing: int) -> None:
        log.info("%d %s: %d in the cache, %d to encode", len(keys), what, len(keys) - missing, missing)

    def so_far(missing: int) -> None:
        log.info("%d of %d %s are encoded", len(keys) - missing, len(keys), what)

    encoding = SharedWork(
        folder=cache.folder,
        per_turn=ENTRIES_PER_TURN,
        lock=partial(_turn, cache),
        is_there=cache.has,
        do=encode,
        begin=begin,
        so_far=so_far,
        what=f"encode its {what}",
        doing=f"encoding the same {what}",
    )
    share_out(keys, encoding, place)
    if on_disk is None:
        on_disk = not _fit(cache, keys, len(place.beside(cache.folder)), what=what, says=place.is_main)
    if on_disk:
        return OnDisk(cache, keys, encode)
    entries = {key: cache.get(key) for key in keys}
    damaged = [key for key, entry in entries.items() if entry is None]
    if damaged:  # a truncated file, or someone cleaned up at this moment
        encode(damaged)
        entries |= {key: cache.get(key) for key in damaged}
    return {key: entry for key, entry in entries.items() if entry is not None}


def _turn(cache: TensorCache, keys: Sequence[str]) -> Path:
    """The lock file for encoding these keys; one of a few names, since the files stay. Turns may share one and wait."""
    return cache.folder / f"{hashlib.sha256(''.join(sorted(keys)).encode()).hexdigest()[:2]}.lock"


def _fit(cache: TensorCache, keys: Sequence[str], processes: int, *, what: str, says: bool) -> bool:
    """Whether all of these entries fit in the host's memory once for each of this many processes."""
    memory_gb, size_gb = host_memory_gb(), cache.size_bytes(keys) / 1e9
    if memory_gb is None or size_gb * processes <= MEMORY_SHARE * memory_gb:
        return True
    if says:
        log.info(
            "%d %s take %.1f GB, too much for %.1f GB of memory: they are read from the cache at every step",
            *(len(keys), what, size_gb, memory_gb),
        )
    return False


def _alike(keys: Sequence[str], wanted: Mapping[str, View], most_px: int) -> Iterator[dict[str, Tensor]]:
    """The pixels of the keys in batches of one shape, each as large as may be encoded at once.

    Images are read in the order of the keys, which is their order on disk, and wait here for others of their shape.
    """
    waiting: dict[Shape, dict[str, Tensor]] = {}
    for key in keys:
        crop = wanted[key].crop
        shape = crop.height_px, crop.width_px
        portion = waiting.setdefault(shape, {})
        portion[key] = _pixels(wanted[key])
        if len(portion) >= most_px // (shape[0] * shape[1]):
            yield waiting.pop(shape)
    yield from waiting.values()


def _pixels(view: View) -> Tensor:
    """The crop as VAE input, `[3, H, W]` in [-1, 1]."""
    array_HW3 = render(view.item, view.crop)
    return torch.from_numpy(np.ascontiguousarray(array_HW3)).permute(2, 0, 1).float() / 127.5 - 1


def _refuse_non_finite(*tensors: Tensor, what: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise DatasetError(f"{what} is not finite (NaN or infinite); check that file and the model's weights")
