"""Section `flow`: at which noise levels flow-matching models are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from runner.schema.knob import Settings, knob


class FlowSettings(Settings):
    """Section `flow`: how often each noise level is trained, with `model.family=sd3` and `flux` (flow matching)."""

    timesteps: Literal["logit_normal", "uniform", "mode"] = knob(
        "logit_normal",
        doc="How noise levels from 0 to 1 are drawn: their logit from a normal distribution, uniformly, or mostly from "
        "the middle (arXiv 2403.03206).",
    )
    logit_mean: float = knob(
        0.0, ge=-10, le=10, doc="Mean of the logit; a higher one is more noise. Used with `timesteps=logit_normal`."
    )
    logit_std: float = knob(
        1.0, gt=0, le=10, doc="Standard deviation of the logit. Used with `timesteps=logit_normal`."
    )
    mode_scale: float = knob(
        1.29, ge=-1, le=1.75, doc="How much more often the middle is drawn; 0 is `uniform`. Used with `timesteps=mode`."
    )
    shift: float | None = knob(
        None,
        gt=0,
        le=100,
        doc="Shifts noise levels s towards noise, to shift s / (1 + (shift - 1) s); 1 changes nothing. Null follows "
        "the model's own sampler: a constant (SD3: 3), or more for larger images (FLUX.1: 3.2 at 1024 px).",
    )

    def _faults(self) -> Iterator[str]:
        because = f"with flow.timesteps={self.timesteps}"
        for scheme, keys in {"logit_normal": ("logit_mean", "logit_std"), "mode": ("mode_scale",)}.items():
            if self.timesteps != scheme:
                yield from self.idle(*keys, because=because, fix=f"remove it, or set flow.timesteps={scheme}")
