"""`hydra/sweeper=sagemaker_tuning`: the settings of a search that Amazon SageMaker makes (docs/sweeps.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from runner.schema.knob import Settings, dashed, knob, spelt

MOST_PARENTS = 5
"""Most earlier tuning jobs that one may learn from."""
TUNING_JOB = spelt(
    r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}",
    "the name of a tuning job: up to 32 letters and digits, and dashes between them",
    lambda text: dashed(text, 32) or "dev-tuning",
)


class TuningSettings(Settings):
    """`hydra/sweeper=sagemaker_tuning`: a search by SageMaker's automatic model tuning (needs `-m` and
    `launcher=sagemaker`); the terms are SageMaker's own."""

    n_trials: int = knob(20, ge=1, unit="training jobs", doc="Trials in all.")
    parallel: int = knob(
        2,
        ge=1,
        unit="training jobs",
        doc="Trials that run at the same time; the more there are, the less `Bayesian` learns.",
    )
    strategy: Literal["Bayesian", "Random", "Hyperband"] = knob(
        "Bayesian",
        doc="How values are chosen; `Hyperband` also stops trials early that fall behind, by what they measure "
        "(`validation.every`).",
    )
    early_stopping: Literal["Off", "Auto"] = knob(
        "Off", doc="`Auto` stops trials early that are unlikely to beat the median, by what they measure."
    )
    min_resource: int | None = knob(
        None, ge=1, unit="measurements", doc="`Hyperband` stops no trial before this many; null leaves it to SageMaker."
    )
    max_resource: int | None = knob(
        None, ge=1, unit="measurements", doc="Longest that `Hyperband` lets a trial run; null leaves it to SageMaker."
    )
    warm_start: Annotated[tuple[Annotated[str, TUNING_JOB], ...], Field(max_length=MOST_PARENTS)] = knob(
        (), doc="Names of earlier tuning jobs, at most five, to learn from."
    )
    warm_start_type: Literal["IdenticalDataAndAlgorithm", "TransferLearning"] = knob(
        "IdenticalDataAndAlgorithm",
        doc="Whether those had the same data and image, so that their trials count as this search's own, or different "
        "ones.",
    )
    seed: int | None = knob(None, ge=0, lt=2**31, doc="Seed for choosing values; null lets SageMaker draw one.")

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, value: object) -> object:
        return "Off" if value is False else value  # Off is false in YAML

    def _faults(self) -> Iterator[str]:
        if self.strategy == "Hyperband":
            by_itself = "with strategy=Hyperband, which ends trials early by itself"
            yield from self.idle("early_stopping", because=by_itself, fix="remove one of them")
        else:
            yield from self.idle("min_resource", "max_resource", because="without strategy=Hyperband")
        if self.min_resource and self.max_resource and self.min_resource > self.max_resource:
            yield f"min_resource = {self.min_resource}: is above max_resource = {self.max_resource}; lower it"
        if not self.warm_start:
            yield from self.idle("warm_start_type", because="without warm_start")

    @property
    def ends_early(self) -> bool:
        """Whether trials may be stopped before their last step, by what they have measured."""
        return self.strategy == "Hyperband" or self.early_stopping == "Auto"
