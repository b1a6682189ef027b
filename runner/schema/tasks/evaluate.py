"""`task=evaluate`: how good the images of a base model with trained adapters are, as numbers with intervals."""

from __future__ import annotations

from typing import ClassVar

from pydantic import field_validator, model_validator

from runner.schema.drawing import DrawingSettings
from runner.schema.evaluation import METRICS, EvaluationSettings, MetricName, Network
from runner.schema.family import drawing_faults
from runner.schema.knob import in_a_list, knob, section
from runner.schema.tasks.adapters import WithAdapters
from runner.schema.training import SchedulerSettings


class Evaluate(WithAdapters, DrawingSettings, EvaluationSettings):
    """`task=evaluate`: measure what a base model draws with trained adapters, or without any."""

    local_files: ClassVar[tuple[str, ...]] = ("real", "features.inception", "features.clip", "features.dino")
    resolution: int = knob(64, ge=8, le=8192, multiple_of=8, unit="px", doc="Side of the square images.")
    scheduler: SchedulerSettings = section(SchedulerSettings)

    @property
    def measured(self) -> tuple[MetricName, ...]:
        """The metrics, in the order in which they are told."""
        return tuple(name for name in METRICS if name in (self.metrics or ())) if self.metrics else self._possible

    @property
    def needs_real(self) -> bool:
        """Whether real images are looked at."""
        return any(METRICS[name].of_real_images for name in self.measured)

    @property
    def draws_subject(self) -> bool:
        """Whether the prompts are drawn; the drift is measured on others."""
        return any(name != "base_drift" for name in self.measured)

    @property
    def networks(self) -> dict[Network, str]:
        """The networks that are used, by their keys in `features`."""
        wanted = {METRICS[name].network for name in self.measured}
        if "base_drift" in self.measured and self.drift_in != "pixels":
            wanted.add(self.drift_in)
        given: dict[Network, str | None] = {
            "inception": self.features.inception,
            "clip": self.features.clip,
            "dino": self.features.dino,
        }
        return {key: named for key, named in given.items() if key in wanted and named is not None}

    @property
    def _possible(self) -> tuple[MetricName, ...]:
        return tuple(name for name in METRICS if not self._missing(name))

    def _missing(self, name: MetricName) -> str:
        """The setting that a metric lacks; empty where it can be measured."""
        metric = METRICS[name]
        network = metric.network or (self.drift_in if self.drift_in != "pixels" else None)
        if network is not None and getattr(self.features, network) is None:
            return f"features.{network}=<network>"
        if metric.of_real_images and self.real is None:
            return "real=<folder of images>"
        return "adapter=<job>" if name == "base_drift" and not self.adapter else ""

    _one_text = field_validator("metrics", "prompts", mode="before")(in_a_list)

    @model_validator(mode="after")
    def _fits_the_family(self) -> Evaluate:
        if faults := drawing_faults(self, self):
            raise ValueError("\n".join(faults))
        return self

    @model_validator(mode="after")
    def _can_be_measured(self) -> Evaluate:
        asked: tuple[MetricName, ...] = self.metrics or ()
        faults = [
            f"metrics = {list(asked)}: {name} needs {missing}" for name in asked if (missing := self._missing(name))
        ]
        if faults:
            raise ValueError("; ".join(faults))
        if not self.measured:
            raise ValueError(
                "metrics = null: nothing can be measured; give a network (features.clip=..., features.dino=..., "
                "features.inception=...) and real=<folder>, or an adapter for base_drift"
            )
        return self

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Evaluate:
        if self.prompts is not None and (not self.prompts or any(not prompt.strip() for prompt in self.prompts)):
            raise ValueError(f"prompts = {list(self.prompts)}: should hold texts; null is DreamBooth's list")
        drawn = [prompt.replace("{}", self.subject or "{}") for prompt in self.prompts or ()]
        if twice := next((prompt for prompt in drawn if drawn.count(prompt) > 1), None):
            raise ValueError(
                f"prompts = {list(self.prompts or ())}: {twice!r} stands there twice, and copies would count as images "
                "of their own; name it once, and give more seeds for more images"
            )
        asks = self.draws_subject and (self.prompts is None or any("{}" in prompt for prompt in self.prompts))
        if asks and self.subject is None:
            raise ValueError(
                "subject = null: the prompts have a place for it; set subject='sks dog' (the words that the adapter "
                "was taught), or prompts=[...] without {}"
            )
        idle = [key for key in ("subject", "subject_class") if getattr(self, key) is not None and not asks]
        if idle:
            raise ValueError(f"{idle[0]} = {getattr(self, idle[0])!r}: has no effect, no prompt has {{}}; remove it")
        return self

    @model_validator(mode="after")
    def _takes_effect(self) -> Evaluate:
        if not self.draws_subject and (self.prompts is not None or self.subject_kind != "object"):
            idle = f"subject_kind = {self.subject_kind}" if self.prompts is None else f"prompts = {list(self.prompts)}"
            raise ValueError(
                f"{idle}: has no effect on base_drift, which is measured on neutral prompts of its own; remove it, or "
                "measure something else as well"
            )
        if self.subject_kind != "object" and self.prompts is not None:
            raise ValueError(f"subject_kind = {self.subject_kind}: has no effect with prompts=[...]; remove it")
        if self.drift_in != "pixels" and "base_drift" not in self.measured:
            raise ValueError(f"drift_in = {self.drift_in}: has no effect without base_drift among metrics; remove it")
        # Where metrics are chosen, what is given may be more than they need; here it was meant to choose them.
        if self.metrics is None and self.real is not None and not self.needs_real:
            raise ValueError(
                f"real = {self.real!r}: has no effect, for no network is given that compares with real images; give "
                "one (features.inception=..., features.clip=..., features.dino=...), or remove it"
            )
        return self
