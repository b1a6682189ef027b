"""The card of an exported adapter: like that of its training, without what is only true on this machine."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.artifacts.card import (
    NOT_OF_INTEREST,
    marked,
    sample_table,
    sampler_code,
    settings_section,
    table,
    words_code,
    write_curves,
)
from runner.families import find_family
from runner.families.family import Family
from runner.hub import is_hub_id
from runner.jobs.job import Job, known_manifest
from runner.paths import WEIGHTS_NAME, write_text
from runner.schema.method import NewTokens
from runner.schema.metrics import HELD_OUT
from runner.track.metrics import MetricsFile

SD2 = "sd_v2"
FENCE = "---\n"
"""Delimits the head of a card."""
NAMING_PLACES = frozenset(
    ("path", "config", "vae", "sources", "class_data_dir", "init_from", "real", "inception", "clip", "dino")
)
"""Settings, in any section, that name a folder, a file or a Hub id."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: Mapping[str, Path]
    """Format -> file."""
    words: Sequence[Path]
    facts: Mapping[str, Any]
    """About the adapter as written."""


def write_export_card(exported: Exported, job: Job | None, *, title: str, base_model: str | None, family: str) -> Path:
    """Write README.md next to the files, with the training's samples and loss if its folder is on this machine."""
    folder = exported.folder
    front, samples = _of_training(job, folder)
    head = {
        "library_name": "diffusers",
        **({"base_model": base_model} if base_model else {}),
        "pipeline_tag": "text-to-image",
        "tags": ["lora" if exported.files else "textual_inversion", "diffusers", "text-to-image", family],
        "widget": [{"text": prompt, "output": {"url": name}} for prompt, name in samples],
        **({"instance_prompt": front["instance_prompt"]} if "instance_prompt" in front else {}),
    }
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {marked(title)}",
        "",
        *_trained(job, folder),
        *sample_table(samples),
        "## Use",
        "",
        *_use(exported, job, base_model, family),
        "## Files",
        "",
        *table(_files(exported)),
        "",
        *_settings(job),
    ]
    write_text(folder / "README.md", "\n".join(lines))
    return folder / "README.md"


def _of_training(job: Job | None, folder: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The head of the training's own card, and (prompt, file name) of its samples, which are copied."""
    card = None if job is None else job.paths.lora / "README.md"
    front = {} if card is None else _head_of(card)
    samples = []
    for each in front["widget"] if isinstance(front.get("widget"), list) else ():
        match each:
            case {"text": text, "output": {"url": str(name)}} if card and (source := card.parent / name).is_file():
                shutil.copyfile(source, folder / source.name)
                samples.append((str(text), source.name))
    return front, samples


def _head_of(card: Path) -> dict[str, Any]:
    """The machine-readable head of a card; empty if it has none, since people rewrite cards."""
    try:
        # Prompts may contain dashes, too.
        front = yaml.safe_load(card.read_text(encoding="utf-8").removeprefix(FENCE).partition(f"\n{FENCE}")[0])
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return front if isinstance(front, dict) else {}


def _trained(job: Job | None, folder: Path) -> list[str]:
    """The figures of the training."""
    if job is None:
        return []
    records = MetricsFile(job.paths.metrics).read()
    losses = [line[HELD_OUT] for line in records if line.get(HELD_OUT) is not None]
    steps = max((line["step"] for line in records), default=job.experiment.steps)
    manifest = known_manifest(job.folder)
    data = manifest.get("dataset", {})
    facts = {
        "Trained": f"{steps} steps of {job.experiment.batch_size} images",
        "Images": f"{data['images']} for training, {data['held_out']} held out" if data else None,
        "Trained weights": f"{manifest['parameters']:,}" if "parameters" in manifest else None,
        "Base model fingerprint": f"`{job.identity['model']}`",
        "Data fingerprint": f"`{job.identity['dataset']}`",
    }
    said = f"Loss at fixed noise {losses[-1]:.4f} ({losses[0]:.4f} before training)." if losses else ""
    return [
        *([said, ""] if said else []),
        *write_curves(folder, records),
        *table({key: value for key, value in facts.items() if value is not None}),
        "",
    ]


def _use(exported: Exported, job: Job | None, base_model: str | None, family: str) -> list[str]:
    lines, code = list[str](), list[str]()
    if "diffusers" in exported.files:
        code.append(f'pipeline.load_lora_weights("path/to/this/folder", weight_name="{WEIGHTS_NAME}")')
    method = None if job is None else job.experiment.method
    if exported.words and isinstance(method, NewTokens):
        files = [file.name for file in exported.words]
        code += words_code(dict(zip(method.tokens, files, strict=True)), find_family(family))
    if code:
        lines += [
            "```python",
            "from diffusers import AutoPipelineForText2Image",
            "",
            f"pipeline = AutoPipelineForText2Image.from_pretrained({base_model or 'path/to/the/base'!r})",
            *(sampler_code(job.experiment.model) if job is not None else []),
            *code,
            "```",
            "",
        ]
    others = [file.name for kind, file in exported.files.items() if kind != "diffusers"]
    if others:
        lines += [
            f"ComfyUI and others: copy {' or '.join(f'`{name}`' for name in others)} into the folder of LoRAs.",
            "",
        ]
    if exported.words:
        names = ", ".join(f"`{file.name}`" for file in exported.words)
        lines += [
            f"ComfyUI and A1111: copy {names} into the folder of embeddings; a word is written like its file.",
            "",
        ]
    return lines


def _files(exported: Exported) -> dict[str, Any]:
    rows = {f"`{file.name}`": f"{kind}, {file.stat().st_size:,} bytes" for kind, file in exported.files.items()}
    rows |= {f"`{file.name}`": f"a word, {file.stat().st_size:,} bytes" for file in exported.words}
    return rows | dict(exported.facts)


def _settings(job: Job | None) -> list[str]:
    """The settings; folders on this machine are reduced to their names."""
    if job is None:
        return []
    settings = job.experiment.model_dump(mode="json", exclude=NOT_OF_INTEREST)
    return settings_section(_without_places(settings, job))


def _without_places(value: Any, job: Job, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_places(each, job, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each, job, key) for each in value]
    if not isinstance(value, str):
        return value
    elsewhere = value.startswith(("/", "~", "./", "../", "s3://"))
    if elsewhere or (key in NAMING_PLACES and not _is_on_the_hub(value, job)):
        return value.rstrip("/").rpartition("/")[2]
    return value


def _is_on_the_hub(value: str, job: Job) -> bool:
    """Whether a place is known to be a Hub id; a folder that cannot be found from here may look like one."""
    if not is_hub_id(value):
        return False
    from huggingface_hub import constants

    data = job.experiment.dataset
    if any(part.startswith(f"{value}@") for part in str(job.identity["model"]).split("+")) or (
        data.stream and value in data.paths
    ):
        return True
    fetched = value.replace("/", "--")
    return any((Path(constants.HF_HUB_CACHE) / f"{kind}--{fetched}").is_dir() for kind in ("models", "datasets"))


def header_of_kohya(family: Family, denoiser: Any, *, title: str, base_model: str | None) -> dict[str, str]:
    """The header of a file for other programs."""
    version = family.kohya_version(denoiser)
    return {
        "ss_base_model_version": version,
        # A1111 recognizes files for Stable Diffusion 2.x by this alone, and with such a model shows no others.
        **({"ss_v2": "True"} if version == SD2 else {}),
        "ss_output_name": title,
        **({"ss_sd_model_name": base_model} if base_model else {}),
        "modelspec.title": title,
    }
