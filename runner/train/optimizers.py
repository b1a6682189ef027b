"""Optimizers and learning-rate schedules of one job, from the libraries that keep them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from runner.families.family import is_text_encoder
from runner.schema import Experiment, LrSchedulerSettings, OptimizerSettings
from runner.schema.training import Adafactor, AdamW8bit, Prodigy
from runner.train.adapter import Adapter


def build_optimizer(settings: OptimizerSettings, adapter: Adapter) -> torch.optim.Optimizer:
    """An optimizer over the adapter's weights, a parameter group for each component.

    Elementwise optimizers see each component as one flat vector, which makes their step one kernel. Adafactor
    looks at rows and columns, so it sees the matrices. Parameters share storage with the adapter's vectors.
    """
    as_matrices = settings.name == "adafactor"
    groups = []
    for component, span in adapter.spans().items():
        lr = _text_encoder_lr(settings) if is_text_encoder(component) else settings.lr
        groups.append({"params": _matrices(adapter, component) if as_matrices else [_flat(adapter, span)], "lr": lr})
    path, options = _options(settings)
    module, _, name = path.partition(":")
    kind = getattr(importlib.import_module(module), name)
    optimizer: torch.optim.Optimizer = kind(groups, lr=settings.lr, weight_decay=settings.weight_decay, **options)
    return optimizer


def _text_encoder_lr(settings: OptimizerSettings) -> float:
    own = None if isinstance(settings, Prodigy) else settings.text_encoder_lr
    return settings.lr if own is None else own


def bind_gradients(optimizer: torch.optim.Optimizer, adapter: Adapter) -> None:
    """Point the parameters' gradients at the adapter's gradient vector, which moves when a pack changes."""
    for group, (component, span) in zip(optimizer.param_groups, adapter.spans().items(), strict=True):
        if len(group["params"]) == 1 and group["params"][0].dim() == 1:
            group["params"][0].grad = adapter.gradient[span]
            continue
        views = [
            view for site, *pair in adapter.pairs(adapter.gradient) if site.component == component for view in pair
        ]
        for parameter, view in zip(group["params"], views, strict=True):
            parameter.grad = view


def _flat(adapter: Adapter, span: slice) -> nn.Parameter:
    return nn.Parameter(adapter.weights[span])


def _matrices(adapter: Adapter, component: str) -> list[nn.Parameter]:
    pairs = adapter.pairs(adapter.weights)
    return [nn.Parameter(view) for site, *pair in pairs if site.component == component for view in pair]


def _options(settings: OptimizerSettings) -> tuple[str, dict[str, Any]]:
    """The class of an optimizer, as `module:name`, and what only it is told."""
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
    """The schedule over the job's optimizer steps, to be stepped once for each of them."""
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
