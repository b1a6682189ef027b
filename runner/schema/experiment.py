"""One job's whole configuration: the groups, the settings above them, and the checks between them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from runner.schema.classes import refuse_idle_classes
from runner.schema.comparing import RECORDED, ObjectiveSettings, PruningSettings
from runner.schema.evaluation import METRICS, EvaluationSettings
from runner.schema.family import refuse_what_does_not_fit
from runner.schema.flow import FlowSettings
from runner.schema.inputs import DatasetSettings
from runner.schema.job import JobSettings
from runner.schema.knob import knob, section
from runner.schema.loss import TIMESTEPS, LossSettings
from runner.schema.method import DreamBooth, MethodSettings, NewTokens, TextToImage
from runner.schema.new_words import refuse_what_words_do_not_go_with
from runner.schema.running import CheckpointSettings, ValidationSettings
from runner.schema.shapes import Shape, bucket_shapes
from runner.schema.training import (
    POLYNOMIAL_END,
    AdamW,
    LoraSettings,
    LrSchedulerSettings,
    OptimizerSettings,
    Prodigy,
    SchedulerSettings,
)


class Experiment(JobSettings):
    """Everything a training needs to know, resolved; what `config.yaml` in a run folder holds."""

    local_files: ClassVar[tuple[str, ...]] = (
        "evaluation.real",
        "evaluation.features.inception",
        "evaluation.features.clip",
        "evaluation.features.dino",
    )
    seed: int = knob(0, ge=0, lt=2**63, doc="Seed of initial weights, order, noise, timesteps and dropout.")
    steps: int = knob(200, ge=1, unit="optimizer steps", doc="Length of the training.")
    batch_size: int = knob(
        4,
        ge=1,
        unit="images",
        doc="Images per optimizer step and job, over all processes and accumulated parts.",
    )
    accumulation: int = knob(
        1,
        ge=1,
        unit="parts",
        identity=False,
        doc="The batch is worked through in this many parts, and their gradients are summed: less memory, "
        "the same result (unlike in the diffusers scripts, `batch_size` already counts all parts).",
    )
    resolution: int = knob(
        64,
        ge=8,
        le=8192,
        multiple_of=8,
        unit="px",
        doc="Side of the square training images, or of the square whose area no bucket exceeds (`dataset.buckets`).",
    )
    dataset: DatasetSettings = section(DatasetSettings)
    method: MethodSettings = section(TextToImage)
    lora: LoraSettings = section(LoraSettings)
    optimizer: OptimizerSettings = section(AdamW)
    lr_scheduler: LrSchedulerSettings = section(LrSchedulerSettings)
    scheduler: SchedulerSettings = section(SchedulerSettings)
    loss: LossSettings = section(LossSettings)
    flow: FlowSettings = section(FlowSettings)
    validation: ValidationSettings = section(ValidationSettings)
    evaluation: EvaluationSettings = section(EvaluationSettings)
    pruning: PruningSettings = section(PruningSettings)
    objective: ObjectiveSettings = section(ObjectiveSettings)
    checkpoint: CheckpointSettings = section(CheckpointSettings)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """What images may be trained in, (height, width) in pixels: the square, or the buckets."""
        data = self.dataset
        if not data.buckets:
            return ((self.resolution, self.resolution),)
        return bucket_shapes(self.resolution, data.bucket_step, data.bucket_max_aspect)

    @property
    def images_per_step(self) -> int:
        """What one step works through: the batch, and as many images of the class where a prior is kept."""
        has_prior = isinstance(self.method, DreamBooth) and self.method.prior != "none"
        return self.batch_size * (2 if has_prior else 1)

    @property
    def smallest_part(self) -> int:
        """Images of the smallest forward pass of a step, all processes together: parts that are added up share them."""
        return self.batch_size // self.accumulation

    @property
    def live_text(self) -> bool:
        """Whether captions are encoded at every step, because something of the text encoders is trained."""
        return self.lora.text_encoder or isinstance(self.method, NewTokens)

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation = {self.accumulation}: batch_size = {self.batch_size} cannot be cut into more "
                "parts than it has images; lower accumulation"
            )
        processes = self.launcher.fixed_processes or 1
        if processes > self.smallest_part:
            key = next(
                key for key in ("processes", "gpus_per_node", "nodes", "instances") if getattr(self.launcher, key, None)
            )
            parts = f" in {self.accumulation} parts" if self.accumulation > 1 else ""
            fix = ", lower accumulation" if self.accumulation > 1 else ""
            raise ValueError(
                f"launcher.{key} = {getattr(self.launcher, key)}: batch_size = {self.batch_size}{parts} leaves "
                f"{processes - self.smallest_part} of {processes} processes without work; raise batch_size{fix} or "
                f"lower launcher.{key}"
            )
        if self.lr_scheduler.warmup_steps >= self.steps:
            raise ValueError(
                f"lr_scheduler.warmup_steps = {self.lr_scheduler.warmup_steps}: the training ends after "
                f"steps = {self.steps}, before the warm-up; lower it"
            )
        if self.lr_scheduler.name == "polynomial" and self.optimizer.lr <= POLYNOMIAL_END:
            raise ValueError(
                f"optimizer.lr = {self.optimizer.lr:g}: lr_scheduler.name=polynomial falls to {POLYNOMIAL_END:g}, and "
                "must begin above it; raise it, or choose another schedule"
            )
        text_encoder_lr = None if isinstance(self.optimizer, Prodigy) else self.optimizer.text_encoder_lr
        if text_encoder_lr is not None and not self.lora.text_encoder:
            raise ValueError(
                f"optimizer.text_encoder_lr = {text_encoder_lr}: has no effect without lora.text_encoder=true"
            )
        if self.pruning.name != "none" and self.pruning.first >= self.steps:
            raise ValueError(
                f"pruning.first = {self.pruning.first}: the training ends after steps = {self.steps}, before the first "
                "comparison; lower it"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_family(self) -> Experiment:
        refuse_what_does_not_fit(self)
        refuse_what_words_do_not_go_with(self)
        refuse_idle_classes(self)
        return self

    @model_validator(mode="after")
    def _has_masks(self) -> Experiment:
        if self.loss.masked and not self.dataset.masks:
            raise ValueError("loss.masked = true: no masks are read without dataset.masks=true; add it")
        if self.dataset.masks and not self.loss.masked:
            raise ValueError("dataset.masks = true: has no effect without loss.masked=true; add it or remove this")
        return self

    @model_validator(mode="after")
    def _goes_with_sagemaker(self) -> Experiment:
        if self.launcher.name != "sagemaker":
            return self
        if self.dataset.streams:
            raise ValueError(
                "dataset.stream = true: training jobs of launcher=sagemaker get their data from S3; put the parquet "
                "files there and give dataset.path=s3://..., which is streamed above launcher.fast_file_over_gb"
            )
        if self.launcher.spot and not self.launcher.local and self.checkpoint.keep == 1:
            raise ValueError(
                "checkpoint.keep = 1: what is removed on a spot instance is removed in S3 at once, and one that is "
                "taken away while the newest checkpoint is sent there would leave none; set it to 2, or "
                "launcher.spot=false"
            )
        return self

    @model_validator(mode="after")
    def _has_buckets(self) -> Experiment:
        data = self.dataset
        if data.buckets and len(self.shapes) < 2:
            chosen = (self.resolution, data.bucket_step, data.bucket_max_aspect)
            keys = ("resolution", "dataset.bucket_step", "dataset.bucket_max_aspect")
            said = ", ".join(f"{key}={value}" for key, value in zip(keys, chosen, strict=True))
            raise ValueError(
                f"dataset.buckets = true: with {said} there are not two shapes to choose from; lower "
                "dataset.bucket_step or raise dataset.bucket_max_aspect"
            )
        return self

    @model_validator(mode="after")
    def _is_evaluated(self) -> Experiment:
        said = {key: getattr(self.evaluation, key) for key in EvaluationSettings.model_fields}
        idle = [key for key, value in said.items() if key != "metrics" and value != _declared(key)]
        if idle and self.evaluation.metrics is None:
            raise ValueError(
                f"evaluation.{idle[0]} = {said[idle[0]]!r}: has no effect without evaluation.metrics=[...]; add it, or "
                "remove this"
            )
        return self

    def _refuse_unmeasured(self, name: str) -> None:
        figures = {OF_EVALUATION + METRICS[metric].figure: METRICS[metric] for metric in self.evaluation.metrics or ()}
        if name not in figures:
            there = ", ".join(figures) or "none, for evaluation.metrics is null"
            raise ValueError(f"objective.name = {name!r}: is not measured; of evaluations there are: {there}")
        more, direction = figures[name].more_is_better, self.objective.direction
        if more != (direction == "maximize"):
            which, right = ("more", "maximize") if more else ("less", "minimize")
            raise ValueError(
                f"objective.direction = {direction!r}: {which} of {name} is better; set objective.direction={right}"
            )
        if self.pruning.name != "none":
            raise ValueError(
                f"objective.name = {name!r}: is measured at the end only, and pruning compares jobs before; choose "
                "validation/..., or pruning=none"
            )

    @model_validator(mode="after")
    def _is_recorded(self) -> Experiment:
        name, count = self.objective.name, self.validation.timesteps
        if name.startswith(OF_EVALUATION):
            self._refuse_unmeasured(name)
            return self
        by_timestep = [f"validation/loss_t{timestep:04d}" for timestep in loss_timesteps(count, TIMESTEPS)]
        if name not in (*RECORDED, *by_timestep):
            raise ValueError(
                f"objective.name = {name!r}: no job records it; there are {', '.join(RECORDED)}, and with "
                f"validation.timesteps={count} {', '.join(by_timestep)}"
            )
        if self.pruning.name != "none" and not name.startswith("validation/"):
            raise ValueError(
                f"objective.name = {name!r}: pruning compares jobs by it, and only validation/... is measured there; "
                "choose one of those, or pruning=none"
            )
        return self


def _declared(key: str) -> object:
    """What a setting of evaluations is where nobody chooses."""
    field = EvaluationSettings.model_fields[key]
    return field.get_default(call_default_factory=True)


OF_EVALUATION = "evaluation/"
"""What stands before the names of figures in the metrics of a training."""


def loss_timesteps(count: int, total: int) -> list[int]:
    """The fixed timesteps at which the held-out loss is measured, evenly spread over `total` training timesteps."""
    return [int((index + 0.5) / count * total) for index in range(count)]


GROUPS = (
    "task",
    "model",
    "dataset",
    "method",
    "lora",
    "optimizer",
    "lr_scheduler",
    "scheduler",
    "loss",
    "validation",
    "pruning",
    "launcher",
    "logger",
)
"""Sections that are Hydra groups: each has a folder of choices under conf/."""

SECTIONS = (*GROUPS, "flow", "evaluation", "objective", "checkpoint")
"""All settings that hold settings."""

NOT_IDENTITY = ("launcher", "logger", "checkpoint", "pruning", "objective")
"""Sections that say where a job runs and how it is kept, never what it trains: they are no part of its id."""
