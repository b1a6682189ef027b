"""`task=export`: a trained adapter in the layouts of other programs, and on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import field_validator

from runner.schema.knob import Settings, in_a_list, knob, section
from runner.schema.tasks.adapters import WithAdapters
from runner.system.values import as_typed

Format = Literal["diffusers", "kohya", "kohya_alpha"]


class HubSettings(Settings):
    """`hub`: where on the Hub the export goes. The token comes from the environment (`HF_TOKEN`)."""

    push: bool = knob(False, doc="Push the exported folder to a repository on the Hub.")
    repo_id: str | None = knob(None, min_length=1, doc="The repository, as `owner/name`; it is created if necessary.")
    private: bool = knob(True, doc="Whether a repository that is created is private.")
    base_model: str | None = knob(
        None,
        min_length=1,
        doc="Hub id of the base model, for the card; null is `model.path`, if that is one.",
    )

    def _faults(self) -> Iterator[str]:
        if self.push and self.repo_id is None:
            yield "repo_id: has no value; set hub.repo_id=owner/name, or hub.push=false"
        if not self.push:
            yield from self.idle("repo_id", "private", because="without hub.push=true", fix="set that, or remove it")


class Export(WithAdapters):
    """`task=export`: write `export/` in the job's folder, with a model card."""

    result_files: ClassVar[tuple[str, ...]] = ("export/*.safetensors",)
    formats: tuple[Format, ...] = knob(
        ("diffusers", "kohya"),
        doc="Layouts to write: `diffusers`; `kohya` for ComfyUI, A1111 and others, with the scale folded into the "
        "weights, so that every reader applies it alike; `kohya_alpha`, with alpha beside the factors as they were "
        "trained.",
    )
    rank: int | None = knob(
        None,
        ge=1,
        le=1024,
        doc="Largest rank of a layer: larger updates are replaced by the nearest one of this rank, and the share that "
        "is kept is printed; null keeps the ranks.",
    )
    keep_energy: float | None = knob(
        None,
        gt=0,
        le=1,
        unit="share of the squared norm",
        doc="Instead of `rank`: each layer gets the smallest rank that keeps this much of its update.",
    )
    hub: HubSettings = section(HubSettings)

    _one_format = field_validator("formats", mode="before")(in_a_list)

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.adapter:
            yield "adapter = []: there is nothing to export; set adapter=<folder of a job>"
        if len(self.adapter) > 1:
            yield (
                f"adapter = {as_typed(self.adapter)}: one is exported at a time; put them together first with "
                "task=merge output=adapter, or sweep over them with -m"
            )
        if not self.formats:
            yield "formats = []: names no format; choose from diffusers, kohya, kohya_alpha"
        if len(set(self.formats)) < len(self.formats):
            yield f"formats = {as_typed(self.formats)}: names a format twice; name it once"
        if self.rank is not None:
            yield from self.idle("keep_energy", because=f"with rank={self.rank}", fix="remove one of them")
