"""The settings that differ are found from the jobs' resolved values, and every chart places them correctly."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from runner.job_folders import find_jobs
from runner.report import differing_keys, record, write_report
from runner.report.axes import Axis, Categories, fitting, setting_axis, shortened, width_px
from runner.report.differences import (
    NO_EFFECT,
    differing_overrides,
    differing_settings,
    labelled,
    most_varied,
    told_apart,
)
from runner.report.record import read_job
from runner.report.scatter import DOT_PX, side_by_side
from runner.schema.experiment import NOT_IDENTITY

from .job_folders import change_config, change_manifest, write_job, write_search
from .page_reader import Page


def grid(root: Path, *, ranks: tuple[int, ...] = (4, 8, 16), rates: tuple[float, ...] = (1e-4, 3e-3)) -> Path:
    for rank in ranks:
        for rate in rates:
            write_job(root / "x" / f"r{rank}-{rate}", rank=rank, lr=rate, floor=0.1 + rank / 1000 + rate, sampled=[])
    return root / "x"


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.unclosed == []
    return page


def settings_of(page: Page) -> str:
    start = page.html.index("What the settings did")
    return page.html[start : page.html.index("</section>", start)]


def titles(page: Page) -> list[str]:
    return re.findall("<figcaption>(.*?)</figcaption>", settings_of(page))


def marks(page: Page, kind: str = "circle") -> list[dict[str, str]]:
    return [
        dict(re.findall(r'([\w-]+)="(.*?)"', attributes))
        for attributes in re.findall(rf"<{kind} ([^>]*\bmark\b[^>]*)>", settings_of(page))
    ]


def test_jobs_differ_in_what_they_resolved_to_and_not_in_where_they_ran(tmp_path: Path) -> None:
    folder = grid(tmp_path, ranks=(4, 8), rates=(1e-4,))
    one, other = sorted(folder.iterdir())
    change_config(one, launcher__name="slurm", logger__mode="offline", checkpoint__every=7, name="y", accumulation=2)
    change_config(other, loss__snr_gamma=None)
    for job in (one, other):
        change_manifest(job, overrides=["recipe=a"])
    differing, shared = differing_settings([read_job(job) for job in (one, other)])
    assert [found.key for found in differing] == ["lora.rank", "lora.alpha", "loss.snr_gamma"]
    assert differing[2].values == {one.name: 5.0, other.name: None}
    assert shared["optimizer.lr"] == 1e-4
    assert set(shared).isdisjoint({"name", "launcher.name", "logger.mode", "checkpoint.every"})
    assert set(NOT_IDENTITY) < set(NO_EFFECT)


def test_a_job_whose_settings_cannot_be_read_makes_nothing_differ(tmp_path: Path) -> None:
    folder = grid(tmp_path, ranks=(4, 8), rates=(1e-4,))
    (folder / "broken").mkdir()
    (folder / "broken" / "config.yaml").write_text("a: [")
    differing, _ = differing_settings([read_job(job) for job in find_jobs(folder)])
    assert [found.key for found in differing] == ["lora.rank", "lora.alpha"]


def test_jobs_do_not_differ_in_what_the_task_of_one_does_not_know(tmp_path: Path) -> None:
    training = read_job(write_job(tmp_path / "x" / "trained", rank=4, sampled=[]))
    measuring = replace(training, manifest={"id": "measured", "task": "evaluate"}, config={"adapter": "a", "seed": 0})
    differing, shared = differing_settings([training, measuring])
    assert differing == []
    assert (shared["lora.rank"], shared["adapter"], shared["seed"]) == (4, "a", 0)


def test_what_one_job_was_given_and_the_other_was_not_is_not_the_same_in_both(tmp_path: Path) -> None:
    """For example, one command had overrides and one had none; a damaged manifest says nothing about either."""
    folder = grid(tmp_path, ranks=(4, 8, 16), rates=(1e-4,))
    for job, given in zip(sorted(folder.iterdir()), (["seed=1", "lora.rank=16"], [], []), strict=True):
        change_manifest(job, overrides=given)
    plain, given, damaged = (read_job(folder / f"r{rank}-0.0001") for rank in (4, 16, 8))
    (damaged.folder / "manifest.json").write_text("{")
    assert differing_overrides([given, plain]) == (["seed", "lora.rank"], [])
    assert differing_overrides([given, read_job(damaged.folder)]) == ([], [("seed", "1"), ("lora.rank", "16")])


def test_jobs_without_telling_overrides_are_named_by_their_settings(tmp_path: Path) -> None:
    folder = grid(tmp_path, ranks=(4,), rates=(1e-4, 3e-3))
    for job in folder.iterdir():
        change_manifest(job, name="x", overrides=["recipe=demo"])
    assert {job.name for job in labelled([read_job(job) for job in find_jobs(folder)])} == {
        "optimizer.lr=1e-4", "optimizer.lr=0.003",
    }  # fmt: skip


def test_a_long_value_hides_no_short_one_that_stands_behind_it(tmp_path: Path) -> None:
    folder = grid(tmp_path, ranks=(4,), rates=(1e-4, 3e-3, 1e-2))
    prompts = "[a red house on a hill in the evening light,a small blue house by the sea]"
    for job, prompt, rate in zip(find_jobs(folder), (prompts, prompts, "a"), ("1e-4", "3e-3", "1e-2"), strict=True):
        change_manifest(job, name="x", overrides=[f"validation.prompts={prompt}", f"optimizer.lr={rate}"])
    assert {job.name for job in labelled([read_job(job) for job in find_jobs(folder)])} == {
        f"optimizer.lr=1e-4 validation.prompts={prompts}", f"optimizer.lr=0.003 validation.prompts={prompts}",
        "optimizer.lr=0.01 validation.prompts=a",
    }  # fmt: skip


def test_a_number_that_was_drawn_is_rounded_in_titles_that_stay_apart(tmp_path: Path) -> None:
    folder = grid(tmp_path, ranks=(4,), rates=(1e-4, 3e-3))
    one, other = find_jobs(folder)

    def names(*rates: str) -> set[str]:
        for job, rate in zip((one, other), rates, strict=True):
            change_manifest(job, name="x", overrides=[f"optimizer.lr={rate}"])
        return {job.name for job in labelled([read_job(job) for job in (one, other)])}

    assert names("0.0016051911333587634", "1e-4") == {"optimizer.lr=0.001605", "optimizer.lr=1e-4"}
    assert names("20251128093000.5", "20251128093000") == {"optimizer.lr=2.025e13", "optimizer.lr=20251128093000"}
    assert names("0.0001", "3.0E-3") == {"optimizer.lr=1e-4", "optimizer.lr=0.003"}, "as in the table"
    alike = ("0.0016051911333587634", "0.0016051911333587699")
    assert names(*alike) == {f"optimizer.lr={rate}" for rate in alike}


def test_settings_that_change_only_together_share_a_chart(tmp_path: Path) -> None:
    folder = grid(tmp_path)
    differing, _ = differing_settings([read_job(job) for job in find_jobs(folder)])
    assert [found.key for found in differing] == ["lora.rank", "lora.alpha", "optimizer.lr"]
    apart = told_apart(differing, first=["optimizer.lr"])
    assert [(found.key, found.companions) for found in apart] == [("optimizer.lr", ()), ("lora.rank", ("lora.alpha",))]
    assert len(told_apart(differing, first=["lora.rank", "lora.alpha"])) == 3
    page = page_of(folder)
    assert titles(page) == ["From the settings to the held-out loss", "lora.rank", "optimizer.lr"]
    assert "Changes together with it: lora.alpha." in page.text


def test_the_most_varied_settings_are_chosen_and_the_choice_is_said(tmp_path: Path) -> None:
    page = page_of(write_search(tmp_path, 12))
    found = re.search(r"(\d+) settings differ; these are the 6 with the most different values", page.text)
    assert found
    assert int(found[1]) == 7
    assert len(titles(page)) == 1 + 6
    assert {"optimizer.lr", "dataset.caption_dropout", "lora.rank"} < set(titles(page))
    assert "dataset.path" not in titles(page)
    differing, _ = differing_settings([read_job(job) for job in find_jobs(tmp_path / "search")])
    counts = [one.distinct for one in most_varied(differing, 2)]
    assert counts == [12, 12]


def test_what_the_charts_show_is_known_to_others_by_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[object]:
        raise AssertionError("settings are asked for, and all that was measured is read")

    monkeypatch.setattr(record, "_read_metrics", refuse)
    assert differing_keys(grid(tmp_path)) == ["lora.rank", "optimizer.lr"]
    assert differing_keys(write_job(tmp_path / "alone" / "job", sampled=[]).parent) == []


def test_a_point_is_where_its_setting_and_its_result_are(tmp_path: Path) -> None:
    folder = grid(tmp_path)
    objectives = {job.name: json.loads((job / "manifest.json").read_text())["objective"] for job in folder.iterdir()}
    points = marks(page_of(folder))
    by_rank, by_rate = points[:6], points[6:]
    assert len(by_rank) == len(by_rate) == 6
    for chart in (by_rank, by_rate):
        heights = {point["data-job"]: float(point["cy"]) for point in chart}
        assert sorted(heights, key=heights.__getitem__, reverse=True) == sorted(objectives, key=objectives.__getitem__)
    at_rank = {point["data-job"].split("-")[0]: float(point["cx"]) for point in by_rank}
    assert at_rank["r16"] - at_rank["r8"] == pytest.approx(at_rank["r8"] - at_rank["r4"], abs=0.2)
    best = min(objectives, key=objectives.__getitem__)
    assert {point["class"] for point in points if point["data-job"] == best} == {"mark dot c0"}


def test_jobs_with_the_same_value_and_result_do_not_hide_each_other(tmp_path: Path) -> None:
    folder = grid(tmp_path)
    for job in folder.iterdir():
        change_manifest(job, objective=0.2)
    places = [(point["cx"], point["cy"]) for point in marks(page_of(folder))]
    assert len(places) == 12
    assert len(set(places[:6])) == len(set(places[6:])) == 6


def test_a_line_goes_through_the_settings_to_the_result_and_the_best_lies_on_top(tmp_path: Path) -> None:
    folder = grid(tmp_path)
    page = page_of(folder)
    lines = marks(page, "polyline")
    lying, standing = lines[:6], lines[6:]
    assert len(standing) == 6
    for chart in (lying, standing):
        assert chart[-1]["class"] == "mark line best"
        assert chart[-1]["data-job"] == "r4-0.0001"
        assert [one["style"] for one in chart] == [f"--rank:{share}%" for share in (0, 20, 40, 60, 80, 100)]
        assert all(len(one["points"].split()) == 3 for one in chart)
    ends = [float(one["points"].split()[-1].split(",")[1]) for one in lying]
    assert ends == sorted(ends, reverse=True), "the best is at the upper end"
    assert html.unescape(lying[-1]["data-told"]).startswith("rank 4, lr 0.0001 · lora.rank 4, optimizer.lr 1e-4 · 0.10")


def test_one_setting_needs_no_parallel_axes_and_one_job_no_charts(tmp_path: Path) -> None:
    assert titles(page_of(grid(tmp_path, rates=(1e-4,)))) == ["lora.rank"]
    lonely = grid(tmp_path / "lonely")
    for job in sorted(lonely.iterdir())[1:]:
        change_manifest(job, state="failed", objective=None)
    assert "What the settings did" not in page_of(lonely).text


def test_axes_are_in_factors_where_the_values_are() -> None:
    span = {"start_px": 0.0, "end_px": 100.0}
    for values, log in (([4, 8, 16], True), ([1e-5, 2e-4], True), ([1, 2, 10], False), ([0.0, 100.0], False)):
        axis = setting_axis(values, **span)
        assert isinstance(axis, Axis)
        assert axis.log is log, values
    assert setting_axis([4, 8, 16, 32], **span).labels(across=False, room_px=0) == [
        (0.0, "4"), (pytest.approx(100 / 3), "8"), (pytest.approx(200 / 3), "16"), (100.0, "32"),
    ]  # fmt: skip
    drawn = setting_axis([1.23456e-5, 4.56789e-4, 2.34567e-3], start_px=0, end_px=400)
    assert [text for _, text in drawn.labels(across=True)] == ["2e-5", "5e-5", "1e-4", "2e-4", "5e-4", "1e-3", "2e-3"]
    assert [text for _, text in setting_axis([3.3, 3.3], **span).labels(across=True)] == ["3.3"]


def test_what_is_no_number_gets_a_place_of_its_own() -> None:
    axis = setting_axis(["b", None, 5.0, True, 1.0, "a", "b"], start_px=0, end_px=60)
    assert isinstance(axis, Categories)
    assert axis.texts == ("none", "1", "5", "a", "b", "yes")
    assert axis.place(5.0) == 25
    assert isinstance(setting_axis([1, 2, 42], start_px=0, end_px=60, nominal=True), Categories)


def test_labels_never_touch() -> None:
    crowd = [(float(place), f"label {place}") for place in range(0, 300, 9)]
    kept = fitting(crowd, across=True)
    assert kept[0] == crowd[0]
    assert kept[-1] == crowd[-1]
    assert len(kept) > 3
    for (left, one), (right, other) in pairwise(kept):
        assert right - left >= (width_px(one) + width_px(other)) / 2
    assert fitting([(5.0, "wide label"), (6.0, "wide label")], across=True) == [(5.0, "wide label")]
    assert shortened(["data/houses/v1", "data/houses/v2"], 40) == ["…v1", "…v2"]
    assert shortened(["short", "also"], 400) == ["short", "also"]
    (text,) = shortened(["an-unbroken-and-very-long-name"], 74)
    assert (len(text), text[:4], text[-3:]) == (10, "an-u", "ame")


def test_points_that_would_cover_each_other_stand_side_by_side() -> None:
    moved = side_by_side([(50.0, 10.0)] * 7 + [(50.0, 100.0)])
    assert moved[0] == (50.0, 10.0)
    assert moved[-1] == (50.0, 100.0)
    assert all(y == 10.0 for _, y in moved[:-1])
    places = sorted(x for x, _ in moved[:-1])
    assert all(after - before > DOT_PX for before, after in pairwise(places))


def test_points_of_very_many_jobs_stay_in_the_chart_and_with_their_value() -> None:
    places = [(x, 10.0) for x in (80.0, 300.0) for _ in range(40)]
    moved = side_by_side(places, ends_px=(50.0, 400.0))
    assert all(50 < x < 190 for x, _ in moved[:40])
    assert all(190 < x < 400 for x, _ in moved[40:])
    assert len(set(moved)) > 20


def test_while_all_jobs_run_none_is_called_the_best(tmp_path: Path) -> None:
    folder = grid(tmp_path)
    said = settings_of(page_of(folder))
    assert "best job: 4" in said and "; best: " in said
    for job in find_jobs(folder):
        change_manifest(job, state="running", objective=None)
    said = settings_of(page_of(folder))
    assert "best job" not in said and "; best: " not in said
    for job in find_jobs(folder):
        first, *_ = (job / "metrics.jsonl").read_text().splitlines()
        (job / "metrics.jsonl").write_text(first)
    assert "What the settings did" not in page_of(folder).text, "at step 0 they have done nothing"
