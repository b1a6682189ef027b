"""A saved W&B workspace for a sweep: the same views of its runs for everyone who opens the link.

Takes the experiment's folder and the settings in which its jobs differ. Makes one workspace per experiment, a new one
if the objective changes, and stores its address beside the report; later edits by users are kept. Never raises. Needs
the package wandb-workspaces.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from runner.paths import ExperimentPaths, JobPaths, write_text
from runner.schema import LoggerSettings, ObjectiveSettings
from runner.schema.metrics import HELD_OUT, TRAIN_LOSS
from runner.track.mirror import SAMPLES_TABLE, STEP_METRIC
from runner.track.reach import PROBE_TIMEOUT_S, server_url, unreachable_because, within

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

log = logging.getLogger(__name__)

SETTINGS_SECTION = "Settings"
MAX_RUNS = 100
"""How many runs a panel draws; W&B's own default is 10."""


def save_workspace(
    settings: LoggerSettings,
    *,
    experiment: str,
    keys: Sequence[str],
    folder: Path,
    objective: ObjectiveSettings,
) -> str | None:
    """Make or update the workspace of an experiment, in at most `settings.timeout_s`.

    Args:
        experiment: the experiment's name, which is also the group of its runs.
        keys: the dotted keys of the settings in which the jobs differ, as `runner.report.differing_keys` finds them.
        objective: what the jobs are compared by.

    Returns:
        The page of the workspace, even if it could not be updated; None if there is none.
    """
    place = None if settings.name == "none" else _place_of(folder)
    if place is None:
        return None
    known = _read(folder)
    wanted = {
        "entity": place[0], "project": place[1], "keys": list(keys), "objective": objective.model_dump(mode="json"),
    }  # fmt: skip
    if known.items() >= wanted.items():
        return str(known["url"])
    if importlib.util.find_spec("wandb_workspaces") is None:
        log.info(
            "W&B: no workspace was saved for this sweep; pip install 'lora-runner[workspaces]' installs what it needs"
        )
        return None
    try:
        url = within(settings.timeout_s, lambda: _save(experiment, wanted, known, objective, settings))
        write_text(ExperimentPaths(folder).workspace, json.dumps({**wanted, "url": url}, indent=2) + "\n")
    except Exception as error:  # noqa: BLE001 - never fatal, whatever wandb raises
        log.warning("W&B: the workspace of %s was not saved (%s: %s)", experiment, type(error).__name__, error)
        return known.get("url")
    log.info("W&B workspace: %s", url)
    return url


def _place_of(folder: Path) -> tuple[str, str] | None:
    """The W&B user or team and the project of the experiment's runs, from the address of an online run."""
    for manifest in sorted(folder.glob(f"*/{JobPaths(folder).manifest.name}")):
        try:
            parts = urlsplit(json.loads(manifest.read_text(encoding="utf-8"))["wandb_url"]).path.split("/")
            entity, project, runs = parts[-4:-1]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if runs == "runs":
            return unquote(entity), unquote(project)
    return None


def _read(folder: Path) -> dict[str, Any]:
    """What is known of a previously saved workspace; empty if there is none."""
    try:
        known = json.loads(ExperimentPaths(folder).workspace.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("url"), str) else {}


def _save(
    experiment: str,
    wanted: dict[str, Any],
    known: dict[str, Any],
    objective: ObjectiveSettings,
    settings: LoggerSettings,
) -> str:
    url = server_url()  # before any other use of wandb: it also silences wandb's output
    reason = unreachable_because(url, min(PROBE_TIMEOUT_S, settings.timeout_s / 2))
    if reason is not None:
        raise ConnectionError(reason)
    from wandb_workspaces.workspaces import Workspace

    # Everything in a workspace depends on the objective.
    same = all(known.get(name) == wanted[name] for name in ("entity", "project", "objective"))
    workspace = _updated(known["url"], wanted["keys"], objective) if same else None
    if workspace is None:
        workspace = Workspace(
            entity=wanted["entity"], project=wanted["project"], name=experiment,
            sections=_sections(wanted["keys"], objective), **_around(experiment, objective),
        )  # fmt: skip
    return str(workspace.save().url)


def _updated(url: str, keys: Sequence[str], objective: ObjectiveSettings) -> Workspace | None:
    """The workspace at this address with a new panel of settings; None if it is gone."""
    from wandb_workspaces.workspaces import Workspace

    try:
        workspace = Workspace.from_url(url)
    except ValueError:  # somebody deleted it
        return None
    sections = [section for section in workspace.sections if section.name != SETTINGS_SECTION]
    workspace.sections = [*sections, _settings_section(keys, objective)] if keys else sections
    return workspace


def _around(experiment: str, objective: ObjectiveSettings) -> dict[str, Any]:
    """Which runs are shown, in which order, and how many."""
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import RunsetSettings, WorkspaceSettings

    return {
        "settings": WorkspaceSettings(x_axis=STEP_METRIC, max_runs=MAX_RUNS),
        "runset_settings": RunsetSettings(
            filters=[expr.Metric("Group") == experiment],
            order=[expr.Ordering(expr.Summary(objective.name), ascending=objective.direction == "minimize")],
            pinned_columns=["run:displayName", f"summary:{objective.name}", "summary:state"],
        ),
    }


def _sections(keys: Sequence[str], objective: ObjectiveSettings) -> list[Section]:
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces.workspaces import Section, SectionLayoutSettings

    measured = list(dict.fromkeys((objective.name, HELD_OUT)))
    curves = [panels.LinePlot(title=name, x=STEP_METRIC, y=[name]) for name in measured]
    curves.append(panels.LinePlot(
        title=TRAIN_LOSS, x=STEP_METRIC, y=[TRAIN_LOSS], smoothing_type="exponential", smoothing_factor=0.6,
        smoothing_show_original=True,
    ))  # fmt: skip
    result = panels.ScalarChart(
        title=f"best {objective.name}", metric=panels.SummaryMetric(objective.name),
        groupby_aggfunc="max" if objective.direction == "maximize" else "min",
    )  # fmt: skip
    wide = SectionLayoutSettings(columns=1, rows=1)
    return [
        Section(name="Curves", panels=curves, is_open=True, layout_settings=SectionLayoutSettings(columns=2, rows=1)),
        Section(name="Samples", is_open=True, layout_settings=wide, panels=[
            panels.MediaBrowser(title="samples", media_keys=["samples"], grid_x_axis="step", grid_y_axis="run"),
            panels.WeavePanelSummaryTable(table_name=SAMPLES_TABLE),
        ]),
        *([_settings_section(keys, objective)] if keys else []),
        Section(name="Runs", is_open=True, panels=[result, panels.RunComparer(diff_only="split")],
                layout_settings=SectionLayoutSettings(columns=2, rows=1)),
    ]  # fmt: skip


def _settings_section(keys: Sequence[str], objective: ObjectiveSettings) -> Section:
    """Parallel coordinates from the settings to the objective, with the best at the top."""
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces.workspaces import Section, SectionLayoutSettings

    columns = [
        # Learning rates are varied by factors.
        panels.ParallelCoordinatesPlotColumn(metric=panels.Config(key), log=True if key.endswith("lr") else None)
        for key in keys
    ]
    columns.append(
        panels.ParallelCoordinatesPlotColumn(
            metric=panels.SummaryMetric(objective.name), inverted=None if objective.direction == "maximize" else True
        )
    )
    plot = panels.ParallelCoordinatesPlot(title=f"From the settings to {objective.name}", columns=columns)
    return Section(
        name=SETTINGS_SECTION, panels=[plot], is_open=True, layout_settings=SectionLayoutSettings(columns=1, rows=1)
    )
