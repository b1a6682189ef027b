"""`task=merge`: adapters merged into a base, or combined into one adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from runner.paths import LORA_NAME, WEIGHTS_NAME
from runner.schema.inputs import Precision
from runner.schema.knob import knob
from runner.schema.tasks.adapters import WithAdapters


class Merge(WithAdapters):
    """`task=merge`: merge adapters; the result can be trained further with `model.path`, or used with `adapter`."""

    result_files: ClassVar[tuple[str, ...]] = (
        "model/model_index.json",
        "model.safetensors",
        f"{LORA_NAME}/{WEIGHTS_NAME}",
    )
    output: Literal["folder", "single_file", "adapter"] = knob(
        "folder",
        doc="`folder` writes the base with the adapters merged into its weights as `model/`, in diffusers layout; "
        "`single_file` writes it as `model.safetensors`, which ComfyUI and A1111 read; `adapter` writes the adapters "
        "as one.",
    )
    dtype: Precision | None = knob(
        None,
        doc="Precision of the merged base's weights; the sum is computed in fp32 and rounded once. Null keeps the "
        "precision in which each part of the base is stored.",
    )
    rank: int | None = knob(
        None,
        ge=1,
        le=1024,
        doc="With `output=adapter`: largest rank of a layer; larger updates are replaced by the nearest one of this "
        "rank, and the share that is kept is printed. Null adds the ranks up, which is exact.",
    )
    keep_energy: float | None = knob(
        None,
        gt=0,
        le=1,
        unit="share of the squared norm",
        doc="With `output=adapter`, instead of `rank`: each layer gets the smallest rank that keeps this much of it.",
    )
    archive: bool = knob(
        False, doc="With `output=folder`: also write `model.tar.gz`, which `model.path` accepts, local or in S3."
    )

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.adapter:
            yield "adapter = []: there is nothing to merge; set adapter=<folder of a job>, or a list"
        with_output = f"with output={self.output}"
        if self.output != "folder":
            yield from self.idle("archive", because=with_output)
        if self.output != "adapter":
            yield from self.idle("rank", "keep_energy", because=with_output)
            return
        yield from self.idle("dtype", because=f"{with_output}, which is in fp32")
        if self.rank is not None:
            yield from self.idle("keep_energy", because=f"with rank={self.rank}", fix="remove one of them")
        elif len(self.adapter) == 1 and self.keep_energy is None:
            fix = "name several, or set rank=... or keep_energy=... to make it smaller"
            yield f"output = 'adapter': one adapter alone is one already; {fix}"
