"""What the gallery finds in a folder and draws with; without a server or a browser."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
import socket
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin

import pytest
import yaml
from starlette.testclient import TestClient

from runner.errors import SettingsError
from runner.gallery import easel as easel_module
from runner.gallery.__main__ import main as gallery_main
from runner.gallery.app import make_app
from runner.gallery.easel import WEIGHT, Easel
from runner.gallery.shelf import NotThere, Shelf
from runner.serve.__main__ import main as serve_main
from tests.report.job_folders import write_job
from tests.report.page_reader import Page
from tests.train.bench import Bench


@pytest.mark.parametrize(("direction", "shown"), [("minimize", "low"), ("maximize", "high")])
def test_the_cover_shows_the_best_job_whichever_way_is_better(tmp_path: Path, direction: str, shown: str) -> None:
    for name, objective in (("low", 0.1), ("high", 0.9)):
        folder = tmp_path / "grid" / name
        (folder / "samples" / "step-000001").mkdir(parents=True)
        (folder / "samples" / "step-000001" / "p00-s0.png").touch()
        about: dict[str, Any] = {"state": "completed", "objective": objective, "task": "train"}
        about |= {"objective_name": "evaluation/dino_score", "objective_direction": direction}
        (folder / "manifest.json").write_text(json.dumps(about))
        (folder / "config.yaml").write_text(yaml.safe_dump({"dataset": {"path": f"data/{name}"}}))
    shelf = Shelf(tmp_path)
    (experiment,) = shelf.experiments()
    assert shelf.cover(experiment).pictures == [f"grid/{shown}/samples/step-000001/p00-s0.png"]
    assert shelf.cover(experiment).about == f"LoRA on {shown}", "the words are on the same job"


def test_each_adapter_draws_in_the_precision_of_its_training(bench: Bench, sdxl_folder: Path, tmp_path: Path) -> None:
    drawn = {"prompts": ["a red house"], "seeds": [3], "inference_steps": 2, "guidance_scale": 1.0}
    settings: dict[str, Any] = {"model": {"family": "sdxl"}, "steps": 1, "validation": drawn, "outputs": tmp_path}
    jobs = [bench.job(sdxl_folder, **settings, name=each, precision=each) for each in ("fp32", "bf16")]
    for job in jobs:
        assert bench.train(job)
    shelf = Shelf(tmp_path)
    (base,) = shelf.bases()
    assert len(base.adapters) == 2, "they can be mixed"
    easel = Easel(shelf, "cpu")
    for job in jobs:
        form = {"prompt": "a red house", "seed": "3", "steps": "2", "guidance": "1", "size": str(base.resolution)}
        (picture,) = asyncio.run(easel.draw({**form, f"{WEIGHT}{shelf.path_of(job.folder)}": "1"}))
        assert picture.png == (job.paths.samples_at(1) / "p00-s3.png").read_bytes(), job.settings.name


def completed(folder: Path, **settings: Any) -> Path:
    """The folder of a training; the gallery draws nothing with it and does not read its weights."""
    (folder / "lora").mkdir(parents=True)
    (folder / "lora" / "pytorch_lora_weights.safetensors").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": {"name": "train"}, **settings}))
    (folder / "manifest.json").write_text(json.dumps({"id": folder.name, "state": "completed", "task": "train"}))
    return folder


def gallery(folder: Path) -> TestClient:
    return TestClient(make_app(folder, host="127.0.0.1", device="cpu"), base_url="http://localhost")


def test_the_value_of_a_job_that_was_stopped_says_its_step(tmp_path: Path) -> None:
    write_job(tmp_path / "x" / "whole", rank=4, sampled=[0, 200])
    write_job(tmp_path / "x" / "stopped", rank=8, steps=80, sampled=[0, 32], state="pruned", objective=None)
    said = Page(gallery(tmp_path).get("/experiment/x").text).text
    assert re.search(r"rank 8, lr 0.001 step 32 · 0\.\d+ at step 80 ", said), "over its samples"
    assert re.search(r"rank 8, lr 0.001 0\.\d+ at step 80 pruned", said), "in the list"


def test_evaluations_are_not_counted_among_trainings(tmp_path: Path) -> None:
    """As in the report; evaluations that failed are shown too."""
    for name, state in (("first", "completed"), ("second", "failed")):
        write_job(tmp_path / "x" / name, rank=4, sampled=[0], state=state)
    for number, state in enumerate(("completed", "completed", "completed", "failed")):
        measured = tmp_path / "x" / f"a{number}"  # sorts before the trainings
        write_job(measured, rank=4, sampled=[0], state=state, task="evaluate", objective=None, objective_name=None)

    client = gallery(tmp_path)
    listed = Page(client.get("/experiment/x").text).text
    assert "2 jobs, 4 evaluations" in listed
    assert "1 of 2 jobs completed, 1 failed" in listed and "completed 1 of 2" in listed
    home = Page(client.get("/").text).text
    assert "1 failed" in home and "3 evaluations completed 1 evaluation failed" in home and "4 completed" not in home
    assert "task=evaluate" not in home
    shutil.rmtree(tmp_path / "x" / "first"), shutil.rmtree(tmp_path / "x" / "second")
    assert "3 of 4 jobs completed" in Page(client.get("/experiment/x").text).text, "alone they are what it is about"


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("flux", {"sampler": "euler"}, "sampler = 'euler': belongs to models with a table of noise levels"),
        ("flux", {"negative_prompt": "x"}, "negative_prompt = 'x': has no effect with model.family=flux"),
        ("flux", {"size": "24"}, "should be a multiple of 16 with model.family=flux"),
        ("sd3", {"size": "1024"}, "supports images of up to"),
        ("sd3", {"base": "{}"}, "no longer here; reload the page"),
    ],
)
def test_what_the_model_does_not_know_is_refused_on_the_page(
    flux_folder: Path, sd3_folder: Path, tmp_path: Path, family: str, asked: dict[str, str], said: str
) -> None:
    folder = {"flux": flux_folder, "sd3": sd3_folder}[family]
    completed(tmp_path / "x" / "job", model={"family": family, "path": str(folder)})
    easel = Easel(Shelf(tmp_path), "cpu")
    with pytest.raises(SettingsError, match=said):
        asyncio.run(easel.draw({"prompt": "a house", "steps": "1", "size": "16", **asked}))


def test_a_guidance_of_zero_is_taken_from_the_training(tmp_path: Path) -> None:
    model = {"family": "sdxl", "path": "embedded"}
    completed(tmp_path / "x" / "job", model=model, validation={"guidance_scale": 0.0})
    assert [base.guidance for base in Shelf(tmp_path).bases()] == [0.0]


def test_guidance_is_rescaled_as_in_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {"guidance_scale": 7.0, "guidance_rescale": 0.7}
    completed(tmp_path / "x" / "job", model={"family": "sdxl", "path": "embedded"}, validation=drawn)
    shelf = Shelf(tmp_path)
    (base,) = shelf.bases()
    assert base.guidance_rescale == 0.7
    assert '"guidance_rescale" value="0.7"' in gallery(tmp_path).get("/draw").text

    asked: list[Any] = []
    studio = SimpleNamespace(
        check_resolution=lambda _: None,
        draw=lambda wishes, sampling, _: [asked.append(sampling), SimpleNamespace(png=b"")][1:],
    )
    easel = Easel(shelf, "cpu")
    monkeypatch.setattr(easel, "_studio_of", lambda *_: studio)
    (picture,) = asyncio.run(easel.draw({"prompt": "a house", "guidance": "7", "guidance_rescale": "0.7"}))
    assert [(each.guidance_scale, each.guidance_rescale) for each in asked] == [(7.0, 0.7)]
    assert json.loads(picture.again)["fields"]["guidance_rescale"] == 0.7


def test_the_pictures_that_stay_have_a_bound_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    completed(tmp_path / "x" / "job", model={"family": "sdxl", "path": "embedded"})
    monkeypatch.setattr(easel_module, "MOST_KEPT_BYTES", 400)
    large = SimpleNamespace(png=bytes(100))
    studio = SimpleNamespace(check_resolution=lambda _: None, draw=lambda wishes, *_: [large] * len(wishes))
    easel = Easel(Shelf(tmp_path), "cpu")
    monkeypatch.setattr(easel, "_studio_of", lambda *_: studio)
    for images in (3, 3, 8):
        new = asyncio.run(easel.draw({"prompt": "a house", "images": str(images)}))
        assert [*easel.drawn][-images:] == [each.number for each in new][::-1], "what the page asks for next"
        assert len(easel.drawn) == {1: 3, 4: 4, 7: 8}[new[-1].number]


def test_what_cannot_rescale_is_not_asked_to(flux_folder: Path, tmp_path: Path) -> None:
    completed(tmp_path / "x" / "job", model={"family": "flux", "path": str(flux_folder)})
    assert "guidance_rescale" not in gallery(tmp_path).get("/draw").text
    form = {"prompt": "a house", "size": "16", "guidance_rescale": "0.5"}
    with pytest.raises(
        SettingsError, match=r"guidance_rescale = 0\.5: has no effect on the sampler of model.family=flux"
    ):
        asyncio.run(Easel(Shelf(tmp_path), "cpu").draw(form))


@pytest.mark.parametrize("main", [gallery_main, serve_main])
def test_a_port_that_another_program_has_is_told(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "serve.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        where = ["--host", "127.0.0.1", "--port", str(port)]
        folder = [str(tmp_path)] if main is gallery_main else ["--model-dir", str(tmp_path)]
        assert main([*folder, *where]) in (1, 2)

    said = capsys.readouterr().err + caplog.text
    assert f"nothing can listen at 127.0.0.1, port {port} (Address already in use); name another with --port" in said


def test_what_lies_beside_the_jobs_keeps_no_page_from_being_shown(tmp_path: Path) -> None:
    job = completed(tmp_path / "shown" / "x" / "job", model={"family": "sdxl", "path": "embedded"})
    (tmp_path / "large" / "step-000001").mkdir(parents=True)
    (tmp_path / "large" / "step-000001" / "p00-s0.png").touch()
    (job / "samples").symlink_to(tmp_path / "large")
    foreign = tmp_path / "shown" / "x" / "of another program"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("resolution: 512x512\nmodel: sdxl\n")
    with gallery(tmp_path / "shown") as page:
        for path in ("/", "/experiment/x", "/job/x/job", "/draw"):
            answer = page.get(path)
            assert answer.status_code == 200, path
            assert "<img" not in answer.text, "of what lies elsewhere nothing is shown"


@pytest.mark.parametrize("parts", [[b"prompt=" + b"a" * (1 << 18)], iter([b"prompt="])], ids=["long", "of any length"])
def test_a_form_that_is_too_long_is_not_read(tmp_path: Path, parts: Iterable[bytes]) -> None:
    content = parts[0] if isinstance(parts, list) else parts
    with gallery(tmp_path) as page:
        assert page.post("/draw", content=content).status_code == 413


def test_a_model_makes_room_before_the_next_one_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Model]] = []

    class Model:
        def __init__(self, *_settings: object) -> None:
            assert all(model() is None for model in loaded)
            self.module = self  # a reference cycle, as in real modules
            loaded.append(weakref.ref(self))

    monkeypatch.setattr("runner.studio.Studio", Model)
    completed(tmp_path / "x" / "job", model={"family": "sdxl", "path": "embedded"})
    shelf = Shelf(tmp_path)
    easel = Easel(shelf, "cpu")
    gc.disable()
    try:
        for precision in ("fp32", "bf16"):
            easel._studio_of(shelf.bases()[0], precision)
    finally:
        gc.enable()
    assert len(loaded) == 2


@pytest.mark.parametrize("shown", ["x", "x/job"])
def test_the_page_of_a_single_experiment_or_job_leads_to_it(tmp_path: Path, shown: str) -> None:
    completed(tmp_path / "x" / "job", model={"family": "sdxl", "path": "embedded"})
    with gallery(tmp_path / shown) as page:
        (link,) = re.findall('class="cover" href="(.*?)"', page.get("/").text)
        answer = page.get(urljoin("http://localhost/", link))  # like a browser
        assert answer.status_code == 200
        (job,) = re.findall('href="(/job/.*?)"', answer.text)
        assert page.get(urljoin("http://localhost/", job)).status_code == 200


def test_of_very_many_jobs_it_is_said_how_many_are_side_by_side(tmp_path: Path) -> None:
    for number in range(30):
        job = completed(tmp_path / "x" / f"job{number}", seed=number)
        (job / "samples" / "step-000001").mkdir(parents=True)
        (job / "samples" / "step-000001" / "p00-s0.png").touch()
    with gallery(tmp_path) as page:
        said = "Of 30 jobs the first 24; choose others below to compare them."
        assert said in page.get("/experiment/x").text
        assert said not in page.get("/compare?job=x/job1&job=x/job2").text
        for number in range(5):  # other jobs take their columns
            shutil.rmtree(tmp_path / "x" / f"job{number}" / "samples")
        text = page.get("/experiment/x").text
        assert text.count('<th scope="col"><a href="/job/') == 24 and "Of 25 jobs with samples the first 24;" in text


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "round.png").symlink_to("round.png")
    shelf = Shelf(tmp_path)
    for path in ("round.png", "round.png/x"):
        with pytest.raises(NotThere):
            shelf.inside(path)


def test_a_folder_whose_name_is_not_utf_8_hides_no_other(tmp_path: Path) -> None:
    for name in ("houses", "caf\udce9"):
        write_job(tmp_path / name / "a1c2e3")
    client = TestClient(make_app(tmp_path, host="127.0.0.1", device="cpu"), base_url="http://127.0.0.1")
    text = client.get("/").text
    assert "caf?" in text and "/experiment/houses" in text


def test_who_hangs_up_while_asking_is_no_defect(tmp_path: Path) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answered.append(message)

    answered: list[Any] = []
    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": "/draw", "query_string": b"", "headers": headers}
    asyncio.run(make_app(tmp_path, host="127.0.0.1", device="cpu")(scope, receive, send))
    assert answered[0]["status"] == 503
