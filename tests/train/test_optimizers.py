"""A job's optimizer sees the adapter's own vectors, clips what it is told to clip, and refuses what it cannot do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from prodigyopt import Prodigy
from transformers.optimization import Adafactor

from runner.jobs.job import Job
from runner.schema import Experiment
from runner.train.adapters.adapter import Adapter, find_sites
from runner.train.clock import Clock
from runner.train.job_run import JobRun
from runner.train.optimizers import build_lr_scheduler
from tests.train.bench import CPU, Bench, pairs


def run_of(bench: Bench, job: Job) -> JobRun:
    base = bench.base(job)
    settings = job.experiment.lora
    adapter = Adapter(settings, find_sites(settings, base.components()), seed=0, device=CPU.device)
    return JobRun(job, bench.materials(job, base), adapter, base, Clock())


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_and_the_norm_before_it_is_recorded(
    bench: Bench, sdxl_folder: Path, limit: float
) -> None:
    optimizer = {"max_grad_norm": limit, "lr": 1.0, "eps": 1e9, "weight_decay": 0.0}
    run = run_of(bench, bench.job(sdxl_folder, optimizer=optimizer))
    draw = torch.Generator().manual_seed(0)
    run.adapter.gradient.normal_(generator=draw)
    gradient, before = run.adapter.gradient.clone(), run.adapter.weights.clone()
    run.update()
    norm = float(gradient.norm())
    # Such a large eps turns AdamW into plain gradient descent: gradient / eps.
    step = (before - run.adapter.weights) * 1e9
    shrunk = norm if limit == 0 else min(limit, norm)
    reached = float(run.optimizer.state[run.optimizer.param_groups[0]["params"][0]]["exp_avg"].norm()) * 10
    assert reached == pytest.approx(shrunk, rel=1e-4)
    assert run.window.means()[1] == pytest.approx(norm, rel=1e-6)
    assert step.shape == gradient.shape
    assert not run.adapter.gradient.any(), "the gradient is cleared for the next step"


@pytest.mark.parametrize("name", ["adamw", "prodigy", "adafactor"])
def test_an_update_reaches_every_weight(
    bench: Bench, sdxl_folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(bench, bench.job(sdxl_folder, optimizer={"name": name, "lr": 1.0 if name == "prodigy" else 0.1}))
    run.adapter.gradient.fill_(0.1)
    before = run.adapter.weights.clone()
    run.update()
    run.adapter.gradient.fill_(0.1)
    run.update()
    assert float((run.adapter.weights != before).float().mean()) > 0.99
    assert "decay" not in capsys.readouterr().out, "the library says something of its own"


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weights_decay_by_their_share_of_the_learning_rate(bench: Bench, sdxl_folder: Path, name: str) -> None:
    run = run_of(bench, bench.job(sdxl_folder, optimizer={"name": name, "lr": 0.1, "weight_decay": 0.5}))
    run.adapter.weights.fill_(2.0)
    run.adapter.gradient.zero_()
    run.update()
    assert torch.allclose(run.adapter.weights, torch.full_like(run.adapter.weights, 2.0 * (1 - 0.1 * 0.5)))


def test_adafactor_sees_the_rows_and_columns_of_each_matrix(bench: Bench, sdxl_folder: Path) -> None:
    run = run_of(bench, bench.job(sdxl_folder, optimizer={"name": "adafactor", "lr": 0.1, "max_grad_norm": 0.0}))
    run.adapter.gradient.normal_(generator=torch.Generator().manual_seed(0))
    alone = []
    for (*_, weight), (*_, gradient) in zip(
        run.adapter.parts(run.adapter.weights), run.adapter.parts(run.adapter.gradient), strict=True
    ):
        alone.append(torch.nn.Parameter(weight.clone()))
        alone[-1].grad = gradient.clone()
    decay = run.job.experiment.optimizer.weight_decay
    Adafactor(alone, lr=0.1, scale_parameter=False, relative_step=False, weight_decay=decay).step()
    run.update()
    for (*_, weight), expected in zip(run.adapter.parts(run.adapter.weights), alone, strict=True):
        assert torch.allclose(weight, expected)


def test_text_encoders_have_their_own_learning_rate(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, lora={"text_encoder": True}, optimizer={"lr": 1e-2, "text_encoder_lr": 1e-5})
    run = run_of(bench, job)
    assert [group["lr"] for group in run.optimizer.param_groups] == [1e-2, 1e-5, 1e-5]
    numbers = [sum(each.numel() for each in group["params"]) for group in run.optimizer.param_groups]
    assert sum(numbers) == len(run.adapter)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_up_projections_learn_faster_by_the_ratio(bench: Bench, sdxl_folder: Path, name: str) -> None:
    optimizer = {"name": name, "lr": 1e-2, "text_encoder_lr": 1e-3, "lora_plus_ratio": 16.0}
    optimizer |= {"weight_decay": 0.0, "max_grad_norm": 0.0}
    run = run_of(bench, bench.job(sdxl_folder, lora={"text_encoder": True}, optimizer=optimizer))
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert rates == pytest.approx([1e-2, 0.16, 1e-3, 0.016, 1e-3, 0.016])
    numbers = [sum(each.numel() for each in group["params"]) for group in run.optimizer.param_groups]
    assert sum(numbers) == len(run.adapter)
    run.adapter.gradient.fill_(0.1)
    before = run.adapter.weights.clone()
    run.update()
    moved = (run.adapter.weights - before).abs()
    for site, down, up in pairs(run.adapter, moved):
        rate = 1e-2 if site.component == "unet" else 1e-3  # the length of the first step, apart from eps
        assert float(down.mean()) == pytest.approx(rate, rel=0.05)
        assert float(up.mean()) == pytest.approx(16 * rate, rel=0.05)


def test_two_learning_rates_follow_one_schedule(bench: Bench, sdxl_folder: Path) -> None:
    job = bench.job(sdxl_folder, optimizer={"lora_plus_ratio": 2.0}, lr_scheduler={"name": "linear"}, steps=4)
    run = run_of(bench, job)
    run.adapter.gradient.fill_(0.1)
    run.update()
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([0.75e-2, 1.5e-2])


@pytest.mark.parametrize("chosen", [{}, {"betas": (0.5, 0.7)}, {"eps": 0.1}, {"weight_decay": 3.0}], ids=str)
def test_adamw_is_that_of_torch_with_what_was_chosen(bench: Bench, sdxl_folder: Path, chosen: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0.01} | chosen
    run = run_of(bench, bench.job(sdxl_folder, optimizer=settings | {"max_grad_norm": 0.0}, steps=4))
    alone = torch.nn.Parameter(run.adapter.weights.clone())
    optimizer = torch.optim.AdamW([alone], **settings)
    for step in range(4):
        run.adapter.gradient.normal_(generator=torch.Generator().manual_seed(step))
        alone.grad = run.adapter.gradient.clone()
        optimizer.step()
        run.update()
    torch.testing.assert_close(run.adapter.weights, alone.detach())


@pytest.mark.parametrize(
    "chosen", [{}, {"d_coef": 3.0}, {"safeguard_warmup": False}, {"betas": (0.8, 0.95)}, {"lr": 0.5}], ids=str
)
def test_prodigy_is_the_one_of_its_authors_with_what_was_chosen(
    bench: Bench, sdxl_folder: Path, chosen: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"name": "prodigy", "lr": 1.0, "max_grad_norm": 0.0, "weight_decay": 0.1} | chosen
    warm_up = {"name": "constant_with_warmup", "warmup_steps": 3}
    run = run_of(bench, bench.job(sdxl_folder, optimizer=settings, lr_scheduler=warm_up, steps=12))
    run.adapter.weights.zero_()  # the first steps are so short that rounding would hide them
    alone = torch.nn.Parameter(run.adapter.weights.clone())
    wanted = {"betas": (0.9, 0.999), "d_coef": 1.0, "safeguard_warmup": True} | settings
    del wanted["name"], wanted["max_grad_norm"]
    optimizer = Prodigy([alone], use_bias_correction=True, **wanted)
    for step in range(12):
        run.adapter.gradient.normal_(generator=torch.Generator().manual_seed(step)).add_(1.0)
        alone.grad = run.adapter.gradient.clone()
        optimizer.param_groups[0]["lr"] = settings["lr"] * min(1.0, step / 3)
        optimizer.step()
        run.update()
    torch.testing.assert_close(run.adapter.weights, alone.detach(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    ("chosen", "factors"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"name": "constant_with_warmup", "warmup_steps": 4}, [0, 1 / 4, 1 / 2, 3 / 4, 1, 1, 1, 1]),
        ({"name": "linear", "warmup_steps": 2}, [0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"name": "cosine"}, [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
        ({"name": "cosine_with_restarts", "cycles": 2}, [1, 0.853553, 0.5, 0.146447, 1, 0.853553, 0.5, 0.146447]),
        ({"name": "polynomial", "power": 2.0}, [1e-5 + (1 - 1e-5) * (1 - step / 8) ** 2 for step in range(8)]),
        ({"name": "piecewise_constant", "rules": "1:3,0.5:5,0.25"}, [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_the_learning_rate_has_the_shape_that_was_chosen(chosen: dict[str, Any], factors: list[float]) -> None:
    experiment = Experiment.model_validate({"steps": 8, "lr_scheduler": chosen})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = build_lr_scheduler(experiment.lr_scheduler, optimizer, experiment)
    found = []
    for _ in range(8):
        found.append(scheduler.get_last_lr()[0] / 1e-2)
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(factors, abs=1e-6)
