"""The saved workspace of a sweep: what wandb-workspaces really sends, once per experiment, and never fatal."""

from __future__ import annotations

import importlib.util
import json
import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from runner.paths import ExperimentPaths
from runner.schema import ObjectiveSettings
from runner.track import save_workspace

from .wandb_jobs import Settings
from .wandb_server import WandbServer

KEYS = ["lora.rank", "optimizer.lr"]


def experiment(root: Path, url: str | None) -> Path:
    """A sweep with one job that was logged online."""
    for name, wandb_url in (("a", None), ("b", url)):
        (root / "houses" / name).mkdir(parents=True)
        (root / "houses" / name / "manifest.json").write_text(json.dumps({"id": name, "wandb_url": wandb_url}))
    return root / "houses"


def save(folder: Path, *, keys: list[str] | None = None, **more: Any) -> str | None:
    settings = Settings(**{key: more.pop(key) for key in ("name", "timeout_s") if key in more})
    more.setdefault("objective", ObjectiveSettings())
    return save_workspace(settings, experiment="houses", keys=KEYS if keys is None else keys, folder=folder, **more)


@pytest.fixture
def folder(tmp_path: Path, server: WandbServer) -> Path:
    return experiment(tmp_path, f"{server.url}/team%20a/lora/runs/b")


def only_view(server: WandbServer) -> dict[str, Any]:
    (view,) = server.views.values()
    return {**view, "spec": json.loads(view["spec"])["section"]}


def panels_of(server: WandbServer) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    sections = only_view(server)["spec"]["panelBankConfig"]["sections"]
    return {one["name"]: [(panel["viewType"], panel["config"]) for panel in one["panels"]] for one in sections}


def test_a_sweep_has_one_workspace_with_its_runs_and_its_settings(folder: Path, server: WandbServer) -> None:
    url = save(folder)
    view = only_view(server)
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team a", "lora", "houses")
    assert url == f"{server.url}/team a/lora?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"
    (runs,) = view["spec"]["runSets"]
    assert runs["filters"]["filters"] == [
        {"key": {"section": "run", "name": "group"}, "op": "=", "value": "houses", "disabled": False}
    ]
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "validation/loss"}, "ascending": True}]
    assert view["spec"]["settings"]["maxRuns"] == 100
    panels = panels_of(server)
    assert list(panels) == ["Curves", "Samples", "Settings", "Runs"]
    assert [(config["xAxis"], config["metrics"]) for _, config in panels["Curves"]] == [
        ("global_step", ["validation/loss"]), ("global_step", ["train/loss"]),
    ]  # fmt: skip
    (media, shown), (table, asked) = panels["Samples"]
    assert (media, shown["mediaKeys"], table) == ("Media Browser", ["samples"], "Weave")
    assert '"samples_table"' in json.dumps(asked)
    ((kind, drawn),) = panels["Settings"]
    assert kind == "Parallel Coordinates Plot"
    assert drawn["columns"] == [
        {"accessor": "config:lora.value.rank"},
        {"accessor": "config:optimizer.value.lr", "log": True},
        {"accessor": "summary:validation/loss", "inverted": True},
    ]
    assert [kind for kind, _ in panels["Runs"]] == ["Scalar Chart", "Run Comparer"]
    assert panels["Runs"][0][1]["groupAgg"] == "min"
    assert set(server.unknown) <= {"Probe"}


def test_the_same_sweep_again_asks_the_server_nothing(folder: Path, server: WandbServer) -> None:
    first = save(folder)
    server.stop()
    assert save(folder) == first


def test_a_sweep_that_grew_has_the_same_workspace_and_keeps_what_people_changed(
    folder: Path, server: WandbServer
) -> None:
    first = save(folder)
    (name,) = server.views
    spec = json.loads(server.views[name]["spec"])
    bank = spec["section"]["panelBankConfig"]
    bank["sections"][0]["name"] = "My curves"
    bank["sections"] = [section for section in bank["sections"] if section["name"] != "Runs"]
    server.views[name]["spec"] = json.dumps(spec)
    assert save(folder, keys=[*KEYS, "seed"]) == first
    panels = panels_of(server)
    assert list(panels) == ["My curves", "Samples", "Settings"]
    assert [column["accessor"] for column in panels["Settings"][0][1]["columns"]][2:] == [
        "config:seed.value", "summary:validation/loss",
    ]  # fmt: skip
    assert json.loads(ExperimentPaths(folder).workspace.read_text())["keys"] == [*KEYS, "seed"]
    server.deny = True
    assert save(folder, keys=["seed"]) == first, "one that is behind is still one"


def test_a_workspace_that_was_deleted_or_lies_elsewhere_is_made_anew(folder: Path, server: WandbServer) -> None:
    first = save(folder)
    server.views.clear()
    second = save(folder, keys=["seed"])
    assert second != first
    (folder / "b" / "manifest.json").write_text(json.dumps({"wandb_url": f"{server.url}/me/other/runs/b"}))
    third = save(folder, keys=["seed"])
    assert third
    assert third.startswith(f"{server.url}/me/other?nw=")
    assert len(server.views) == 2
    (folder / "b" / "manifest.json").write_text(json.dumps({"wandb_url": f"{server.url}/me/third/runs/b"}))
    assert (save(folder, keys=["seed"]) or "").startswith(f"{server.url}/me/third?nw=")


def test_jobs_that_are_compared_by_something_else_have_a_workspace_for_that(folder: Path, server: WandbServer) -> None:
    first = save(folder)
    second = save(folder, objective=ObjectiveSettings(name="train/loss"))
    assert second != first
    del server.views[next(iter(server.views))]  # the other one is checked
    assert panels_of(server)["Settings"][0][1]["columns"][-1] == {"accessor": "summary:train/loss", "inverted": True}
    assert save(folder, objective=ObjectiveSettings(name="train/loss")) == second


def test_more_can_be_better(folder: Path, server: WandbServer) -> None:
    save(folder, objective=ObjectiveSettings(name="evaluation/clip_text_score", direction="maximize"))
    (runs,) = only_view(server)["spec"]["runSets"]
    assert runs["sort"]["keys"][0] == {
        "key": {"section": "summary", "name": "evaluation/clip_text_score"},
        "ascending": False,
    }
    panels = panels_of(server)
    assert [config["metrics"] for _, config in panels["Curves"]] == [
        ["evaluation/clip_text_score"],
        ["validation/loss"],
        ["train/loss"],
    ]
    assert panels["Settings"][0][1]["columns"][-1] == {"accessor": "summary:evaluation/clip_text_score"}
    assert panels["Runs"][0][1]["groupAgg"] == "max"


def test_nothing_is_saved_for_runs_that_are_not_online(tmp_path: Path, server: WandbServer) -> None:
    for number, url in enumerate((None, 7, "nonsense", "https://example.org/a/b/c/d")):
        folder = experiment(tmp_path / str(number), url)  # type: ignore[arg-type]
        assert save(folder) is None
        assert not ExperimentPaths(folder).workspace.exists()
    (tmp_path / "0" / "houses" / "a" / "manifest.json").write_text("{")
    assert save(tmp_path / "0" / "houses") is None
    assert save(experiment(tmp_path / "off", f"{server.url}/me/lora/runs/b"), name="none") is None
    assert server.views == {}


def test_without_the_package_one_line_says_how_to_get_it(
    folder: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="runner.track")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb_workspaces" else found(name))
    assert save(folder) is None
    assert [record.getMessage() for record in caplog.records] == [
        "W&B: no workspace was saved for this sweep; pip install 'lora-runner[workspaces]' installs what it needs"
    ]


def test_a_server_that_says_no_or_nothing_is_a_warning(
    folder: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.deny = True
    assert save(folder) is None
    server.stop()
    assert save(folder) is None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert save(folder, timeout_s=2.0) is None
        assert time.monotonic() - start < 3.0
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    assert all("the workspace of houses was not saved" in text for text in warnings)
    assert not ExperimentPaths(folder).workspace.exists()
