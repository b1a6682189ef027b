"""One job while it trains: its adapter, optimizer, schedule, step, record. Knows nothing about the other jobs."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runner.errors import DivergedError
from runner.jobs.job import Job, State, known_manifest, now, update_manifest
from runner.paths import write_text
from runner.schema.method import Pivotal
from runner.schema.metrics import EARLIER, GRAD_NORM, IMAGES_PER_S, LEARNING_RATE, TRAIN_LOSS
from runner.track import MetricsFile, Mirror, open_mirror
from runner.train.adapters.adapter import Adapter
from runner.train.adapters.average import Average
from runner.train.base import Base
from runner.train.checkpoint import load_checkpoint, save_checkpoint
from runner.train.clock import PHASES, Clock
from runner.train.cost import Alone, Cost, alone_s, peak_memory_gb
from runner.train.drawing import write_prompts
from runner.train.inputs.materials import Materials
from runner.train.optimizers import bind_gradients, build_lr_scheduler, build_optimizer, to_next_rate
from runner.train.pruning import rungs
from runner.train.start import kept_share
from runner.train.window import Window

log = logging.getLogger(__name__)


class JobRun:
    """The state of one job in a pack."""

    def __init__(self, job: Job, materials: Materials, adapter: Adapter, base: Base, clock: Clock) -> None:
        self.job, self.settings, self.paths = job, job.experiment, job.paths
        self.materials, self.adapter, self.base = materials, adapter, base
        self.clock, self.is_main = clock, base.place.is_main
        self.average = Average(adapter.weights, self.settings.lora.ema) if self.settings.lora.ema else None
        word_lr = self.settings.method.token_lr if isinstance(self.settings.method, Pivotal) else None
        self.optimizer = build_optimizer(self.settings.optimizer, adapter, word_lr=word_lr)
        self.lr_scheduler = build_lr_scheduler(self.settings.lr_scheduler, self.optimizer, self.settings)
        # fp16 gradients underflow without a scale; a job has its own, so that no other job can change it.
        self.scaler = torch.amp.GradScaler(base.place.device.type, enabled=self.settings.precision == "fp16")
        self.step = 0
        self.timings: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.trained_s = 0.0
        self.cost = Cost()
        self.alone: Alone | None = None
        self._rungs = frozenset(rungs(self.settings.pruning, self.settings.steps))
        self.unmeasured = True
        """Whether validation is due after the current step and has not been done."""
        self.at_rung = False
        """Whether the job must be compared with the others after the current step."""
        self.metrics: MetricsFile | None = None
        self.mirror: Mirror | None = None
        self.window = Window(base.place)
        self.last_loss = float("nan")
        self.images_per_s = 0.0
        self._saved_step = -1
        self._lr = 0.0

    def resume(self) -> None:
        """Resume from the newest checkpoint, if there is one; from the main process's, since only it writes any."""
        found = self.base.place.from_main(lambda: load_checkpoint(self.job))
        if found is None:
            return
        self.step, weights, state = found
        self._saved_step = self.step
        for phase, seconds in known_manifest(self.job.folder).get("timings_s", {}).items():
            if phase in self.timings:
                self.timings[phase] += seconds
        self.adapter.load_state(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.weights.copy_(state["average"])
        if window := state.get("window"):  # checkpoints did not always have it
            self.window.load_state(window, self.trained_s)
        self._set_due(measured=self.step > 0 and not state.get("unmeasured", False))
        log.info("%s: continues after step %d", self.job.id, self.step)

    def open_record(self, about: Mapping[str, Any]) -> None:
        """Mark the job as running and open its metrics and mirror; in the main process only."""
        known = known_manifest(self.job.folder)
        if (images := self.materials.all_images()) is not None:
            write_text(self.paths.images, json.dumps(images) + "\n")
        update_manifest(
            self.job.folder,
            state=State.RUNNING,
            started=known.get("started") or now(),
            attempts=known.get("attempts", 0) + 1,
            error=None,
            parameters=len(self.adapter),
            dataset=self.materials.about(),
            steps_done=self.step,
            **about,
        )
        self.metrics = MetricsFile(self.paths.metrics)
        # An attempt that starts from scratch measures step 0 again.
        self.metrics.truncate_after(self.step if self.step else -1)
        if self.done or self.unmeasured:  # it failed or was interrupted; measure again
            self.metrics.drop(self.step, "validation/")
        self.mirror = open_mirror(
            self.settings.logger,
            job_id=self.job.id,
            experiment_name=self.settings.name,
            job_name=" ".join(self.job.overrides) or self.settings.name,
            config=self.settings.model_dump(mode="json"),
            folder=self.job.folder,
        )
        if self.mirror.url:
            update_manifest(self.job.folder, wandb_url=self.mirror.url)
        if self.materials.prompts:
            write_prompts(self.paths, self.materials.prompts, self.settings, self.settings.validation)

    # --- a step ---

    @property
    def rows_per_position(self) -> int:
        """Images per position of the batch: with a prior, one of the subject and one of its class."""
        return self.settings.images_per_step // self.settings.batch_size

    def positions(self, part: int) -> range:
        """The batch positions that this process works on in one accumulation part."""
        parts = self.settings.accumulation
        if part >= parts:
            return range(0)
        small, extra = divmod(self.settings.batch_size, parts)
        start = part * small + min(part, extra)
        mine = self.base.place.share(small + (part < extra))
        return range(start + mine.start, start + mine.stop)

    def loss_of(self, weighted_B: Tensor) -> Tensor:
        """This process's part of the whole batch's loss, which is a mean over `batch_size` samples."""
        loss = weighted_B.sum() / self.settings.batch_size
        self.window.add(loss)
        return self.scaler.scale(loss) if self.scaler.is_enabled() else loss

    def forget_step(self) -> None:
        """Discard the losses of a step that starts over."""
        self.window.forget_step()

    def update(self) -> None:
        """Take one optimizer step with the accumulated gradient.

        This never waits for the device, except with Prodigy and, in fp16, with any optimizer but AdamW: their libraries
        require it.
        """
        bind_gradients(self.optimizer, self.adapter)
        self.scaler.unscale_(self.optimizer)
        gradient = self.adapter.gradient
        norm = torch.linalg.vector_norm(gradient)
        self.window.end_step(norm)
        if limit := self.settings.optimizer.max_grad_norm:
            gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._lr = float(self.optimizer.param_groups[0]["lr"])  # of this step, not of the next
        to_next_rate(self.lr_scheduler, first=self.step == 0)
        gradient.zero_()
        self.step += 1
        if self.average is not None:
            self.average.update(self.adapter.weights, self.step)
        self._set_due(measured=False)

    def _set_due(self, *, measured: bool) -> None:
        """Set what is due after the current step; `measured` says that it has already been validated."""
        self.at_rung = self.step in self._rungs and not measured
        self.unmeasured = (self.at_rung or self.draws) and not measured and not self.done

    @property
    def draws(self) -> bool:
        """Whether validation draws images after the current step: before the first step, then at the set interval."""
        return self.step == 0 or self.due(self.settings.validation.every)

    @property
    def published(self) -> Tensor:
        """The weights used for validation, samples and saved files, laid out like the adapter's own."""
        return self.adapter.weights if self.average is None else self.average.weights

    @property
    def done(self) -> bool:
        """Whether the last step has been taken."""
        return self.step >= self.settings.steps

    # --- the record ---

    def due(self, every: int) -> bool:
        """Whether something with this period is due after the current step."""
        return every > 0 and self.step % every == 0

    def record(self, values: Mapping[str, float]) -> None:
        """Append to the metrics and their mirror."""
        if self.metrics is not None and self.mirror is not None:
            self.metrics.append(self.step, values)
            self.mirror.log(self.step, values)

    def objective(self) -> float | None:
        """The last value of the metric used by rankings and searches."""
        values = [] if self.metrics is None else self.metrics.values(self.settings.objective.name)
        return values[-1][1] if values else None

    def log_step(self) -> None:
        """Record the losses of the steps since the last call, which waits for the device once.

        Raises:
            DivergedError: a loss or the gradient is not finite.
        """
        loss, norm = self.window.means()
        self.clock.charge_training()
        images = max(1, self.window.steps) * self.settings.batch_size
        self.images_per_s = images / max(self.window.elapsed_s(self.trained_s), 1e-9)
        self.window.begin(self.trained_s)
        if not math.isfinite(loss):
            wider = {"fp16": " or precision=bf16", "bf16": " or precision=fp32"}.get(self.settings.precision, "")
            raise DivergedError(f"the loss is {loss} at step {self.step}; try a lower optimizer.lr{wider}")
        # Clipping turns an infinite gradient into one that trains nothing. In fp16 the scaler skips such steps.
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise DivergedError(
                f"the gradient has the norm {norm} at step {self.step}; try a lower lora.alpha or optimizer.lr"
            )
        self.last_loss = loss
        self.record(
            {
                TRAIN_LOSS: loss,
                GRAD_NORM: norm,
                LEARNING_RATE: self._lr,
                IMAGES_PER_S: self.images_per_s,
            }
        )

    def kept_of_earlier(self) -> dict[str, Any]:
        """How much is left of the training that this one started from; empty if that is not measured."""
        kept = self.materials.kept
        losses = dict(self.metrics.values(EARLIER)) if self.metrics is not None else {}
        if kept is None or not losses:
            return {}
        return {"kept_of_earlier": kept_share(losses, kept.of_base(self.base, self.materials.conditioner))}

    def checkpoint(self) -> None:
        """Save, once per step, all that a later process needs to resume; all take part, the main process writes."""
        self.window.gather()
        if not self.is_main or self._saved_step == self.step:
            return
        with self.clock.charging("artifacts", [self]):
            state: dict[str, Any] = {
                "optimizer": self.optimizer.state_dict(),
                "lr_scheduler": self.lr_scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "window": self.window.state(self.trained_s),
                "unmeasured": self.unmeasured,
            }
            if self.average is not None:
                state["average"] = self.average.weights.cpu()
            save_checkpoint(self.job, self.step, self.adapter.state(), state)
            self._saved_step = self.step
            update_manifest(self.job.folder, steps_done=self.step, timings_s=self._timings_s())

    def interrupt(self) -> None:
        """Save everything and end as interrupted."""
        self.checkpoint()
        self.close(State.INTERRUPTED)

    def prune(self, reason: str) -> None:
        """Stop before the last step because others do better; saved, so that it can be resumed."""
        self.checkpoint()
        self.close(State.PRUNED, reason=reason)

    def close(self, state: State, **fields: Any) -> None:
        """Record the state in which the job ends; only the main process writes."""
        if not self.is_main:
            return
        self.clock.charge_training()
        self.cost.peak_memory_gb = round(peak_memory_gb(), 2)
        if self.alone is not None:
            self.cost.alone_s = round(alone_s(self.alone, self.timings, self.settings.steps), 3)
        update_manifest(
            self.job.folder,
            state=state,
            finished=now(),
            steps_done=self.step,
            timings_s=self._timings_s(),
            cost=dataclasses.asdict(self.cost),
            objective_name=self.settings.objective.name,
            objective_direction=self.settings.objective.direction,
            **fields,
        )
        if self.metrics is not None:
            self.metrics.close()
        if self.mirror is not None:
            summary = {"objective": fields.get("objective"), "objective_name": self.settings.objective.name}
            self.mirror.finish(state.value, summary | {"steps_done": self.step})

    def _timings_s(self) -> dict[str, float]:
        timings = {name: round(seconds, 3) for name, seconds in self.timings.items()}
        return timings | {"total": round(sum(timings.values()), 3)}
