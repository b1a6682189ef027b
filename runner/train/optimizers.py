"""Optimizers and learning-rate schedules of one job, from the libraries that maintain them."""

from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext, redirect_stdout
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from runner.families.family import is_text_encoder
from runner.schema import Experiment, LrSchedulerSettings, OptimizerSettings
from runner.schema.training import Adafactor, AdamW8bit, Prodigy
from runner.train.adapters.adapter import DOWN, MAGNITUDE, UP, WORDS, Adapter


def build_optimizer(settings: OptimizerSettings, adapter: Adapter, *, word_lr: float | None) -> torch.optim.Optimizer:
    """An optimizer over the adapter's weights, with a parameter group for each learning rate in each component.

    Elementwise optimizers see each component as one flat vector, so their step is one kernel. Adafactor works on rows
    and columns, so it sees the matrices. Parameters share storage with the adapter's vectors.

    Args:
        word_lr: learning rate of the vectors of new words, which get no weight decay: nothing requires them to be
            small. None means the rate of the rest.
    """
    groups: list[dict[str, Any]] = []
    for component in adapter.components:
        lr = _text_encoder_lr(settings) if is_text_encoder(component) else settings.lr
        for kinds, ratio in _learning_rates(settings):
            groups.append({"params": _parameters(settings, adapter, component, kinds), "lr": ratio * lr})
    if adapter.words:
        parameters = _parameters(settings, adapter, WORDS, (WORDS,))
        groups.append({"params": parameters, "lr": word_lr or settings.lr, "weight_decay": 0.0})
    path, options = _options(settings)
    module, _, name = path.partition(":")
    kind = getattr(importlib.import_module(module), name)
    with redirect_stdout(None):  # prodigyopt prints a line for each job, into its log or the progress bar
        optimizer: torch.optim.Optimizer = kind(groups, lr=settings.lr, weight_decay=settings.weight_decay, **options)
    return optimizer


def _text_encoder_lr(settings: OptimizerSettings) -> float:
    own = None if isinstance(settings, Prodigy) else settings.text_encoder_lr
    return settings.lr if own is None else own


def _learning_rates(settings: OptimizerSettings) -> list[tuple[tuple[str, ...], float]]:
    """(kinds of weights, multiple of the learning rate): LoRA+ (arXiv 2402.12354) has two."""
    ratio = 1.0 if isinstance(settings, Prodigy) else settings.lora_plus_ratio
    return [((MAGNITUDE, DOWN, UP), 1.0)] if ratio == 1 else [((MAGNITUDE, DOWN), 1.0), ((UP,), ratio)]


def bind_gradients(optimizer: torch.optim.Optimizer, adapter: Adapter) -> None:
    """Point the parameters' gradients into the adapter's gradient vector, which moves when a pack changes.

    They lie at the same offsets as the parameters in the vector of the weights.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            start = parameter.storage_offset() - adapter.weights.storage_offset()
            parameter.grad = adapter.gradient[start : start + parameter.numel()].view(parameter.shape)


def _parameters(
    settings: OptimizerSettings, adapter: Adapter, component: str, kinds: tuple[str, ...]
) -> list[nn.Parameter]:
    if settings.name == "adafactor":
        parts = adapter.parts(adapter.weights)
        return [nn.Parameter(view) for site, kind, view in parts if site.component == component and kind in kinds]
    return [nn.Parameter(adapter.weights[adapter.span(component, *kinds)])]


def _options(settings: OptimizerSettings) -> tuple[str, dict[str, Any]]:
    """The optimizer's class, as `module:name`, and the arguments that only it takes."""
    if isinstance(settings, Prodigy):
        options = {"d_coef": settings.d_coef, "safeguard_warmup": settings.safeguard_warmup}
        return "prodigyopt:Prodigy", options | {"betas": settings.betas, "use_bias_correction": True}
    if isinstance(settings, Adafactor):
        return "transformers.optimization:Adafactor", {"relative_step": False, "scale_parameter": False}
    moments = {"betas": settings.betas, "eps": settings.eps}
    if isinstance(settings, AdamW8bit):
        return "bitsandbytes.optim:AdamW8bit", moments
    return "torch.optim:AdamW", moments | {"fused": True}


def build_lr_scheduler(
    settings: LrSchedulerSettings, optimizer: torch.optim.Optimizer, experiment: Experiment
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule over the job's optimizer steps; it must be stepped once per optimizer step."""
    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        settings.name,
        optimizer,
        step_rules=settings.rules,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=experiment.steps,
        num_cycles=settings.cycles,
        power=settings.power,
    )
    return scheduler


def to_next_rate(scheduler: torch.optim.lr_scheduler.LRScheduler, *, first: bool) -> None:
    """Move on to the learning rate of the next step, even after a step that fp16 skipped.

    Args:
        first: whether that was the first step.
    """
    # If the optimizer has never stepped, torch warns that the first rate is lost. It checks only at the first step;
    # suppressing the warning at every step would make all other warnings repeat.
    with warnings.catch_warnings() if first else nullcontext():
        if first:
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        scheduler.step()
