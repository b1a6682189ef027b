"""What the page says about several jobs, as plain values for its template.

Takes job records, returns the ranking with its columns, the comparing charts, the grid of samples and the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.report.charts import Series, draw, smoothed, sparkline
from runner.report.cost import cost_of
from runner.report.differences import compared, differing_overrides, differing_settings, most_varied, told_apart
from runner.report.evaluations import Figures, expected_pictures, label_of, named_columns, view_evaluations
from runner.report.frame import Chart
from runner.report.parallel import parallel_chart
from runner.report.pictures import MAX_JOBS, MAX_ROWS, MAX_STEPS, PictureBox, comparison_grid, progress_grid
from runner.report.ranking import Ranking
from runner.report.record import JobRecord, finite
from runner.report.scatter import setting_charts
from runner.report.views import view_job
from runner.report.words import loss_name, plain
from runner.schema.metrics import HELD_OUT, TRAIN_LOSS
from runner.system.amounts import count, number

# With more jobs than this, each job's own grid shows only a few pictures.
MANY_JOBS = 6
FEW_STEPS, FEW_ROWS = 3, 4

# With more columns of settings than this, the ranking is too wide to read.
MAX_COLUMNS = 8


def view_several(
    ranking: Ranking,
    root: Path,
    *,
    figures: Mapping[str, Figures],
    evaluations: Sequence[JobRecord],
) -> dict[str, Any]:
    """Everything the page shows about several jobs.

    Args:
        ranking: the jobs, best first.
        root: the folder that the page is in.
        figures: the measurements of each job's result, by its id.
        evaluations: the jobs that measured, newest first.
    """
    jobs = [entry.job for entry in ranking.entries]
    steps, rows = (FEW_STEPS, FEW_ROWS) if len(jobs) > MANY_JOBS else (MAX_STEPS, MAX_ROWS)
    per_job = sum(min(len(job.shots), rows) * min(len(job.steps_sampled), steps) for job in jobs)
    in_rows = min(max(len(job.shots) for job in jobs), MAX_ROWS) * min(len(jobs), MAX_JOBS)
    box = PictureBox(expected=per_job + in_rows + expected_pictures(evaluations), root=root)
    overridden, shared = differing_overrides(jobs)
    varied = told_apart(differing_settings(compared(jobs))[0], first=overridden)
    keys = overridden or [one.key for one in varied]
    columns = keys if len(keys) <= MAX_COLUMNS else []
    chosen = most_varied(varied)
    parallel = parallel_chart(ranking, chosen)
    return {
        "entries": ranking.entries,
        "views": {
            job.id: view_job(
                job, progress_grid(job, box, max_steps=steps, max_rows=rows), root=root, figures=figures[job.id]
            )
            for job in jobs
        },
        # Jobs that only drew have nothing to be ranked by.
        "trained": any(job.trains or job.objective is not None for job in jobs),
        "objective_label": ranking.aim.label(jobs[0]),
        "sentence": experiment_sentence(ranking),
        "facts": facts_of_experiment(ranking),
        "ranking_note": _ranking_note(ranking),
        "grid": comparison_grid(ranking.entries, box),
        "charts": comparison_charts(ranking),
        "setting_charts": setting_charts(ranking, chosen),
        "parallel": [parallel] if parallel else [],
        "settings_note": _settings_note(ranking, len(varied), len(chosen)),
        "cost": cost_of(jobs),
        "columns": [(key, all(finite(job.setting(key)) is not None for job in jobs)) for key in columns],
        "cells": {job.id: [cell_for(job, key) for key in columns] for job in jobs},
        "overrides_in_one_column": len(overridden) > MAX_COLUMNS,
        "shared": shared,
        "measured": [(name, label_of(name)) for name in named_columns(figures.values())],
        "figures": figures,
        "evaluations": view_evaluations(evaluations, jobs, box),
        "sparks": {job.id: sparkline(job.curve(ranking.aim.name) or job.curve(HELD_OUT)) for job in jobs},
    }


def experiment_sentence(ranking: Ranking) -> str:
    """One sentence about several jobs."""
    states = [entry.job.state for entry in ranking.entries]
    parts = [f"{states.count('completed')} of {count(len(states), 'job')} completed"]
    parts += [f"{states.count(state)} {state}" for state in sorted(set(states) - {"completed"})]
    text = ", ".join(parts)
    if best := ranking.best:
        text += f"; best is {best.job.name} with {ranking.aim.label(best.job)} {number(best.value)}"
    elif first := ranking.first:
        text += f"; {len(first)} jobs share the best {ranking.aim.label(first[0].job)}, {number(first[0].value)}"
    return f"{text}."


def facts_of_experiment(ranking: Ranking) -> list[tuple[str, str]]:
    """The few numbers under the title of a report on several jobs."""
    states = [entry.job.state for entry in ranking.entries]
    facts = [("completed", f"{states.count('completed')} of {len(states)}")]
    ends = ranking.placed[:: max(1, len(ranking.placed) - 1)] if ranking.first else []
    facts += [(word, number(entry.value)) for word, entry in zip(("best", "worst"), ends, strict=False)]
    counted = {"stopped early": states.count("pruned"), "failed": states.count("failed")}
    return facts + [(word, str(amount)) for word, amount in counted.items() if amount]


def comparison_charts(ranking: Ranking) -> list[Chart]:
    """The objective, the held-out loss and the smoothed training loss of all jobs; the best jobs have colours."""
    charts = []
    held_out = loss_name(ranking.entries[0].job).capitalize()
    metrics = {held_out: HELD_OUT, "Training loss, smoothed": TRAIN_LOSS}
    if ranking.aim.name not in metrics.values():
        metrics = {ranking.aim.name: ranking.aim.name, **metrics}
    for title, metric in metrics.items():
        measured = metric != TRAIN_LOSS
        series = [
            Series(
                label=entry.job.name, points=entry.job.curve(metric) if measured else smoothed(entry.job.curve(metric)),
                dots=measured and entry.style != "other", style=entry.style, in_legend=entry.style != "other",
            )
            for entry in ranking.entries
        ]  # fmt: skip
        more_is_better = metric == ranking.aim.name and ranking.aim.maximize
        charts.append(draw(title, series, more_is_better=more_is_better, first_on_top=True))
    return [chart for chart in charts if chart is not None]


def cell_for(job: JobRecord, key: str) -> str:
    """The ranking's text for one setting: a number as resolved, anything else as it was set."""
    resolved = job.setting(key)
    if isinstance(resolved, int) and not isinstance(resolved, bool):
        return f"{resolved:,}"  # in full: seeds may differ only in their last digits
    if finite(resolved) is not None:
        return number(finite(resolved))
    if isinstance(resolved, dict):  # a group, shown by its name; if it was overridden, the override is shown
        resolved = resolved.get("name")
    return job.overrides.get(key) or plain(resolved)


def _ranking_note(ranking: Ranking) -> str:
    unlike = ranking.unlike
    said = f"{', '.join(unlike)} {'differ' if len(unlike) > 1 else 'differs'}"
    return f"Not all were measured alike: {said}. Compare only jobs that were." if unlike else ""


def _settings_note(ranking: Ranking, differing: int, shown: int) -> str:
    better = "more" if ranking.aim.maximize else "less"
    label = ranking.aim.label(ranking.entries[0].job)
    text = f"Each point is a job, in its colour; its height is the {label}, and {better} is better."
    if any(entry.step is not None for entry in ranking.entries):
        text += " Hollow points are jobs that are not at their end, at their last value."
    if shown < differing:
        text += f" {differing} settings differ; these are the {shown} with the most different values."
    return text
