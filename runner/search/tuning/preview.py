"""What a dry run of a search by SageMaker shows: the space, its cost, the request, and what would be rejected."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from runner.launchers.sagemaker.draft import Draft
from runner.plan import Plan
from runner.schema import SageMakerLauncher
from runner.search.tuning.search import TuningSearch


def all_trials(plan: Plan, trials: int) -> Plan:
    """The plan of one trial, extended to all trials, each in its own training job."""
    return dataclasses.replace(plan, packs=plan.packs * trials)


def search_lines(search: TuningSearch) -> list[str]:
    """The search in words."""
    settings, objective = search.settings, search.base.experiment.objective
    at_once = min(settings.parallel, settings.n_trials)
    return [
        f"a search of {settings.n_trials} trials by SageMaker ({settings.strategy}), {at_once} at once",
        f"  {objective.direction}s {objective.name}",
        *(f"  {each.words()}" for each in search.ranges),
    ]


def preview_lines(search: TuningSearch, plan: Plan, settings: SageMakerLauncher) -> list[str]:
    """The lines of the whole preview; `plan` is that of one trial."""
    draft = Draft(settings)
    lines = [*search_lines(search), *draft.cost(all_trials(plan, search.settings.n_trials))]
    return [*lines, json.dumps(_request(search, draft), indent=2), *draft.preflight()]


def preview_data(search: TuningSearch, plan: Plan, settings: SageMakerLauncher) -> dict[str, Any]:
    """The same as plain data."""
    draft = Draft(settings)
    cost = draft.estimate(all_trials(plan, search.settings.n_trials))
    return {
        "space": [dataclasses.asdict(each) for each in search.ranges],
        "cost": None if cost is None else dataclasses.asdict(cost),
        "request": _request(search, draft),
        "preflight": draft.preflight(),
    }


def _request(search: TuningSearch, draft: Draft) -> dict[str, Any]:
    name = search.name(1)
    training = draft.request([search.base], name=name, variables={})
    return search.request(training, name=name, trials=search.settings.n_trials)
