"""Which trained adapters a task uses, and how strong each is."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import field_validator

from runner.schema.drawing import AdapterWeight
from runner.schema.job import JobSettings
from runner.schema.knob import knob
from runner.system.values import as_typed


class WithAdapters(JobSettings):
    """A task that uses trained adapters. A job's identity includes their content, not their names."""

    adapter: tuple[str, ...] = knob(
        (),
        max_length=32,
        identity=False,
        doc="Trained adapters: folders of jobs, `.safetensors` files, or Hub ids; one, or a list to mix.",
    )
    adapter_weight: tuple[AdapterWeight, ...] = knob(
        (1.0,),
        min_length=1,
        doc="How strong each adapter is: one number for all, or a list with one for each; 1 is as it was trained.",
    )

    @property
    def weighted(self) -> tuple[tuple[str, float], ...]:
        """(adapter, its weight)."""
        same = len(self.adapter_weight) == 1
        weights = self.adapter_weight * len(self.adapter) if same else self.adapter_weight
        return tuple(zip(self.adapter, weights, strict=True))

    @field_validator("adapter", "adapter_weight", mode="before")
    @classmethod
    def _one_alone(cls, value: object) -> object:
        return (value,) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value

    def _faults(self) -> Iterator[str]:
        if len(set(self.adapter)) < len(self.adapter):
            yield f"adapter = {as_typed(self.adapter)}: names one twice; name it once, with the sum of the weights"
        weights = self.adapter_weight
        if not self.adapter and self.chosen("adapter_weight"):
            yield f"adapter_weight = {as_typed(weights)}: has no effect without adapter=...; remove it"
        elif len(weights) not in (1, len(self.adapter)):
            yield (
                f"adapter_weight = {as_typed(weights)}: {len(weights)} weights for {len(self.adapter)} adapters; give "
                "one for all, or one for each"
            )
