"""Group `loss`: how far a prediction is from its target, how much each timestep counts, and the noise that is added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from runner.schema.knob import Settings, knob

TIMESTEPS = 1000
"""Timesteps that every model of the families so far is trained with."""

Timestep = Annotated[int, Field(ge=0, le=TIMESTEPS)]


class LossSettings(Settings):
    """Group `loss`: error of the prediction, weighted by timestep, and the noise it is trained on."""

    name: Literal["mse", "huber"] = knob(
        "mse",
        doc="Error of each element: squared, or pseudo-Huber, which is less sensitive to outliers (arXiv 2403.16728).",
    )
    huber_c: float = knob(
        0.1, gt=0, le=1, doc="Where `huber` changes from squared to absolute error; used with `name=huber`."
    )
    huber_schedule: Literal["exponential", "snr", "constant"] = knob(
        "exponential",
        doc="`huber_c` over the timesteps: from 1 without noise down to `huber_c` at the last one, exponentially or by "
        "the signal-to-noise ratio; or the same everywhere.",
    )
    snr_gamma: float | None = knob(
        None, gt=0, doc="Min-SNR weighting with this gamma (arXiv 2303.09556; 5 is usual); null is off."
    )
    debiased: bool = knob(
        False, doc="Debiased estimation weighting, 1 / sqrt(SNR) where noise is predicted (arXiv 2310.08442)."
    )
    noise_offset: float = knob(
        0.0,
        ge=0,
        le=1,
        doc="Adds a constant shift per channel to the noise, this much of it (0.03-0.1 is usual).",
    )
    masked: bool = knob(
        False,
        doc="Average each sample's error over the white area of its mask (`dataset.masks`) instead of the whole image; "
        "an image without a mask counts in full.",
    )
    multires_levels: int = knob(
        0, ge=0, le=16, doc="Mixes coarser noise into the noise on this many levels (6-10 is usual); 0 is off."
    )
    multires_discount: float = knob(
        0.3, gt=0, lt=1, doc="Weight of each coarser level relative to the one before it; used with `multires_levels`."
    )
    input_perturbation: float = knob(
        0.0,
        ge=0,
        le=1,
        doc="Adds this much noise to what the model sees, on top of the noise it should predict (arXiv 2301.11706; 0.1 "
        "is usual).",
    )
    timestep_bias: Literal["none", "earlier", "later", "range"] = knob(
        "none",
        doc="Timesteps that are drawn more often: the `earlier`, less noisy ones, the `later` ones, or those of "
        "`timestep_bias_range`.",
    )
    timestep_bias_multiplier: float = knob(
        2.0, ge=0, le=1000, doc="How many times as often; 0 is never. Used with `timestep_bias`."
    )
    timestep_bias_portion: float = knob(
        0.25, gt=0, lt=1, unit="share of timesteps", doc="How many timesteps are `earlier` or `later`."
    )
    timestep_bias_range: tuple[Timestep, Timestep] | None = knob(
        None, doc="First timestep of `range`, and the one after its last; there are 1000."
    )

    def _faults(self) -> Iterator[str]:
        bias = self.timestep_bias
        if self.name != "huber":
            yield from self.idle("huber_c", "huber_schedule", because="without loss.name=huber")
        if not self.multires_levels:
            yield from self.idle("multires_discount", because="without loss.multires_levels of at least 1")
        if bias == "none":
            yield from self.idle("timestep_bias_multiplier", because="without loss.timestep_bias")
        if bias not in ("earlier", "later"):
            yield from self.idle("timestep_bias_portion", because="without loss.timestep_bias=earlier or later")
        if bias != "range":
            yield from self.idle("timestep_bias_range", because="without loss.timestep_bias=range")
        else:
            yield from self._faults_of_range()
        if self.debiased and self.snr_gamma is not None:
            yield f"debiased = true: snr_gamma = {self.snr_gamma} weighs the timesteps already; choose one"

    def _faults_of_range(self) -> Iterator[str]:
        if self.timestep_bias_range is None:
            yield "timestep_bias_range = null: loss.timestep_bias=range needs one, such as [0,500]"
            return
        first, end = self.timestep_bias_range
        if first >= end:
            yield f"timestep_bias_range = [{first}, {end}]: holds no timesteps; the second number has to be larger"
        if end - first == TIMESTEPS:
            yield f"timestep_bias_range = [{first}, {end}]: has no effect, because it holds all timesteps"
