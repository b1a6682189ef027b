"""A sweep is ranked by its objective, whichever direction is better, and reports its cost as far as it is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

from runner.job_folders import find_jobs
from runner.report import write_report
from runner.report.cost import cost_of
from runner.report.ranking import Ranking, rank
from runner.report.record import read_job

from .job_folders import change_manifest, give_cost, write_job, write_search
from .page_reader import Page


def four(root: Path) -> Path:
    """Two completed jobs, one that was stopped early but was better than both by then, and one that never started."""
    write_job(root / "x" / "good", rank=8, floor=0.12)
    write_job(root / "x" / "poor", rank=16, floor=0.18)
    write_job(root / "x" / "early", rank=4, floor=0.1, steps=80, state="pruned", objective=0.1)
    write_job(root / "x" / "later", rank=2, floor=0.19, steps=120, state="pruned", objective=None)
    write_job(root / "x" / "never", rank=1, steps=0, sampled=[], state="pending", objective=None)
    return root / "x"


def ranking_of(folder: Path) -> Ranking:
    return rank([read_job(job) for job in find_jobs(folder)])


def table_of(folder: Path) -> list[list[str]]:
    page = write_report(folder).read_text()
    table = page[page.index('class="data ranking"') :]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table[: table.index("</table>")], flags=re.DOTALL)[1:]
    return [
        [re.sub(r"<.*?>|\s+", " ", cell).strip() for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in rows
    ]


def test_jobs_stopped_early_have_no_place_and_say_how_far_they_came(tmp_path: Path) -> None:
    folder = four(tmp_path)
    entries = ranking_of(folder).entries
    assert [(entry.job.folder.name, entry.place, entry.step) for entry in entries] == [
        ("good", 1, None), ("poor", 2, None), ("later", None, 120), ("early", None, 80), ("never", None, None),
    ]  # fmt: skip
    later = json.loads((folder / "later" / "metrics.jsonl").read_text().splitlines()[-1])
    rows = table_of(folder)
    assert [row[0] for row in rows] == ["1", "2", "–", "–", "–"]
    assert re.sub(r"\s+", " ", rows[2][2]) == f"{later['validation/loss']:.4g} at step 120"
    assert rows[4][2] == "–"
    text = Page(write_report(folder).read_text()).text
    assert "stopped early 2" in text
    assert "best is rank 8" in text


def test_losses_that_were_not_measured_alike_are_told_as_that(tmp_path: Path) -> None:
    folder = four(tmp_path)
    alike = {"model": "m", "dataset": "d", "settings.lora.rank": 8}
    change_manifest(folder / "good", identity=alike)
    change_manifest(folder / "poor", identity=alike | {"settings.lora.rank": 16})
    assert "measured alike" not in Page(write_report(folder).read_text()).text
    change_manifest(folder / "poor", identity=alike | {"dataset": "other", "settings.resolution": 128})
    text = Page(write_report(folder).read_text()).text
    assert "Not all were measured alike: dataset, resolution differ. Compare only jobs that were." in text
    assert "best" not in text.partition("Ranking")[0] and "worst" not in text, "of such jobs nobody knows"


def test_equal_results_share_a_place_and_none_of_them_is_the_best(tmp_path: Path) -> None:
    """For example, if a setting changes what is drawn but not what is trained."""
    folder = four(tmp_path)
    for name in ("good", "poor"):
        change_manifest(folder / name, objective=0.125)
    write_job(folder / "third", rank=3, objective=0.25)
    assert [row[0] for row in table_of(folder)][:3] == ["1", "1", "3"]
    text = Page(write_report(folder).read_text()).text.partition("Ranking")[0]
    assert "2 jobs share the best held-out loss, 0.125." in text and "best 0.125 worst 0.25" in text
    assert not any(entry.is_best for entry in ranking_of(folder).entries)


def test_an_old_result_of_a_job_that_runs_again_is_no_place(tmp_path: Path) -> None:
    folder = four(tmp_path)
    change_manifest(folder / "good", state="running")
    assert [entry.job.folder.name for entry in ranking_of(folder).placed] == ["poor"]


def test_a_value_is_not_put_to_samples_of_another_step(tmp_path: Path) -> None:
    write_job(tmp_path / "x" / "whole", rank=4, sampled=[0, 200])
    write_job(tmp_path / "x" / "stopped", rank=8, steps=80, sampled=[0, 32], state="pruned", objective=None)
    grid = Page(write_report(tmp_path / "x").read_text()).text.partition("Samples side by side")[2]
    assert re.search(r"rank 4, lr 0.001 0\.\d+ · step 200 ", grid)
    assert re.search(r"rank 8, lr 0.001 step 32 · 0\.\d+ at step 80 ", grid)


def test_what_does_not_train_takes_no_place_and_no_colour_from_trainings(tmp_path: Path) -> None:
    write_job(tmp_path / "x" / "whole", sampled=[])
    write_job(tmp_path / "x" / "stopped", sampled=[], state="pruned", objective=None)
    write_job(tmp_path / "x" / "lost", sampled=[], state="failed", objective=None)
    for index in range(8):
        drawn = write_job(tmp_path / "x" / f"drawn{index}", sampled=[], task="evaluate", objective=None)
        change_manifest(drawn, objective_name=None)
        (drawn / "metrics.jsonl").unlink()
    entries = ranking_of(tmp_path / "x").entries
    assert [(entry.job.folder.name, entry.style) for entry in entries[:3]] == [
        ("whole", "c0"), ("stopped", "c1"), ("lost", "c2"),
    ]  # fmt: skip


def test_more_can_be_better(tmp_path: Path) -> None:
    for name, score in (("low", 0.2), ("high", 0.9), ("middle", 0.5)):
        job = write_job(tmp_path / "x" / name, rank=int(score * 10), sampled=[], objective=score)
        change_manifest(job, objective_name="clip/score", objective_direction="maximize")
        with (job / "metrics.jsonl").open("a") as stream:
            stream.writelines(json.dumps({"step": at, "clip/score": score * at / 200}) + "\n" for at in (100, 200))
    ranking = ranking_of(tmp_path / "x")
    assert [entry.job.folder.name for entry in ranking.entries] == ["high", "middle", "low"]
    page = Page(write_report(tmp_path / "x").read_text())
    assert "best is rank 9, lr 0.001 with clip/score 0.9" in page.text
    assert "best 0.9 worst 0.2" in page.text
    assert "its height is the clip/score, and more is better" in page.text
    titles = re.findall("<figcaption>(.*?)</figcaption>", page.html)
    assert titles[0] == "clip/score"
    orders = re.findall(r'data-order="(-?1)"', page.html)
    assert orders[:3] == ["-1", "1", "1"], (
        "under the pointer the best are named: the most of a score, the least of a loss"
    )
    lines = re.findall(r'<polyline class="mark line[^>]*data-job="(\w+)"[^>]*points="([^"]*)"', page.html)
    assert lines == [], "one setting needs no parallel axes"
    heights = {
        job: float(y) for job, y in re.findall(r'<circle class="mark[^>]*data-job="(\w+)"[^>]*cy="([\d.]+)"', page.html)
    }
    assert heights["high"] < heights["middle"] < heights["low"]


def test_jobs_measured_by_something_else_are_not_compared(tmp_path: Path) -> None:
    folder = four(tmp_path)
    change_manifest(folder / "poor", objective_name="clip/score", objective=0.01)
    ranking = ranking_of(folder)
    assert ranking.aim.name == "validation/loss"
    assert [entry.job.folder.name for entry in ranking.placed] == ["good"]


def test_the_aim_is_that_of_most_jobs_and_not_of_the_first(tmp_path: Path) -> None:
    for number in range(3):
        write_job(tmp_path / "x" / f"job{number}", sampled=[])
    change_manifest(tmp_path / "x" / "job0", objective_name="clip/score", objective_direction="maximize")
    aim = ranking_of(tmp_path / "x").aim
    assert (aim.name, aim.maximize) == ("validation/loss", False)


def test_a_job_that_diverged_on_the_way_is_shown_with_its_last_value_before_that(tmp_path: Path) -> None:
    """Nothing compares with NaN, so it would scramble the order of all other jobs."""
    job = write_job(tmp_path / "x" / "stopped", steps=80, sampled=[], state="interrupted", objective=None)
    with (job / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 90, "validation/loss": null, "non_finite": {"validation/loss": "nan"}}\n')
    (entry,) = ranking_of(tmp_path / "x").entries
    assert entry.step == 80
    assert entry.value is not None and 0 < entry.value < 1


def test_a_packed_sweep_says_what_it_saved(tmp_path: Path) -> None:
    folder = write_search(tmp_path, 6)
    cost = cost_of([read_job(job) for job in find_jobs(folder)])
    assert cost.facts == [
        ("machine time", "3 min 49 s"), ("wall time", "38 s"), ("5 completed jobs one after the other", "9 min 33 s"),
        ("packed", "3 times faster"), ("most jobs at once", "8"), ("peak memory", "1.23 GB"), ("price", "$0.06"),
    ]  # fmt: skip
    text = Page(write_report(folder).read_text()).text
    assert "What it cost" in text
    assert "packed 3 times faster" in text


def test_jobs_that_ran_alone_are_not_called_packed(tmp_path: Path) -> None:
    folder = write_search(tmp_path, 6)
    for job in find_jobs(folder):
        give_cost(job, packed_with=1)
    facts = dict(cost_of([read_job(job) for job in find_jobs(folder)]).facts)
    assert set(facts) == {"machine time", "wall time", "peak memory"}
    assert "packed" not in Page(write_report(folder).read_text()).text


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    folder = four(tmp_path)

    def facts() -> dict[str, str]:
        return dict(cost_of([read_job(job) for job in find_jobs(folder)]).facts)

    assert facts() == {"time in jobs": "3 min 11 s", "wall time": "38 s"}
    for job in folder.iterdir():
        if job.is_dir():
            give_cost(job, alone_s=None, peak_memory_gb="much", packed_with=1)
    assert facts() == {"machine time": "3 min 11 s", "wall time": "38 s"}
    give_cost(folder / "good", alone_s=19.1, price_usd=0.5)
    assert "packed" not in facts(), "one of the two completed jobs does not say what it takes alone"
    assert facts()["price"] == "$0.50"
    give_cost(folder / "poor", alone_s=19.1)
    assert facts()["packed"] == "2 times slower"
    assert facts()["2 completed jobs one after the other"] == "38 s", "the other times are those of all five"
    for job in folder.iterdir():
        if job.is_dir():
            change_manifest(job, timings_s=None, started="soon", finished=None, cost="dear")
    assert facts() == {}
    assert "What it cost" not in write_report(folder).read_text()


def test_a_running_sweep_counts_up_to_its_last_sign_of_life(tmp_path: Path) -> None:
    job = write_job(tmp_path / "x" / "a", state="running", started="2026-11-20T09:00:00+00:00", finished=None)
    (job / "metrics.jsonl").write_text(json.dumps({"step": 1, "time": 1795165290.0, "train/loss": 1.0}) + "\n")
    assert ("wall time so far", "1 min 30 s") in cost_of([read_job(job)]).facts
    assert "pauses between commands included" in cost_of([read_job(job)]).note
