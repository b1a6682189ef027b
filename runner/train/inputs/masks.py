"""Which parts of each crop count in a masked loss: the image's mask, cropped like the image and sized like its latents.

# Shape suffixes: H W pixels of the crop, h w latent pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.cache.store import TensorCache, entry_key
from runner.data import Crop, render_mask
from runner.data.views import View
from runner.errors import DatasetError
from runner.paths import cache_dir
from runner.train.inputs.encode import complete
from runner.train.place import Place


class Masks(dict[tuple[str, Crop], Tensor]):
    """The mask of every crop, `[1, h, w]` in [0, 1], by mask and crop; a class, so that it can be weakly referenced."""


def masks_of(views: Iterable[View], latents: Mapping[tuple[str, Crop], tuple[Tensor, Tensor]], place: Place) -> Masks:
    """The masks of those views that have one, through the cache.

    A latent pixel counts as much as the pixels it covers do on average.

    Args:
        latents: the posteriors of the views, which give the size of the latents.

    Raises:
        DatasetError: a mask is black everywhere, so its image would never count.
    """
    wanted: dict[str, tuple[View, str, tuple[int, int]]] = {}
    for view in views:
        if view.item.mask is not None:
            height, width = latents[view.key][0].shape[-2:]
            name = view.item.mask.id
            key = entry_key("mask", mask=name, crop=view.crop.content(), latent=[height, width])
            wanted[key] = view, name, (height, width)
    cache = TensorCache(cache_dir() / "masks", names=("mask",))

    def reduce(keys: Sequence[str]) -> None:
        for key in keys:
            view, _, size = wanted[key]
            mask_HW = torch.from_numpy(render_mask(view.item, view.crop)).float() / 255
            cache.put(key, {"mask": F.interpolate(mask_HW[None, None], size, mode="area")[0]})

    entries = complete(cache, list(wanted), reduce, place=place, what="masks")
    masks = Masks()
    seen: dict[str, bool] = {}
    for key, (view, name, _) in wanted.items():
        masks[name, view.crop] = entries[key]["mask"]
        seen[name] = seen.get(name, False) or bool(entries[key]["mask"].any())
    for view, name, _ in wanted.values():
        if not seen[name]:
            assert view.item.mask is not None
            raise DatasetError(
                f"{view.item.mask.file}: the mask of {view.item.file} is black wherever the image is cut, so that "
                "nothing of it would count. Paint white what counts, or remove the image"
            )
    return masks
