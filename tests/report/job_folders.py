"""Job folders like those of a real run, made from drawn houses and made-up curves."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw, ImageFilter

PROMPTS = (
    "a red house on a hill, evening light",
    "a small blue house by the sea",
    "a yellow house in the snow",
)
WALLS = ((196, 62, 50), (52, 98, 180), (226, 178, 52))
SKIES = ((250, 208, 160), (176, 214, 236), (226, 232, 240))
GROUNDS = ((92, 132, 70), (222, 204, 160), (244, 246, 250))


def draw_house(prompt: int, seed: int, progress: float, side_px: int) -> Image.Image:
    """A house that gets sharp as progress goes from 0 to 1."""
    dice = random.Random(f"{prompt} {seed}")
    image = Image.new("RGB", (64, 64), SKIES[prompt % 3])
    pen = ImageDraw.Draw(image)
    horizon, left, top = 44 + dice.randint(-3, 3), 16 + dice.randint(-6, 6), 24 + dice.randint(-3, 3)
    pen.rectangle((0, horizon, 64, 64), fill=GROUNDS[prompt % 3])
    wall = WALLS[prompt % 3]
    pen.rectangle((left, top + 8, left + 30, horizon + 6), fill=wall)
    pen.polygon([(left - 4, top + 8), (left + 15, top - 8), (left + 34, top + 8)], fill=(96, 58, 48))
    pen.rectangle((left + 12, horizon - 6, left + 18, horizon + 6), fill=(70, 44, 36))
    for x in (4, 21):
        pen.rectangle((left + x, top + 13, left + x + 6, top + 19), fill=(250, 240, 200))
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    blurred = image.filter(ImageFilter.GaussianBlur(8 * (1 - progress) ** 1.5))
    mixed = Image.blend(blurred, noise, 0.55 * (1 - progress) ** 2)
    return mixed if side_px == 64 else mixed.resize((side_px, side_px), Image.Resampling.BICUBIC)


def make_config(name: str, *, rank: int, lr: float, steps: int, data: str = "houses") -> dict[str, Any]:
    return {
        "name": name, "seed": 0, "steps": steps, "batch_size": 4, "accumulation": 1, "resolution": 64,
        "precision": "float32", "task": {"name": "train"}, "model": {"family": "sd", "path": "tiny/sd15"},
        "dataset": {"path": f"data/{data}", "caption_dropout": 0.1}, "method": {"name": "text_to_image"},
        "lora": {"rank": rank, "alpha": rank, "targets": ["to_q", "to_k", "to_v", "to_out.0"]},
        "optimizer": {"name": "adamw", "lr": lr, "weight_decay": 0.01}, "lr_scheduler": {"name": "cosine"},
        "scheduler": {"name": "ddpm"}, "loss": {"name": "mse", "snr_gamma": 5.0},
        "validation": {"every": 40, "prompts": list(PROMPTS), "seeds": [0, 1], "guidance_scale": 5.0},
        "checkpoint": {"every": 40, "keep": 2}, "launcher": {"name": "local"},
        "logger": {"name": "wandb", "mode": "auto"},
    }  # fmt: skip


def make_manifest(identity: str, name: str, overrides: list[str], *, steps: int, loss: float | None) -> dict[str, Any]:
    return {
        "id": identity, "name": name, "state": "completed", "overrides": overrides, "objective": loss,
        "objective_name": "validation/loss", "error": None, "created": "2026-11-20T09:00:00+00:00",
        "started": "2026-11-20T09:00:02+00:00", "finished": "2026-11-20T09:00:40+00:00", "steps_done": steps,
        "attempts": 1, "device": "NVIDIA A10G", "git_commit": "4f9d2c1a7b", "parameters": 797184,
        "timings_s": {"load": 2.1, "cache": 1.4, "train": 27.5, "validate": 5.2, "artifacts": 1.1, "total": 38.2},
        "versions": {"torch": "2.13.0", "diffusers": "0.37.0", "peft": "0.19.0"},
        "dataset": {
            "fingerprint": "sha256:9c1f0b", "images": 48, "held_out": 6,
            "table": {"buckets": [{"size": "64 x 64", "images": 40}, {"size": "64 x 96", "images": 8}],
                      "captions": {"from": "text files", "mean_words": 7.5}},
        },
        "plan": {"batch": "4 images on 1 device", "cache": "in GPU memory, 3 MB", "compile": "no: under 500 steps"},
        "wandb_url": "https://wandb.ai/me/lora/runs/" + identity,
    }  # fmt: skip


def write_metrics(folder: Path, *, steps: int, floor: float, lr: float, every: int, seed: int = 0) -> float:
    """Write curves that fall from 0.24 to about `floor`; returns the last held-out loss."""
    dice = random.Random(seed)
    lines: list[dict[str, Any]] = []
    held = 0.24
    for step in range(steps + 1):
        fall = floor + (0.24 - floor) * math.exp(-4 * step / max(steps, 1))
        moment = 1.795e9 + 0.14 * step
        if step:
            lines.append({
                "step": step, "time": moment, "train/loss": fall * math.exp(dice.gauss(-0.03, 0.28)),
                "train/lr": lr * min(1, step / 10) * 0.5 * (1 + math.cos(math.pi * step / steps)),
                "train/grad_norm": 0.8 * math.exp(dice.gauss(-step / steps, 0.25)),
                "train/images_per_s": 29 + dice.gauss(0, 1.2),
            })  # fmt: skip
        if step % every == 0:
            held = fall * (1 + dice.gauss(0, 0.01))
            bands = {f"validation/loss_t{t:04d}": held * scale for t, scale in ((125, 2.2), (500, 0.8), (875, 0.2))}
            lines.append({"step": step, "time": moment, "validation/loss": held, **bands})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return held


def write_samples(folder: Path, *, steps: list[int], last: int, quality: float = 1.0, side_px: int = 64) -> None:
    samples = folder / "samples"
    for step in steps:
        place = samples / f"step-{step:06d}"
        place.mkdir(parents=True)
        for prompt in range(len(PROMPTS)):
            for seed in (0, 1):
                image = draw_house(prompt, seed, quality * (step / last) ** 0.6, side_px)
                image.save(place / f"p{prompt:02d}-s{seed}.png")
    described = {"prompts": list(PROMPTS), "seeds": [0, 1], "guidance_scale": 5.0, "negative_prompt": ""}
    (samples / "prompts.json").write_text(json.dumps(described))


def write_job(
    folder: Path,
    *,
    rank: int = 8,
    lr: float = 1e-3,
    steps: int = 200,
    floor: float = 0.13,
    quality: float = 1.0,
    side_px: int = 64,
    sampled: list[int] | None = None,
    **changes: Any,
) -> Path:
    """Write a complete job folder; `changes` go into its manifest."""
    folder.mkdir(parents=True)
    experiment, identity = folder.parent.name, folder.name
    overrides = [f"lora.rank={rank}", f"optimizer.lr={lr}", f"steps={steps}"]
    config = make_config(experiment, rank=rank, lr=lr, steps=steps)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    held = write_metrics(folder, steps=steps, floor=floor, lr=lr, every=max(1, steps // 5), seed=rank)
    manifest = make_manifest(identity, f"rank {rank}, lr {lr:g}", overrides, steps=steps, loss=held)
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}, indent=2))
    shots = sampled if sampled is not None else list(range(0, steps + 1, max(1, steps // 5)))
    if shots:
        write_samples(folder, steps=shots, last=steps, quality=quality, side_px=side_px)
    (folder / "lora").mkdir()
    (folder / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"0" * 64)
    (folder / "lora" / "README.md").write_text("# A model card\n")
    (folder / "log.txt").write_text("step 1\nstep 2\ndone\n")
    return folder


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_config(folder: Path, **changes: Any) -> None:
    """Change settings by their dotted keys, written with two underscores for a dot."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *groups, leaf = key.split("__")
        section = config
        for group in groups:
            section = section[group]
        section[leaf] = value
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def write_search(root: Path, jobs: int, *, side_px: int = 64, draws: int = 40) -> Path:
    """Write what a search leaves: different values in every job, some stopped early, one diverged."""
    search, dice = root / "search", random.Random(3)
    for number in range(jobs):
        rank, lr = dice.choice([4, 8, 16, 32, 64, 128]), 10 ** dice.uniform(-5, -2.5)
        optimizer, dropout = dice.choice(["adamw", "adafactor", "prodigy"]), dice.uniform(0, 0.3)
        gamma, data = dice.choice([None, 1.0, 5.0]), dice.choice(["houses", "houses-with-long-captions"])
        floor = 0.12 + 0.03 * (math.log10(lr) + 3.6) ** 2 + 0.002 * abs(math.log2(rank) - 4) + dice.gauss(0, 0.004)
        state, steps = ("pruned", 80) if number % 5 == 1 else ("completed", 200)
        lost = {"state": "failed", "objective": None, "error": "DivergedError: the loss is nan at step 40"}
        folder = write_job(
            search / f"a{number:02d}c4e6f8b0", rank=rank, lr=lr, steps=steps, floor=floor, side_px=side_px,
            sampled=[0, steps] if number < draws else [], **(lost if number == 7 else {"state": state}),
        )  # fmt: skip
        change_config(
            folder, optimizer__name=optimizer, dataset__caption_dropout=dropout, loss__snr_gamma=gamma,
            dataset__path=f"data/{data}", seed=number % 3, steps=200,
        )  # fmt: skip
        overrides = [
            f"lora.rank={rank}", f"optimizer.lr={lr!r}", f"optimizer={optimizer}", f"seed={number % 3}",
            f"dataset.caption_dropout={dropout!r}", f"loss.snr_gamma={gamma or 'null'}", f"dataset.path=data/{data}",
        ]  # fmt: skip
        change_manifest(folder, name="search", overrides=overrides)
        if state == "pruned":
            change_manifest(folder, objective=None)
        give_cost(folder, price_usd=0.01)
    return search


def give_cost(folder: Path, **more: Any) -> None:
    """Give a job the cost of a packed one: alone it would have taken three times as long."""
    total_s = json.loads((folder / "manifest.json").read_text())["timings_s"]["total"]
    change_manifest(folder, cost={"alone_s": 3 * total_s, "packed_with": 8, "peak_memory_gb": 1.234} | more)


def write_sweep(root: Path) -> Path:
    """Write six jobs in different states."""
    sweep = root / "houses-sweep"
    write_job(sweep / "a1c2e3", rank=8, floor=0.13, quality=0.85)
    write_job(sweep / "b2d4f6", rank=16, floor=0.115)
    write_job(sweep / "c3e5a7", rank=4, floor=0.15, quality=0.7)
    write_job(sweep / "d4f6b8", rank=32, lr=3e-3, floor=0.2, quality=0.45)
    failed = write_job(
        sweep / "e5a7c9", rank=64, lr=1e-2, steps=60, sampled=[0], state="failed", objective=None,
        error="NonFiniteLoss: the loss was NaN in 10 steps one after another, first at step 51.\n"
              "Fix: lower optimizer.lr (it is 0.01), or set optimizer.clip_norm=1.",
    )  # fmt: skip
    (failed / "log.txt").write_text("step 50 loss 3.2\nstep 51 loss nan\n")
    running = write_job(sweep / "f6b8d0", rank=2, steps=120, state="running", objective=None, finished=None)
    change_manifest(running, timings_s={"load": 2.0}, steps_done=120)
    waiting = sweep / "a7c9e1"
    waiting.mkdir()
    (waiting / "config.yaml").write_text(yaml.safe_dump(make_config("houses-sweep", rank=128, lr=1e-3, steps=200)))
    manifest = make_manifest(
        "a7c9e1", "rank 128, lr 0.001", ["lora.rank=128", "optimizer.lr=0.001"], steps=0, loss=None
    )
    for key in ("timings_s", "dataset", "plan", "versions", "wandb_url", "started", "finished", "parameters"):
        manifest[key] = None
    (waiting / "manifest.json").write_text(json.dumps({**manifest, "state": "pending"}))
    return sweep


def write_evaluation(
    folder: Path,
    *,
    of: str | None,
    figures: dict[str, tuple[float, float | None, float | None]],
    finished: str = "2026-11-21T10:00:00+00:00",
    weight: float = 1.0,
    adapter: str = "outputs/x/job",
    sampled: bool = True,
    **changes: Any,
) -> Path:
    """Write a job of task=evaluate, with (value, low, high) of each figure."""
    folder.mkdir(parents=True)
    config = {
        "name": folder.parent.name, "task": {"name": "evaluate"}, "adapter": [adapter], "adapter_weight": [weight],
        "confidence": 0.95, "seeds": [0, 1],
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    said = {name: {"value": value, "low": low, "high": high, "n": 100} for name, (value, low, high) in figures.items()}
    manifest = {
        "id": folder.name, "name": folder.parent.name, "task": "evaluate", "state": "completed", "of": of,
        "overrides": ["task=evaluate"], "figures": said, "error": None, "finished": finished,
        "timings_s": {"total": 9.5},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    if sampled:
        write_samples(folder, steps=[0], last=1, quality=1.0)
    return folder
