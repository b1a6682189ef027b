"""Jobs as they are logged to W&B, by hand and from folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from runner.track import Mirror, open_mirror

from .wandb_server import WandbServer

CONFIG = {"name": "houses", "lora": {"rank": 8}, "optimizer": {"lr": 1e-4}}
SECRET = "0123456789" * 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = "wandb"
    mode: str = "auto"
    project: str | None = "lora"
    entity: str | None = None
    tags: tuple[str, ...] = ("rank-8", "sd15")
    timeout_s: float = 20.0


def open_for(folder: Path, *, job_id: str = "abc123", experiment: str = "houses", **settings: Any) -> Mirror:
    folder.mkdir(parents=True, exist_ok=True)
    return open_mirror(
        Settings(**settings),
        job_id=job_id,
        experiment_name=experiment,
        job_name="rank 8",
        config=CONFIG,
        folder=folder,
    )


def samples(folder: Path) -> list[tuple[Path, str]]:
    made = []
    for number, prompt in enumerate(["a red house", "a blue house"]):
        path = folder / f"p{number:02d}-s0.png"
        Image.new("RGB", (16, 16), (200 * number, 40, 90)).save(path)
        made.append((path, prompt))
    return made


def adapter(folder: Path) -> Path:
    lora = folder / "lora"
    (lora / "exports").mkdir(parents=True)
    (lora / "pytorch_lora_weights.safetensors").write_bytes(b"weights" * 10)
    (lora / "exports" / "kohya.safetensors").write_bytes(b"kohya")
    return lora


def log_a_whole_job(mirror: Mirror, folder: Path) -> None:
    for step in (1, 2, 3):
        mirror.log(step, {"train/loss": 1.0 / step})
    mirror.log(3, {"validation/loss": 0.25})
    mirror.images(3, samples(folder))
    mirror.adapter(adapter(folder), {"rank": 8, "base": "tiny"})
    mirror.finish("completed", {"objective": 0.25})


def job_with_samples(folder: Path, *, steps: int, side_px: int = 16) -> Path:
    """A job that drew two prompts with two seeds at some steps."""
    for step in range(0, 10 * steps, 10):
        place = folder / "samples" / f"step-{step:06d}"
        place.mkdir(parents=True)
        for number in (0, 1):
            for seed in (3, 4):
                colour = (step % 256, 100 * number, 50 * seed)
                Image.new("RGB", (side_px, side_px), colour).save(place / f"p{number:02d}-s{seed}.png")
    (folder / "samples" / "prompts.json").write_text(json.dumps({"prompts": ["a red house", "a blue house"]}))
    return folder


def table_of(server: WandbServer) -> list[list[Any]]:
    """The last uploaded table, with each image given by its file name."""
    (content,) = [body for name, body in server.uploads.items() if name.endswith("/samples_table.table.json")]
    table = json.loads(content)
    assert table["columns"] == ["step", "prompt", "seed", "image"]
    stored = {Path(name).parent.name + "/" + Path(name).name for name in server.uploads}
    images = [Path(row[3]["path"]) for row in table["data"]]
    assert all(f"{path.parent.name}/{path.name}" in stored for path in images)
    return [[*row[:3], path.name] for row, path in zip(table["data"], images, strict=True)]
