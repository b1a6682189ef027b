"""`task=export`: a trained adapter in the layouts of other programs, and on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import field_validator

from runner.schema.knob import Settings, in_a_list, knob, section
from runner.schema.tasks.adapters import WithAdapters

Format = Literal["diffusers", "kohya", "kohya_alpha"]


class HubSettings(Settings):
    """`hub`: where on the Hub the export goes. The token comes from the environment (`HF_TOKEN`)."""

    push: bool = knob(False, doc="Put the exported folder into a repository on the Hub.")
    repo_id: str | None = knob(None, min_length=1, doc="The repository, as `owner/name`; it is made if need be.")
    private: bool = knob(True, doc="Whether a repository that is made is private.")
    base_model: str | None = knob(
        None,
        min_length=1,
        doc="Hub id of the base model, for the card; null is `model.path`, where that is one.",
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
        doc="Layouts to write: `diffusers`; `kohya` for ComfyUI, A1111 and others, with the scale in the weights, so "
        "that every reader takes it alike; `kohya_alpha`, with alpha beside the factors as they were trained.",
    )
    rank: int | None = knob(
        None,
        ge=1,
        le=1024,
        doc="Largest rank of a layer: the nearest update of that rank is taken, and how much of it that is, is "
        "printed; null leaves the ranks.",
    )
    keep_energy: float | None = knob(
        None,
        gt=0,
        le=1,
        unit="share of the squared norm",
        doc="Instead of `rank`: each layer gets the least rank that keeps so much of its update.",
    )
    hub: HubSettings = section(HubSettings)

    _one_format = field_validator("formats", mode="before")(in_a_list)

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.adapter:
            yield "adapter = []: there is nothing to export; set adapter=<folder of a job>"
        if len(self.adapter) > 1:
            yield (
                f"adapter = {list(self.adapter)}: one is exported at a time; put them together first with task=merge "
                "output=adapter, or sweep over them with -m"
            )
        if not self.formats:
            yield "formats = []: names none; take some of diffusers, kohya, kohya_alpha"
        if len(set(self.formats)) < len(self.formats):
            yield f"formats = {list(self.formats)}: names one twice"
        if self.rank is not None:
            yield from self.idle("keep_energy", because=f"with rank={self.rank}", fix="remove one of them")
