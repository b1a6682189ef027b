"""`task=evaluate`: how good the images of a base model with trained adapters are, as numbers with intervals."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from pydantic import field_validator, model_validator

from runner.schema.drawing import DrawingSettings
from runner.schema.family import drawing_faults
from runner.schema.knob import Settings, knob, section
from runner.schema.tasks.adapters import WithAdapters
from runner.schema.training import SchedulerSettings

MetricName = Literal["fid", "kid", "clip_text", "clip_image", "dino", "base_drift"]
Network = Literal["inception", "clip", "dino"]


class Metric(NamedTuple):
    """What a metric is called in figures, and what it needs."""

    figure: str
    network: Network | None
    of_real_images: bool
    least_images: int = 1


METRICS: dict[MetricName, Metric] = {
    "fid": Metric("fid_score", "inception", True, 2),
    "kid": Metric("kid_score", "inception", True, 2),
    "clip_text": Metric("clip_text_score", "clip", False),
    "clip_image": Metric("clip_image_score", "clip", True),
    "dino": Metric("dino_score", "dino", True),
    "base_drift": Metric("base_drift", None, False),
}


class FeatureSettings(Settings):
    """Section `features`: the networks that look at images. None comes with the package. In a job's identity their
    content stands for their names.
    """

    inception: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="For `fid` and `kid`: a TorchScript file from bytes to features, or a folder or Hub id as below.",
    )
    clip: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="For `clip_text` and `clip_image`: a CLIP in transformers layout, a folder or a Hub id.",
    )
    dino: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="For `dino`: a DINO, DINOv2 or other vision transformer in transformers layout, a folder or a Hub id.",
    )


class Evaluate(WithAdapters, DrawingSettings):
    """`task=evaluate`: measure what a base model draws with trained adapters, or without any."""

    local_files: ClassVar[tuple[str, ...]] = ("real", "features.inception", "features.clip", "features.dino")
    metrics: tuple[MetricName, ...] | None = knob(
        None,
        min_length=1,
        doc="What to measure; null is everything whose network (`features`) and images (`real`) are given.",
    )
    features: FeatureSettings = section(FeatureSettings)
    real: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="Real images of the subject or style, to compare with: folder, table, S3 or Hub id, as `dataset.path`.",
    )
    prompts: tuple[str, ...] | None = knob(
        None,
        max_length=1000,
        doc="What to draw; `{}` stands for `subject`. Null is DreamBooth's 25 prompts (arXiv 2208.12242).",
    )
    subject: str | None = knob(
        None, min_length=1, doc="The words that the adapter was taught for its subject, such as `sks dog`."
    )
    subject_class: str | None = knob(
        None,
        min_length=1,
        doc="What stands for them in the text of `clip_text`, which does not know new words, such as `dog`; null is "
        "`subject`.",
    )
    subject_kind: Literal["object", "live"] = knob(
        "object", doc="Which of DreamBooth's lists: things, or people and animals; without `prompts`."
    )
    drift_in: Literal["pixels", "clip", "dino"] = knob(
        "pixels", doc="What `base_drift` compares: pixels, or features of that network."
    )
    confidence: float = knob(0.95, gt=0.5, lt=1, unit="share", doc="Width of the intervals.")
    bootstrap: int = knob(
        1000, ge=100, le=100_000, unit="resamples", doc="How often images are resampled for the intervals."
    )
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

    @field_validator("metrics", "prompts", mode="before")
    @classmethod
    def _one_text(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

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
        if self.subject_kind != "object" and not (self.draws_subject and self.prompts is None):
            raise ValueError(f"subject_kind = {self.subject_kind}: has no effect with prompts=[...]; remove it")
        if self.drift_in != "pixels" and "base_drift" not in self.measured:
            raise ValueError(f"drift_in = {self.drift_in}: has no effect without base_drift among metrics; remove it")
        return self
