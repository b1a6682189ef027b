"""`task=merge`: adapters put into a base, or put together into one adapter."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from runner.paths import LORA_NAME, WEIGHTS_NAME
from runner.schema.inputs import Precision
from runner.schema.knob import knob
from runner.schema.tasks.adapters import WithAdapters


class Merge(WithAdapters):
    """`task=merge`: what comes out can be trained further with `model.path`, or used with `adapter`."""

    result_files: ClassVar[tuple[str, ...]] = (
        "model/model_index.json",
        "model.safetensors",
        f"{LORA_NAME}/{WEIGHTS_NAME}",
    )
    output: Literal["folder", "single_file", "adapter"] = knob(
        "folder",
        doc="`folder` writes the base with the adapters in its weights as `model/`, in diffusers layout; `single_file` "
        "as `model.safetensors`, which ComfyUI and A1111 read; `adapter` writes the adapters as one.",
    )
    dtype: Precision | None = knob(
        None,
        doc="Precision of the merged base's weights; the sum is made in fp32 and rounded once. Null is as each part of "
        "the base is stored.",
    )
    rank: int | None = knob(
        None,
        ge=1,
        le=1024,
        doc="With `output=adapter`: largest rank of a layer; the nearest update of that rank is taken, and how much of "
        "it that is, is printed. Null adds the ranks up, which is exact.",
    )
    keep_energy: float | None = knob(
        None,
        gt=0,
        le=1,
        unit="share of the squared norm",
        doc="With `output=adapter`, instead of `rank`: each layer gets the least rank that keeps so much of it.",
    )
    archive: bool = knob(
        False, doc="With `output=folder`: write `model.tar.gz` besides, which `model.path` takes, here and in S3."
    )

    @model_validator(mode="after")
    def _takes_effect(self) -> Merge:
        if not self.adapter:
            raise ValueError("adapter = []: there is nothing to merge; set adapter=<folder of a job>, or a list")
        if self.output == "adapter" and self.dtype is not None:
            raise ValueError(f"dtype = {self.dtype!r}: has no effect with output=adapter, which is in fp32; remove it")
        for key in ("rank", "keep_energy"):
            if getattr(self, key) is not None and self.output != "adapter":
                raise ValueError(f"{key} = {getattr(self, key)}: has no effect with output={self.output}; remove it")
        if self.rank is not None and self.keep_energy is not None:
            raise ValueError(
                f"keep_energy = {self.keep_energy}: has no effect with rank={self.rank}; remove one of them"
            )
        if self.archive and self.output != "folder":
            raise ValueError(f"archive = true: has no effect with output={self.output}; remove it")
        if self.output == "adapter" and len(self.adapter) == 1 and self.rank is None and self.keep_energy is None:
            raise ValueError(
                "output = 'adapter': one adapter alone is one already; name several, or set rank=... to make it smaller"
            )
        return self
