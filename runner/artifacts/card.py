"""The model card next to the weights: base model, settings, data, figures and samples, for people and for the Hub."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from runner.families.known import FAMILIES
from runner.families.single_file import is_single_file
from runner.paths import WEIGHTS_NAME, sample_name, write_text
from runner.report.charts import Series, draw, smoothed, standalone
from runner.schema import ModelSettings
from runner.schema.method import NewTokens
from runner.schema.metrics import HELD_OUT, TRAIN_LOSS
from runner.system.printable import printable

if TYPE_CHECKING:
    import torch

    from runner.families.family import Family
    from runner.train.job_run import JobRun

NOT_OF_INTEREST = {"launcher", "logger", "checkpoint"}
"""Settings that say nothing about what was trained."""
MOST_SAMPLES = 8
MARKUP = re.compile(r"[\\`*_\[\]<>|&~$]")
"""Characters that Markdown and HTML show literally only after a backslash."""


def write_card(run: JobRun, kohya_file: Path | None, losses: Mapping[str, float], checked: Mapping[str, float]) -> None:
    """Write README.md, the loss curve and a few samples to the folder of the weights."""
    folder, settings = run.paths.lora, run.settings
    samples = _copy_samples(run, folder)
    records = run.metrics.read() if run.metrics is not None else []
    head = {
        "library_name": "diffusers",
        "base_model": settings.model.path,
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "diffusers", "text-to-image", settings.model.family],
        "widget": [{"text": prompt, "output": {"url": name}} for prompt, name in samples],
    }
    if settings.dataset.instance_prompt:
        head["instance_prompt"] = settings.dataset.instance_prompt
    curves = write_curves(folder, records)
    measured = "Held-out loss" if run.materials.held_out else "Loss on the training images, at fixed noise,"
    first = next((line[HELD_OUT] for line in records if HELD_OUT in line), None)
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {marked(f'{settings.name}: {_what(run)} for {settings.model.path}')}",
        "",
        f"{measured} {losses[HELD_OUT]:.4f} after {run.step} steps"
        + (f" ({first:.4f} before training)." if first is not None else "."),
        "",
        *curves,
        *sample_table(samples),
        "## Use",
        "",
        "```python",
        *pipeline_code(settings.model, run.base.dtype),
        *_loading_code(run),
        "```",
        "",
        *_for_others(run, kohya_file),
        "## What it was made from",
        "",
        *table(_facts(run)),
        "",
        "The saved files were loaded back into diffusers and compared with the trained adapter: "
        + ", ".join(f"{name} {difference:.1e}" for name, difference in checked.items())
        + " of the output's norm.",
        "",
        *settings_section(settings.model_dump(mode="json", exclude=NOT_OF_INTEREST)),
    ]
    write_text(folder / "README.md", "\n".join(lines))


def _what(run: JobRun) -> str:
    """What was trained, in words."""
    settings, parts = run.settings, []
    if run.adapter.sites:
        parts.append(f"{'DoRA' if settings.lora.dora else 'LoRA'} of rank {settings.lora.rank}")
    if isinstance(settings.method, NewTokens):
        parts.append(" ".join(settings.method.tokens))
    return " and ".join(parts)


def _loading_code(run: JobRun) -> list[str]:
    """Python code that loads what was trained into the pipeline."""
    method, lines = run.settings.method, list[str]()
    if run.adapter.sites:
        lines.append(f'pipeline.load_lora_weights("path/to/this/folder", weight_name="{WEIGHTS_NAME}")')
    if not isinstance(method, NewTokens):
        return lines
    return lines + words_code({token: run.paths.word(token).name for token in method.tokens}, run.base.family)


def words_code(files: Mapping[str, str], family: Family) -> list[str]:
    """Python code that teaches the pipeline words, each from its file."""
    lines = ["from safetensors.torch import load_file"]
    for token, file in files.items():
        lines.append(f'vectors = load_file("path/to/this/folder/{file}")')
        lines += [
            f'pipeline.load_textual_inversion(vectors["{key}"], token="{token}", text_encoder=pipeline.{name}, '
            f"tokenizer=pipeline.{name.replace('text_encoder', 'tokenizer')})"
            for name, key in family.token_keys.items()
        ]
    if "text_encoder_2" in family.token_keys:
        lines += [
            "# Older models take the state at the largest id for that of the text, which would be that of a new word.",
            "pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id",
        ]
    return lines


def _for_others(run: JobRun, kohya_file: Path | None) -> list[str]:
    """How to use it in other programs."""
    readers, lines = run.base.family.export.readers, []
    if kohya_file is not None:
        lines += [f"{readers}: copy `{kohya_file.name}` into the folder of LoRAs.", ""]
    elif run.adapter.sites:
        lines += [f"{readers} read DoRA differently from how it is trained: there is no file for them.", ""]
    if isinstance(run.settings.method, NewTokens):
        files = ", ".join(f"`{run.paths.word(token).name}`" for token in run.settings.method.tokens)
        lines += [f"{readers}: copy {files} into the folder of embeddings; there, a word is written like its file.", ""]
    return lines


def pipeline_code(model: ModelSettings, dtype: torch.dtype) -> list[str]:
    """Python code that loads the base as in training; the dtype is explicit because a model's files may mix several."""
    kind, load, path = "AutoPipelineForText2Image", "from_pretrained", repr(model.path)
    given: dict[str, Any] = {"variant": model.variant, "revision": model.revision}
    if is_single_file(model.path):
        kind, load, given = FAMILIES[model.family].pipeline, "from_single_file", {"config": model.config}
    imports = ["import torch", f"from diffusers import {kind}"]
    if model.path == "embedded":
        path = "MODEL_DIR"
        imports.append("from runner.embedded import MODEL_DIR")
    return [
        *imports,
        "",
        f"pipeline = {kind}.{load}({path}{_arguments(given)}, torch_dtype={dtype})",
        *sampler_code(model),
    ]


def sampler_code(model: ModelSettings) -> list[str]:
    """Python code that gives the pipeline's sampler the configured prediction; none if the base's files say it."""
    said = _arguments(
        {
            "prediction_type": model.prediction_type,
            "rescale_betas_zero_snr": model.zero_terminal_snr,
            "timestep_spacing": "trailing" if model.zero_terminal_snr else None,
        }
    )
    return [f"pipeline.scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config{said})"] if said else []


def _arguments(given: Mapping[str, Any]) -> str:
    """Arguments that have a value, as code that follows other arguments."""
    return "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)


def write_curves(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    """Draw the losses next to the card; returns the lines that show them."""

    def points(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in records if line.get(key) is not None]

    raw = points(TRAIN_LOSS)
    series = [
        Series(label="train", points=raw, style="raw"),
        Series(label="train, smoothed", points=smoothed(raw)),
        Series(label="validation", points=points(HELD_OUT), style="held", dots=True),
    ]
    chart = draw("Loss", series)
    if chart is None:
        return []
    write_text(folder / "loss.svg", standalone(chart))
    return ["![Loss over steps: blue on the training images, orange at fixed noise, before and after](loss.svg)", ""]


def _facts(run: JobRun) -> dict[str, Any]:
    about, settings = run.materials.about(), run.settings
    return {
        "Job": f"`{run.job.id}`",
        "Base model": f"`{settings.model.path}`",
        "Base model fingerprint": f"`{run.job.identity['model']}`",
        "Data": ", ".join(f"`{path}`" for path in settings.dataset.paths),
        "Data fingerprint": f"`{about['fingerprint']}`",
        "Images": f"{about['images']} for training, {about['held_out']} held out",
        "Trained weights": f"{len(run.adapter):,}",
        "Steps x batch": f"{run.step} x {settings.batch_size}",
        **_kept(run),
    }


def _kept(run: JobRun) -> dict[str, Any]:
    """The training that this one started from, and how much of it is kept."""
    if (earlier := run.materials.earlier) is None:
        return {}
    facts = {"Started from": f"`{earlier.job.id if earlier.job else earlier.file.name}`"}
    share = run.kept_of_earlier().get("kept_of_earlier", {}).get("share")
    return facts if share is None else facts | {"Kept of it": f"{share:.0%} of what it had learned about its images"}


def settings_section(settings: Mapping[str, Any]) -> list[str]:
    """The settings, as lines of Markdown."""
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()
    return ["## Settings", "", "```yaml", text, "```", ""]


def table(facts: Mapping[str, Any]) -> list[str]:
    """Facts as lines of Markdown."""
    return ["| | |", "|---|---|", *(_row(name, value) for name, value in facts.items())]


def _row(name: str, value: Any) -> str:
    # A bar in a folder's name would start another cell, even between backticks.
    cells = (each.replace("|", r"\|") for each in (name, str(value)))
    return f"| {' | '.join(cells)} |"


def _copy_samples(run: JobRun, folder: Path) -> list[tuple[str, str]]:
    """(prompt, file name) of a few images of the last step, copied so that the folder is self-contained."""
    copied = []
    source = run.paths.samples_at(run.step)
    seed = run.settings.validation.seeds[0]
    for index, prompt in enumerate(run.materials.prompts[:MOST_SAMPLES]):
        image = source / sample_name(index, seed)
        if image.is_file():
            name = f"sample-{index:02d}.png"
            shutil.copyfile(image, folder / name)
            copied.append((prompt, name))
    return copied


def marked(text: str) -> str:
    """A text as one line of Markdown that shows it literally; a word like <cat> is not taken for HTML."""
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def sample_table(samples: list[tuple[str, str]]) -> list[str]:
    """(prompt, file name) of images, as lines of Markdown."""
    if not samples:
        return []
    # A caption may have several lines, but a table row must not.
    cells = [(name, marked(prompt)) for prompt, name in samples]
    return [
        "| " + " | ".join(f"![{prompt}]({name})" for name, prompt in cells) + " |",
        "|" + "---|" * len(cells),
        "| " + " | ".join(prompt for _, prompt in cells) + " |",
        "",
    ]
