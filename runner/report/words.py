"""Jobs, their settings and how they went, in plain words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from runner.report.record import JobRecord, as_mapping
from runner.schema.metrics import HELD_OUT
from runner.system.amounts import MISSING, count, duration, number


def objective_label(job: JobRecord) -> str:
    """The name of the objective on the page."""
    name = str(job.manifest.get("objective_name") or HELD_OUT)
    return loss_name(job) if name == HELD_OUT else name


def loss_name(job: JobRecord) -> str:
    """The name of the validation loss, by what it was measured on: small data sets have no held-out images."""
    held_out = as_mapping(job.manifest.get("dataset")).get("held_out")
    return "loss on the training images" if held_out == 0 else "held-out loss"


def plain(value: Any) -> str:
    """Any config value as one line of text."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, digits=6)
    if isinstance(value, (list, tuple)) and all(not isinstance(item, (list, tuple, dict)) for item in value):
        return ", ".join(plain(item) for item in value) or MISSING
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def chosen(value: Any) -> str:
    """A setting's value, rounded for reading: a randomly drawn one may have sixteen digits."""
    if value is None:
        return "none"
    return number(value) if isinstance(value, float) else plain(value)


def abridged(texts: Sequence[str], most: int) -> list[str]:
    """The texts cut to `most` characters: first the words that all begin and end with are dropped, then the middle."""
    if all(len(text) <= most for text in texts):
        return list(texts)
    start, end = _shared_words(texts), _shared_words([text[::-1] for text in texts])
    shown = [_without_ends(text, start, end) for text in texts]
    return [text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}" for text in shown]


def _shared_words(texts: Sequence[str]) -> int:
    """The length of the beginning that all texts share, up to the end of a word; 0 if dropping it saves nothing."""
    first, last = min(texts), max(texts)
    shared = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), 0)
    words = max(first[:shared].rfind(sign) for sign in "/ ._-") + 1
    return words if words > 2 else 0


def _without_ends(text: str, start: int, end: int) -> str:
    rest = text[start : len(text) - end] if start + end < len(text) else text[start:]
    return f"{'…' * (start > 0)}{rest}{'…' * (end > 0 and start + end < len(text))}"


def subject(job: JobRecord) -> str:
    """What the job trains: `LoRA rank 8 on houses`."""
    rank = job.setting("lora.rank")
    what = f"LoRA rank {rank}" if rank is not None else "LoRA"
    if job.setting("method.name") == "textual_inversion":
        what = " ".join(map(str, job.setting("method.tokens") or ["new words"]))
    sources = job.setting("dataset.sources")
    paths = [job.setting("dataset.name") or job.setting("dataset.path")]
    paths += [as_mapping(source).get("path") for source in sources] if isinstance(sources, list) else []
    name = " and ".join(PurePosixPath(str(path).rstrip("/")).name for path in paths if path)
    return f"{what} on {name}" if name else what


def held_out_change(job: JobRecord) -> str:
    """How the held-out loss changed: `held-out loss 0.21 → 0.13`; empty if it was not measured."""
    values = [value for _, value in job.curve(HELD_OUT)]
    if not values:
        return ""
    what = loss_name(job)
    if len(values) == 1:
        return f"{what} {number(values[0], 3)}"
    return f"{what} {number(values[0], 3)} → {number(values[-1], 3)}"


def job_sentence(job: JobRecord) -> str:
    """One sentence about one job, true in every state."""
    if not job.trains:
        took = f" in {duration(job.total_s)}" if job.state == "completed" and job.total_s is not None else ""
        return f"task={job.task}: {job.state}{took}."
    steps = job.steps_done
    wanted = job.setting("steps")
    of_steps = f"{steps:,} of {wanted:,} steps" if isinstance(wanted, int) else count(steps, "step")
    change = held_out_change(job)
    if job.state == "completed":
        took = f" in {duration(job.total_s)}" if job.total_s is not None else ""
        return f"{subject(job)}: {change or f'{steps:,} steps done'}{took}."
    ending = {
        "pending": "not started yet",
        "submitted": "submitted, not started yet",
        "running": f"running, {of_steps} done",
        "interrupted": f"interrupted after {of_steps}; the same command continues it",
        "failed": f"failed after {of_steps}",
        "cancelled": f"cancelled after {of_steps}",
        "pruned": f"stopped early after {of_steps}, as others did better",
    }.get(job.state, f"{of_steps} done")
    return f"{subject(job)}: {ending}{f'; {change}' if change else ''}."
