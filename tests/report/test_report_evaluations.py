"""The figures of task=evaluate are shown beside the measured trainings, and in their own table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.report import write_report

from .job_folders import change_config, change_manifest, write_evaluation, write_job
from .page_reader import Page, find_browser
from .test_report_in_browser import MEASURE, asked
from .test_sweep_exports import exports
from .test_sweep_ranking import table_of

FIGURES = {"fid_score": (118.26, 101.5, 140.0), "clip_text_score": (0.2714, 0.2651, 0.278)}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two trainings; the first was measured twice, and once at half its weight."""
    folder = tmp_path / "x"
    for name, rank in (("a", 8), ("b", 16)):
        write_job(folder / name, rank=rank, floor=0.1 * rank)
    write_evaluation(folder / "e-new", of="a", figures=FIGURES, finished="2026-11-22T10:00:00+00:00")
    write_evaluation(folder / "e-old", of="a", figures={"fid_score": (90.0, 80.0, 99.0), "dino_score": (0.5, 0.4, 0.6)})
    write_evaluation(
        folder / "e-half", of="b", weight=0.5, figures={"fid_score": (77.0, None, None)}, sampled=False,
        finished="2026-11-23T10:00:00+00:00",
    )  # fmt: skip
    return folder


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert not page.unclosed
    return page


def heads(folder: Path) -> list[str]:
    page = write_report(folder).read_text(encoding="utf-8")
    table = page[page.index('class="data ranking"') :]
    return [re.sub("<.*?>", "", each) for each in re.findall("<th.*?>(.*?)</th>", table[: table.index("</thead>")])]


def test_a_trainings_row_has_each_figure_of_the_newest_evaluation_that_measured_it(sweep: Path) -> None:
    first, second = table_of(sweep)[:2]
    assert heads(sweep)[2:6] == ["held-out loss", "FID", "CLIP text", "DINO"]
    assert first[3:6] == ["118.3", "0.2714", "0.5"], "the newer FID, and the DINO score that only the older has"
    assert second[3:6] == ["–", "–", "–"], "half the weight is another result"


def test_exports_hold_the_figures_with_their_intervals(sweep: Path) -> None:
    rows, said = exports(sweep)
    assert [row["id"] for row in rows] == ["a", "b"]
    assert (rows[0]["fid_score"], rows[0]["fid_score.low"], rows[0]["fid_score.high"]) == ("118.26", "101.5", "140.0")
    assert rows[1]["fid_score"] == ""
    assert said["jobs"][0]["figures"]["clip_text_score.low"] == 0.2651 and said["jobs"][1]["figures"] == {}
    assert [(each["id"], each["of"]) for each in said["evaluations"]] == [
        ("e-half", "b"),
        ("e-new", "a"),
        ("e-old", "a"),
    ]
    assert said["evaluations"][0]["adapter_weight"] == [0.5]
    assert set(said["shared_settings"]) >= {"batch_size"}, "evaluations are not compared with trainings"


def test_the_table_of_evaluations_is_whole(sweep: Path) -> None:
    write_evaluation(sweep / "e-failed", of=None, figures={}, state="failed", error="ModelError: no such folder")
    page = page_of(sweep)
    for text in ("77", "0.5", "102 to 140", "0.4 to 0.6", "ModelError: no such folder", "e-half"):
        assert text in page.text, text
    assert "Less is better for FID" in page.text and "interval of 95 %" in page.text
    assert "outputs/x/job" not in page.text and "x/job" in page.text, "an adapter that is no job of this experiment"
    linked = [element.attributes["href"] for element in page.all("a") if "#job-" in element.attributes.get("href", "")]
    assert linked.count("#job-a") > linked.count("#job-nobody") == 0


def test_figures_that_were_not_measured_alike_are_told(sweep: Path) -> None:
    assert "measured alike" not in page_of(sweep).text, "the weight is what is measured, not how"
    change_config(sweep / "e-new", seeds=[0, 1, 2], features={"clip": "other"})
    said = "Not all were measured alike: seeds, features.clip differ. Compare only figures that were."
    assert said in page_of(sweep).text


def test_other_content_under_the_same_name_is_told(sweep: Path) -> None:
    """Photographs were added to the folder, or a network was replaced by another one."""
    change_manifest(sweep / "e-new", identity={"real": "b", "networks": {"clip": "c"}})
    change_manifest(sweep / "e-old", identity={"real": "b", "networks": {"clip": "c"}})
    change_manifest(sweep / "e-half", identity={"networks": {}})
    assert "measured alike" not in page_of(sweep).text, "one that looked at neither is not measured differently"
    change_manifest(sweep / "e-old", identity={"real": "other", "networks": {"clip": "other"}})
    assert "Not all were measured alike: real, features.clip differ. Compare" in page_of(sweep).text


def test_less_is_better_of_nothing_else(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "x" / "e", of=None, figures={"base_drift": (0.1, 0.05, 0.15)})
    text = page_of(tmp_path / "x").text
    assert "Less is better for base drift." in text and "more for the others" not in text


def test_a_training_alone_says_what_was_measured_of_it(tmp_path: Path) -> None:
    write_job(tmp_path / "x" / "a")
    write_evaluation(tmp_path / "x" / "e", of="a", figures=FIGURES)
    page = page_of(tmp_path / "x")
    assert "held-out loss" in page.text and "FID 118.3" in page.text and "Evaluations" in page.text
    assert len([each for each in page.all("img") if "e/samples" in each.attributes.get("src", "")]) == 0
    assert any("e/samples/step-000000/p00-s0.png" in each.attributes.get("href", "") for each in page.all("a"))


def test_evaluations_alone_are_jobs_like_others(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "one" / "e", of="elsewhere", figures=FIGURES)
    page = page_of(tmp_path / "one")
    assert "task=evaluate: completed in 9.5 s." in page.text and "FID 118.3" in page.text
    for name in ("e", "f"):
        write_evaluation(tmp_path / "two" / name, of="elsewhere", figures=FIGURES)
    rows, said = exports(tmp_path / "two")
    assert [row["fid_score"] for row in rows] == ["118.26", "118.26"] and len(said["evaluations"]) == 2


def test_a_damaged_manifest_leaves_its_figures_out(sweep: Path) -> None:
    damaged = {"fid_score": "high", "kid_score": {"value": float("nan")}, "dino_score": {"value": 0.7}, "other": None}
    change_manifest(sweep / "e-new", figures=damaged)
    assert heads(sweep)[3:5] == ["FID", "DINO"]
    assert table_of(sweep)[0][3:5] == ["90", "0.7"], "the FID is the older one's"


def test_evaluations_fit_on_a_phone(sweep: Path, tmp_path: Path) -> None:
    measured = asked(tmp_path, find_browser(tmp_path), write_report(sweep), MEASURE)
    assert measured == {"width": 390, "wide": []}
