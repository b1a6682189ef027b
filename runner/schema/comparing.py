"""What the jobs of a sweep are compared by, which of them stop early, and how a search chooses the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from runner.schema.knob import Settings, knob, spelt
from runner.schema.metrics import GRAD_NORM, HELD_OUT, IMAGES_PER_S, TRAIN_LOSS

RECORDED = (HELD_OUT, TRAIN_LOSS, GRAD_NORM, IMAGES_PER_S)
"""Metrics that every job records; `validation/loss_t<timestep>` are recorded too."""

MEASURED_BY = (
    "model",
    "dataset",
    "settings.model.prediction_type",
    "settings.model.zero_terminal_snr",
    "settings.resolution",
    "settings.dataset.buckets",
    "settings.dataset.bucket_step",
    "settings.dataset.bucket_max_aspect",
    "settings.validation.held_out",
    "settings.validation.timesteps",
    "settings.validation.max_images",
)
"""The parts of a job's identity that decide what its held-out loss measures: across them, losses do not compare."""

METRIC = spelt(
    r"(train|validation|evaluation)/.+",
    "train/..., validation/... or evaluation/...",
    lambda text: f"objective.name={next((name for name in RECORDED if name.endswith(f'/{text}')), RECORDED[0])}",
)


class ObjectiveSettings(Settings):
    """Section `objective`: the result that rankings and searches compare jobs by."""

    name: Annotated[str, METRIC] = knob(
        HELD_OUT,
        doc="A recorded metric; its last value counts. `evaluation/fid_score` and the like are recorded if "
        "`evaluation.metrics` asks for them.",
    )
    direction: Literal["minimize", "maximize"] = knob("minimize", doc="Which values are better.")


class PruningSettings(Settings):
    """Group `pruning`: whether jobs of a sweep that fall behind the others are stopped early."""

    name: Literal["none", "asha"] = knob(
        "none", doc="`asha` is asynchronous successive halving (arXiv 1810.05934) on the objective."
    )
    first: int = knob(
        25, ge=1, unit="optimizer steps", doc="First rung: when jobs are measured and compared for the first time."
    )
    reduction: int = knob(
        3,
        ge=2,
        doc="The best 1/reduction of the jobs at a rung continue; the next rung is this many times further along.",
    )

    def _faults(self) -> Iterator[str]:
        if self.name == "none":
            yield from self.idle("first", "reduction", because="with pruning=none", fix="set pruning=asha")


class SearchSettings(Settings):
    """`hydra/sweeper=optuna`: a search that learns from results which values to try next (needs `-m`)."""

    n_trials: int = knob(20, ge=1, doc="Trials in all, including those of earlier runs of the same command.")
    sampler: Literal["tpe", "random"] = knob(
        "tpe", doc="`tpe` is the tree-structured Parzen estimator (Bergstra et al., 2011); `random` learns nothing."
    )
    startup_trials: int = knob(10, ge=0, doc="Random trials before `tpe` begins to choose.")
    seed: int = knob(0, ge=0, lt=2**32, doc="Seed of the sampler.")
