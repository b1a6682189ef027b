"""What is measured on images: which metrics, with which networks, for which prompts."""

from __future__ import annotations

from typing import Literal, NamedTuple

from runner.schema.knob import Settings, knob, section

MetricName = Literal["fid", "kid", "clip_text", "clip_image", "dino", "base_drift"]
Network = Literal["inception", "clip", "dino"]


class Metric(NamedTuple):
    """A metric's name in the results, what it needs, and which direction is better."""

    figure: str
    network: Network | None
    of_real_images: bool
    least_images: int = 1
    more_is_better: bool = False


METRICS: dict[MetricName, Metric] = {
    "fid": Metric("fid_score", "inception", True, 2),
    "kid": Metric("kid_score", "inception", True, 2),
    "clip_text": Metric("clip_text_score", "clip", False, more_is_better=True),
    "clip_image": Metric("clip_image_score", "clip", True, more_is_better=True),
    "dino": Metric("dino_score", "dino", True, more_is_better=True),
    "base_drift": Metric("base_drift", None, False),
}


class FeatureSettings(Settings):
    """Section `features`: the networks that look at images. None comes with the package. A job's identity includes
    their content, not their names.
    """

    inception: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="For `fid` and `kid`: a TorchScript file that maps bytes to features, or a folder or Hub id as below.",
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


class EvaluationSettings(Settings):
    """Section `evaluation`: what is measured of a training before it is completed; on with `evaluation.metrics`."""

    metrics: tuple[MetricName, ...] | None = knob(
        None,
        min_length=1,
        doc="What to measure. Null measures nothing after a training, and with `task=evaluate` everything whose "
        "network (`features`) and images (`real`) are given.",
    )
    features: FeatureSettings = section(FeatureSettings)
    real: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="Real images of the subject or style to compare with: folder, table, S3 or Hub id, as in `dataset.path`.",
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
        doc="Known words, such as `dog`, that replace `subject` in the texts for `clip_text`, whose network does not "
        "know new ones; null is `subject`.",
    )
    subject_kind: Literal["object", "live"] = knob(
        "object",
        doc="Which of DreamBooth's prompt lists to use where `prompts` is null: things, or people and animals.",
    )
    drift_in: Literal["pixels", "clip", "dino"] = knob(
        "pixels", doc="What `base_drift` compares: pixels, or features of that network."
    )
    confidence: float = knob(0.95, gt=0.5, lt=1, unit="share", doc="Confidence level of the intervals.")
    bootstrap: int = knob(
        1000, ge=100, le=100_000, unit="resamples", doc="How often images are resampled for the intervals."
    )
