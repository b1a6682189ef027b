"""The report shows what the folders contain, whatever state they are in, and nothing else gets into the page."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from runner.gallery.shelf import Shelf
from runner.job_folders import find_jobs
from runner.report import write_report
from runner.report.__main__ import main
from runner.report.differences import labelled
from runner.report.record import read_job
from runner.report.several import cell_for
from runner.status.experiment import Watch, as_data
from runner.status.table import tables

from .job_folders import PROMPTS, change_config, change_manifest, write_job, write_sweep
from .page_reader import Page

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


def read(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.unclosed == []
    assert not list(folder.glob(".*.tmp"))
    return page


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("outputs"))


def test_a_single_job_says_all_of_itself(tmp_path: Path) -> None:
    write_job(tmp_path / "houses" / "a1c2e3")
    page = read(tmp_path / "houses")
    said = json.loads((tmp_path / "houses" / "a1c2e3" / "manifest.json").read_text())
    assert "LoRA rank 8 on houses: held-out loss 0.24" in page.text
    assert "in 38 s." in page.text
    assert re.search(r"rank 8, lr 0\.001 completed", page.text)
    assert f"held-out loss {said['objective']:.4g}" in page.text
    for expected in ("optimizer.lr set 0.001", "797 k", "NVIDIA A10G", "sha256:9c1f0b", "64 x 96", "4f9d2c1a7b",
                     "in GPU memory, 3 MB", "train 28 s 72 %", "2026-11-20 09:00:02 UTC", "snr_gamma: 5"):  # fmt: skip
        assert expected in page.text, expected
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page.html)
    assert titles == ["Loss", "Held-out loss by noise level", "Learning rate", "Gradient norm"]


def test_set_values_come_before_all_others(tmp_path: Path) -> None:
    page = read(write_job(tmp_path / "x" / "job"))
    places = [page.text.index(key) for key in ("lora.rank set", "optimizer.lr set", "steps set", "model.family")]
    assert places == sorted(places)


def test_the_loss_of_a_data_set_without_held_out_images_is_called_what_it_is(tmp_path: Path) -> None:
    for rank in (4, 8):
        write_job(tmp_path / "x" / f"r{rank}", rank=rank, sampled=[], dataset={"images": 4, "held_out": 0})
    assert "eld-out loss" not in read(tmp_path / "x").text
    (experiment,) = Watch(lambda: find_jobs(tmp_path / "x")).look()
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(tables([experiment], width=150))
    assert "loss on the training images" in console.export_text()


def test_samples_run_from_before_to_after_with_words_for_each(tmp_path: Path) -> None:
    page = read(write_job(tmp_path / "x" / "job"))
    images = page.all("img")
    assert len(images) == 6 * 6
    assert images[0].attributes["alt"] == "a red house on a hill, evening light, seed 0, step 0"
    assert images[-1].attributes["alt"] == "a yellow house in the snow, seed 1, step 200"
    assert all(one.attributes["src"].startswith("data:image/") for one in images)
    assert all(one.attributes["class"] == "pixelated" for one in images)
    assert page.text.index("before step 0") < page.text.index("after step 200")


def test_large_and_many_samples_are_made_small_and_counted(tmp_path: Path) -> None:
    job = write_job(tmp_path / "x" / "job", side_px=384, sampled=list(range(0, 201, 10)))
    page = read(job)
    assert "Shown: 6 of 21 steps" in page.text
    assert len(page.all("img")) == 36
    assert "pixelated" not in {i.attributes.get("class") for i in page.all("img")}
    on_disk = sum(path.stat().st_size for path in job.glob("samples/*/*.png"))
    assert len(page.html) < min(on_disk / 10, 1_500_000)


def test_links_are_relative_and_lead_somewhere(tmp_path: Path, sweep: Path) -> None:
    write_job(tmp_path / "x" / "job")
    for folder in (tmp_path / "x", tmp_path / "x" / "job", sweep):
        page = read(folder)
        links = [a.attributes["href"] for a in page.all("a")]
        files = [link for link in links if not link.startswith(("#", "https://wandb.ai/"))]
        assert any(link.endswith("lora/pytorch_lora_weights.safetensors") for link in files)
        assert [link for link in files if not (folder / link).is_file()] == []
        targets = {element.attributes.get("id") for element in page.elements}
        assert [link for link in links if link.startswith("#") and link[1:] not in targets] == []


def test_a_sweep_is_ranked_best_first_and_hides_no_failure(sweep: Path) -> None:
    page = read(sweep)
    assert "4 of 7 jobs completed, 1 failed, 1 pending, 1 running; best is rank 16, lr 0.001" in page.text
    ranking = page.text[page.text.index("Ranking") : page.text.index("Samples side by side")]
    order = [ranking.index(f"rank {rank}, lr") for rank in (16, 8, 4, 32, 2, 128, 64)]
    assert order == sorted(order)
    assert "NonFiniteLoss" in ranking
    assert "lower optimizer.lr" in ranking
    assert "lora.rank optimizer.lr" in ranking
    assert page.tags()["details"] >= 7
    assert "What went wrong" in page.text
    assert "step 51 loss nan" in page.text


def test_a_sweep_shows_its_samples_side_by_side(sweep: Path) -> None:
    page = read(sweep)
    table = page.html[page.html.index('class="grid compare') :]
    table = table[: table.index("</table>")]
    alts = re.findall(r'alt="(.*?)"', table)
    row = [alt for alt in alts if alt.startswith("a small blue house by the sea, seed 1")]
    assert [alt.split(", ", 2)[2] for alt in row] == [
        "before training", "rank 16, lr 0.001, step 200", "rank 8, lr 0.001, step 200",
        "rank 4, lr 0.001, step 200", "rank 32, lr 0.003, step 200", "rank 2, lr 0.001, step 120",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "words"),
    [("running", "running, 200 of 200 steps done"), ("interrupted", "the same command continues it"),
     ("pruned", "stopped early"), ("cancelled", "cancelled after"), ("submitted", "not started yet")],
)  # fmt: skip
def test_each_state_has_its_sentence(tmp_path: Path, state: str, words: str) -> None:
    page = read(write_job(tmp_path / "x" / "job", state=state, objective=None))
    assert words in page.text
    assert f">{state}</span>" in page.html


def test_nothing_but_a_config_is_still_a_page(tmp_path: Path) -> None:
    job = tmp_path / "x" / "job"
    job.mkdir(parents=True)
    (job / "config.yaml").write_text("name: x\n")
    page = read(job)
    for expected in ("manifest.json is missing", "No samples yet", "No metrics yet", "unknown"):
        assert expected in page.text


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    job = write_job(tmp_path / "x" / "job", overrides=None, versions="torch", dataset=[1], timings_s=None)
    (job / "config.yaml").write_text("a: [")
    with (job / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 201, "train/loss": null, "non_finite": {"train/loss": "nan"}}\n{"step": 2')
    (job / "samples" / "step-000200" / "p00-s0.png").write_bytes(b"not an image")
    (job / "samples" / "step-000040" / "p00-s0.png").unlink()
    page = read(job)
    assert "config.yaml cannot be read" in page.text
    assert "1 value left out: not finite" in page.text
    assert "cannot be read" in page.text
    assert "no image" in page.text
    assert len(page.all("img")) == 34
    assert "nan" not in "".join(re.findall(r'points="(.*?)"', page.html))


def test_metrics_that_are_all_nan_make_no_chart(tmp_path: Path) -> None:
    job = write_job(tmp_path / "x" / "job")
    line = {"step": 1, "train/loss": None, "non_finite": {"train/loss": "nan"}}
    (job / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert "No metrics yet" in read(job).text


def test_text_from_users_stays_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        job = write_job(
            tmp_path / "x" / name, name=HOSTILE, error=HOSTILE, overrides=[f"lora.rank={HOSTILE}"], state="failed",
            plan={HOSTILE: [{HOSTILE: HOSTILE}]}, versions={HOSTILE: HOSTILE}, wandb_url="javascript:alert(3)",
        )  # fmt: skip
        (job / "samples" / "prompts.json").write_text(json.dumps({"prompts": [HOSTILE], "negative_prompt": HOSTILE}))
        (job / "log.txt").write_text(HOSTILE)
    for folder in (tmp_path / "x", tmp_path / "x" / "a"):
        page = read(folder)
        assert page.tags()["script"] == 1
        assert all(image.attributes["src"].startswith("data:") for image in page.all("img"))
        assert not any(key.startswith("on") for element in page.elements for key in element.attributes)
        assert "alert(1)" in page.text
        assert "{{ 7*7 }}" in page.text
        assert "javascript:" not in page.html


def test_a_name_that_is_not_utf_8_hides_no_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "caf\udce9"
    write_job(folder / "a1c2e3")
    change_manifest(folder / "a1c2e3", error="no space is left for caf\udce9", state="failed")
    assert main([str(folder)]) == 0
    assert "/caf?/report.html" in capsys.readouterr().out
    assert "no space is left for caf?" in (folder / "report.html").read_text(encoding="utf-8")
    assert "no space is left for caf?" in (folder / "sweep.json").read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_from_outside(sweep: Path) -> None:
    page = read(sweep)
    assert page.tags()["link"] == page.tags()["iframe"] == 0
    assert not [e for e in page.elements if "src" in e.attributes and not e.attributes["src"].startswith("data:")]
    assert "@import" not in page.html
    assert "url(" not in page.html
    (policy,) = [e.attributes["content"] for e in page.all("meta") if "Policy" in e.attributes.get("http-equiv", "")]
    assert policy.startswith("default-src 'none'")


def test_forty_jobs_make_one_page_of_bounded_size(tmp_path: Path) -> None:
    for number in range(40):
        write_job(tmp_path / "many" / f"j{number:02d}", rank=number + 1, floor=0.1 + number / 400, sampled=[0, 200])
    page = read(tmp_path / "many")
    assert "40 of 40 jobs completed" in page.text
    assert "The best eight jobs have colours" in page.text
    assert "the best 24 of 40 jobs" in page.text
    assert len(page.html) < 6_000_000


def test_a_wrong_folder_is_an_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="outputs/<name>"):
        write_report(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no job in"):
        write_report(tmp_path)
    command = [sys.executable, "-m", "runner.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no job in" in done.stderr


def test_writing_again_replaces_the_page(tmp_path: Path) -> None:
    job = write_job(tmp_path / "x" / "job", state="running")
    assert "running" in read(job).text
    change_manifest(job, state="completed")
    assert ">completed</span>" in read(job).html


def test_samples_of_an_odd_shape_keep_it(tmp_path: Path) -> None:
    job = write_job(tmp_path / "x" / "job", sampled=[0, 200])
    Image.new("RGB", (900, 300)).save(job / "samples" / "step-000200" / "p00-s0.png")
    assert 'alt="a red house on a hill, evening light, seed 0, step 200"' in read(job).html


def test_jobs_of_one_experiment_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    for rank in (2, 8):
        folder = tmp_path / f"job{rank}"
        folder.mkdir()
        manifest = {
            "id": f"job{rank}",
            "name": "sweep",
            "state": "completed",
            "overrides": [f"lora.rank={rank}", "a=b"],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest | {"objective": rank / 10}))
    page = write_report(tmp_path).read_text()
    assert "best is lora.rank=2" in page
    assert ">lora.rank=8</a>" in page


def test_a_long_value_does_not_fill_the_page_wherever_a_job_is_named(tmp_path: Path) -> None:
    for rank, word in ((2, "one"), (8, "two")):
        job = write_job(tmp_path / "x" / word, rank=rank, sampled=[])
        change_manifest(job, name="x", overrides=[f"validation.prompts=[{'a very long prompt ' * 50}{word}]"])
    above, _, rest = read(tmp_path / "x").text.partition("Ranking")
    charts = rest.partition("Curves")[2].partition("Each job")[0]
    assert "best is validation.prompts=…" in above and "prompts=…one]: 0." in charts and "prompts=…two]: 0." in charts
    assert "a very long prompt" not in above + charts, "the table has it"


def test_pictures_of_different_prompts_never_share_a_row(tmp_path: Path) -> None:
    first, second = (write_job(tmp_path / "x" / f"r{rank}", rank=rank) for rank in (4, 8))
    about = json.loads((second / "samples" / "prompts.json").read_text())
    about["prompts"][0] = "a castle"
    (second / "samples" / "prompts.json").write_text(json.dumps(about))
    change_config(second, model__path="tiny/other")
    table = read(tmp_path / "x").html
    table = table[table.index('class="grid compare') :].partition("</table>")[0]
    assert "before training" not in table, "they did not begin as the same"
    for prompt, drawn in (("a castle", [second]), (PROMPTS[0], [first]), (PROMPTS[1], [first, second])):
        shown = re.findall(f'alt="{prompt}, seed 0, (rank [0-9]+),', table)
        assert sorted(shown) == [f"rank {job.name[1:]}" for job in drawn]


def test_jobs_of_another_task_are_not_compared_with_trainings(tmp_path: Path) -> None:
    for rank in (4, 8):
        write_job(tmp_path / "x" / f"r{rank}", rank=rank, name="x", task="train")
    drawn = write_job(tmp_path / "x" / "drawn", sampled=[0], name="x", task="generate", objective=None)
    change_manifest(drawn, overrides=["adapter=x/r4", "prompts=a castle"], objective_name=None)
    (drawn / "config.yaml").write_text("task: {name: generate}\nadapter: [x/r4]\nprompts: [a castle]\nresolution: 8\n")
    page = read(tmp_path / "x")
    charts = page.html[page.html.index("What the settings did") :].partition("</section>")[0]
    assert re.findall("<figcaption>(.*?)</figcaption>", charts) == ["lora.rank"]
    assert page.html.count("<code>") == 0, "no column that holds all that was set"
    assert {job.name for job in labelled([read_job(job) for job in find_jobs(tmp_path / "x")])} == {
        "lora.rank=4", "lora.rank=8", "generate drawn",
    }  # fmt: skip


def test_what_was_set_is_told_exactly_and_in_short(tmp_path: Path) -> None:
    first, second = (write_job(tmp_path / "x" / name, sampled=[]) for name in ("one", "two"))
    change_manifest(first, overrides=["optimizer=prodigy", "seed=20251128"])
    change_manifest(second, overrides=["seed=20251129"])
    change_config(first, optimizer__name="prodigy", seed=20251128)
    change_config(second, seed=20251129)
    cells = {job.id: [cell_for(job, key) for key in ("optimizer", "seed")] for job in map(read_job, (first, second))}
    assert cells == {"one": ["prodigy", "20,251,128"], "two": ["adamw", "20,251,129"]}


def test_values_of_another_kind_than_they_should_be_stop_nobody_from_looking(tmp_path: Path) -> None:
    first, second = (write_job(tmp_path / "x" / f"r{rank}", rank=rank, state="running") for rank in (4, 8))
    change_config(first, loss__snr_gamma=math.nan, resolution="512x512")
    change_manifest(first, overrides=["loss.snr_gamma=nan"])
    change_manifest(
        second, task="of another version", overrides=["loss.snr_gamma=5"], state="completed", objective=10**400
    )
    change_config(second, validation__inference_steps="many", resolution=[64, 64], model={"family": "sdxl"})
    lines = [
        {"step": step, "time": when, "train/lr": -1.0}
        for step, when in ((1, "noon"), (2, None), (10**400, 0.0), (3, 10**400), (3, 1e9))
    ]
    (first / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read(tmp_path / "x")
    looked = Watch(lambda: find_jobs(tmp_path / "x")).look()
    json.dumps(as_data(looked), allow_nan=False)
    assert [base.steps for base in Shelf(tmp_path).bases()] == [25]


@pytest.mark.parametrize("gone", ["samples/step-000000", "lora"])
def test_a_job_that_is_removed_while_it_is_read_does_not_keep_the_page_from_being_written(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scandir = write_job(tmp_path / "experiment" / "a"), os.scandir

    def remove_before(path: Any = ".") -> Any:
        if str(path) == str(folder / gone):
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove_before)
    assert "<img" in read(folder.parent).html, "of what is still there"
