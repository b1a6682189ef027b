"""`task=evaluate`: how good the images of a base model with trained adapters are, as numbers with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import field_validator

from runner.schema.drawing import DrawingSettings
from runner.schema.evaluation import METRICS, EvaluationSettings, MetricName, Network
from runner.schema.family import drawing_faults
from runner.schema.knob import in_a_list, knob, section
from runner.schema.tasks.adapters import WithAdapters
from runner.schema.training import SchedulerSettings
from runner.system.values import as_typed


class Evaluate(WithAdapters, DrawingSettings, EvaluationSettings):
    """`task=evaluate`: measure what a base model draws with trained adapters, or without any."""

    local_files: ClassVar[tuple[str, ...]] = ("real", "features.inception", "features.clip", "features.dino")
    resolution: int = knob(64, ge=8, le=8192, multiple_of=8, unit="px", doc="Side of the square images.")
    scheduler: SchedulerSettings = section(SchedulerSettings)

    @property
    def measured(self) -> tuple[MetricName, ...]:
        """The metrics, in the order in which they are reported."""
        return tuple(name for name in METRICS if name in (self.metrics or ())) if self.metrics else self._possible

    @property
    def needs_real(self) -> bool:
        """Whether real images are needed."""
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
        """The setting that a metric lacks; empty if it can be measured."""
        metric = METRICS[name]
        network = metric.network or (self.drift_in if self.drift_in != "pixels" else None)
        if network is not None and getattr(self.features, network) is None:
            return f"features.{network}=<network>"
        if metric.of_real_images and self.real is None:
            return "real=<folder of images>"
        return "adapter=<job>" if name == "base_drift" and not self.adapter else ""

    _one_text = field_validator("metrics", "prompts", mode="before")(in_a_list)

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        yield from drawing_faults(self, self)
        asked: tuple[MetricName, ...] = self.metrics or ()
        yield from (
            f"metrics = {as_typed(asked)}: {name} needs {missing}" for name in asked if (missing := self._missing(name))
        )
        if not self.measured:
            yield (
                "metrics = null: nothing can be measured; give a network (features.clip=..., features.dino=..., "
                "features.inception=...) and real=<folder>, or an adapter for base_drift"
            )
            return
        yield from self._faults_of_prompts()
        yield from self._idle()

    def _faults_of_prompts(self) -> Iterator[str]:
        if self.prompts is not None and (not self.prompts or any(not prompt.strip() for prompt in self.prompts)):
            yield f"prompts = {as_typed(self.prompts)}: should hold texts; null is DreamBooth's list"
            return
        drawn = [prompt.replace("{}", self.subject or "{}") for prompt in self.prompts or ()]
        if twice := next((prompt for prompt in drawn if drawn.count(prompt) > 1), None):
            yield (
                f"prompts = {as_typed(self.prompts)}: {twice!r} is named twice, and copies would count as images "
                "of their own; name it once, and give more seeds for more images"
            )
        asks = self.draws_subject and (self.prompts is None or any("{}" in prompt for prompt in self.prompts))
        if asks and self.subject is None:
            yield (
                "subject = null: the prompts have a {} for it; set subject='sks dog' (the words that the adapter "
                "was taught), or prompts=[...] without {}"
            )
        if self.draws_subject and not asks:
            yield from self.idle("subject", "subject_class", because="without {} in a prompt")

    def _idle(self) -> Iterator[str]:
        if not self.draws_subject:
            own = "on base_drift, which is measured on neutral prompts of its own"
            fix = "remove it, or measure something else as well"
            yield from self.idle("subject", "subject_class", "subject_kind", "prompts", because=own, fix=fix)
        elif self.prompts is not None:
            yield from self.idle("subject_kind", because="with prompts=[...]")
        if "base_drift" not in self.measured:
            yield from self.idle("drift_in", because="without base_drift among metrics")
        # Chosen metrics may need less than is given; without a choice, what is given was meant to select them.
        if self.metrics is None and not self.needs_real:
            networks = "features.inception=..., features.clip=..., features.dino=..."
            because = "without a network that compares with real images"
            yield from self.idle("real", because=because, fix=f"give one ({networks}), or remove it")
