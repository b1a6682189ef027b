"""One job's whole configuration: the groups, the top-level settings, and the checks between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from runner.schema.classes import class_faults
from runner.schema.comparing import RECORDED, ObjectiveSettings, PruningSettings
from runner.schema.evaluation import METRICS, EvaluationSettings
from runner.schema.family import PATCH_PX, TRANSFORMERS, family_faults
from runner.schema.flow import FlowSettings
from runner.schema.inputs import DatasetSettings
from runner.schema.job import JobSettings
from runner.schema.knob import knob, section
from runner.schema.loss import TIMESTEPS, LossSettings
from runner.schema.method import DreamBooth, MethodSettings, NewTokens, TextToImage
from runner.schema.new_words import word_faults
from runner.schema.running import CheckpointSettings, ValidationSettings
from runner.schema.sagemaker import SageMakerLauncher
from runner.schema.shapes import LEAST_STEP_PX, MOST_ASPECT, Shape, bucket_shapes
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
        doc="Images per optimizer step of a job, over all processes and accumulated parts.",
    )
    accumulation: int = knob(
        1,
        ge=1,
        unit="parts",
        identity=False,
        doc="The batch is processed in this many parts, whose gradients are summed: less memory, the same result "
        "(unlike in the diffusers scripts, `batch_size` already counts all parts).",
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
        """The shapes that images may be trained in, (height, width) in pixels: the square, or the buckets."""
        data = self.dataset
        if not data.buckets:
            return ((self.resolution, self.resolution),)
        return bucket_shapes(self.resolution, data.bucket_step, data.bucket_max_aspect)

    @property
    def images_per_step(self) -> int:
        """Images that one step processes: the batch, and as many images of the class if there is a prior."""
        has_prior = isinstance(self.method, DreamBooth) and self.method.prior != "none"
        return self.batch_size * (2 if has_prior else 1)

    @property
    def smallest_part(self) -> int:
        """Images in the smallest forward pass of a step, over all processes: accumulated parts share the batch."""
        return self.batch_size // self.accumulation

    @property
    def live_text(self) -> bool:
        """Whether captions are encoded at every step, because part of the text encoders is trained."""
        return self.lora.text_encoder or isinstance(self.method, NewTokens)

    def _faults(self) -> Iterator[str]:
        yield from self._faults_of_steps()
        yield from family_faults(self)
        yield from word_faults(self)
        yield from class_faults(self)
        yield from self._faults_of_data()
        if self.launcher.name == "sagemaker":
            yield from self._faults_on_sagemaker(self.launcher)
        if self.evaluation.metrics is None:
            fix = "add it, or remove this"
            yield from self.evaluation.idle(because="without evaluation.metrics=[...]", fix=fix, where="evaluation.")
        yield from self._faults_of_objective()

    def _faults_of_steps(self) -> Iterator[str]:
        if self.accumulation > self.batch_size:
            yield (
                f"accumulation = {self.accumulation}: batch_size = {self.batch_size} cannot be cut into more "
                "parts than it has images; lower accumulation"
            )
        else:
            yield from self._faults_of_parts(self.launcher.fixed_processes or 1)
        if self.lr_scheduler.warmup_steps >= self.steps:
            yield (
                f"lr_scheduler.warmup_steps = {self.lr_scheduler.warmup_steps}: the training ends after "
                f"steps = {self.steps}, before the warm-up; lower it"
            )
        if self.lr_scheduler.name == "polynomial" and self.optimizer.lr <= POLYNOMIAL_END:
            yield (
                f"optimizer.lr = {self.optimizer.lr:g}: lr_scheduler.name=polynomial falls to {POLYNOMIAL_END:g}, and "
                "must begin above it; raise it, or choose another schedule"
            )
        if not isinstance(self.optimizer, Prodigy) and not self.lora.text_encoder:
            because, fix = "without lora.text_encoder=true", "add it, or remove this"
            yield from self.optimizer.idle("text_encoder_lr", because=because, fix=fix, where="optimizer.")
        if self.pruning.name != "none" and self.pruning.first >= self.steps:
            yield (
                f"pruning.first = {self.pruning.first}: the training ends after steps = {self.steps}, before the first "
                "comparison; lower it"
            )

    def _faults_of_parts(self, processes: int) -> Iterator[str]:
        if processes <= self.smallest_part:
            return
        key = next(
            key for key in ("processes", "gpus_per_node", "nodes", "instances") if getattr(self.launcher, key, None)
        )
        parts = f" in {self.accumulation} parts" if self.accumulation > 1 else ""
        fix = ", lower accumulation" if self.accumulation > 1 else ""
        yield (
            f"launcher.{key} = {getattr(self.launcher, key)}: batch_size = {self.batch_size}{parts} leaves "
            f"{processes - self.smallest_part} of {processes} processes without work; raise batch_size{fix} or "
            f"lower launcher.{key}"
        )

    def _faults_of_data(self) -> Iterator[str]:
        data = self.dataset
        if self.loss.masked and not data.masks:
            yield "loss.masked = true: no masks are read without dataset.masks=true; add it"
        if data.masks and not self.loss.masked:
            yield "dataset.masks = true: has no effect without loss.masked=true; add it or remove this"
        if data.buckets and len(self.shapes) < 2:
            chosen = (self.resolution, data.bucket_step, data.bucket_max_aspect)
            keys = ("resolution", "dataset.bucket_step", "dataset.bucket_max_aspect")
            said = ", ".join(f"{key}={value}" for key, value in zip(keys, chosen, strict=True))
            least_px = PATCH_PX if self.model.family in TRANSFORMERS else LEAST_STEP_PX
            ways = {
                "lower dataset.bucket_step": (least_px, data.bucket_max_aspect),
                "raise dataset.bucket_max_aspect": (data.bucket_step, MOST_ASPECT),
            }
            fixes = [way for way, limits in ways.items() if len(bucket_shapes(self.resolution, *limits)) > 1]
            fix = " or ".join(fixes) or "raise resolution"
            yield f"dataset.buckets = true: with {said} there are not two shapes to choose from; {fix}"

    def _faults_on_sagemaker(self, launcher: SageMakerLauncher) -> Iterator[str]:
        if self.dataset.streams:
            yield (
                "dataset.stream = true: training jobs of launcher=sagemaker get their data from S3; put the parquet "
                "files there and give dataset.path=s3://..., which is streamed above launcher.fast_file_over_gb"
            )
        if launcher.spot and not launcher.local and self.checkpoint.keep == 1:
            yield (
                "checkpoint.keep = 1: what is removed on a spot instance is removed in S3 at once, and one that is "
                "taken away while the newest checkpoint is sent there would leave none; set it to 2, or "
                "launcher.spot=false"
            )

    def _faults_of_objective(self) -> Iterator[str]:
        name, count, prunes = self.objective.name, self.validation.timesteps, self.pruning.name != "none"
        if name.startswith(OF_EVALUATION):
            yield from self._faults_of_measured_objective(name)
            return
        by_timestep = [f"validation/loss_t{timestep:04d}" for timestep in loss_timesteps(count, TIMESTEPS)]
        if name not in (*RECORDED, *by_timestep):
            yield (
                f"objective.name = {name!r}: no job records it; there are {', '.join(RECORDED)}, and with "
                f"validation.timesteps={count} {', '.join(by_timestep)}"
            )
        elif prunes and not name.startswith("validation/"):
            yield (
                f"objective.name = {name!r}: pruning compares jobs by it, and only validation/... is measured there; "
                "choose one of those, or pruning=none"
            )

    def _faults_of_measured_objective(self, name: str) -> Iterator[str]:
        figures = {OF_EVALUATION + METRICS[metric].figure: METRICS[metric] for metric in self.evaluation.metrics or ()}
        if name not in figures:
            there = ", ".join(figures) or "none, because evaluation.metrics is null"
            yield f"objective.name = {name!r}: is not measured; evaluations measure: {there}"
            return
        more, direction = figures[name].more_is_better, self.objective.direction
        if more != (direction == "maximize"):
            which, right = ("more", "maximize") if more else ("less", "minimize")
            yield f"objective.direction = {direction!r}: {which} of {name} is better; set objective.direction={right}"
        if self.pruning.name != "none":
            yield (
                f"objective.name = {name!r}: is measured at the end only, and pruning compares jobs before that; "
                "choose validation/..., or pruning=none"
            )


OF_EVALUATION = "evaluation/"
"""Prefix of evaluation results among the metrics of a training."""


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
"""All settings that hold further settings."""

NOT_IDENTITY = ("launcher", "logger", "checkpoint", "pruning", "objective")
"""Sections that say where a job runs and how it is kept, not what it trains: they are not part of its id."""
