"""The gallery as people use it: in its own process, in a real browser."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import uvicorn
import yaml

from runner.gallery.__main__ import main
from runner.jobs.job import Job
from runner.system.listening import Guard
from tests.command_line import ROOT, environment
from tests.gallery.chromium import PATIENCE_S, Tab, chromium
from tests.serve.test_serve import free_port
from tests.train.bench import Bench

PROMPTS = ["a red house on a white background", "a yellow circle on a gray background"]
DRAWN: dict[str, Any] = {"prompts": PROMPTS, "seeds": [0, 5], "inference_steps": 3, "guidance_scale": 3.0}
COLUMNS = "[...document.querySelectorAll('.wall thead th')].map((th) => th.firstChild.textContent)"
LOADED = "[...document.images].filter((one) => one.loading !== 'lazy' || one.complete).every((one) => one.naturalWidth)"


@dataclass
class Gallery:
    folder: Path
    port: int
    jobs: list[Job]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read()


@pytest.fixture(scope="module")
def gallery(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    folder = tmp_path_factory.mktemp("gallery") / "outputs"
    settings: dict[str, Any] = {"model": {"family": "sdxl"}, "steps": 3, "validation": DRAWN, "outputs": folder}
    jobs = [bench.job(Path("embedded"), **settings, name="houses", seed=seed) for seed in (0, 1)]
    assert bench.train(*jobs)
    (folder / "broken" / "job").mkdir(parents=True)
    (folder / "broken" / "job" / "manifest.json").write_text('{"state": "failed", "error": "<b>no memory</b>"}')
    (folder / "outside").symlink_to(folder.parent)
    shutil.copy(jobs[0].paths.samples_at(0) / "p00-s0.png", folder.parent / "secret.png")
    style = Path(shutil.copy(jobs[1].paths.weights, folder.parent / "style.safetensors"))
    port, said = free_port(), (folder.parent / "said").open("w")
    options = ("--port", str(port), "--device", "cpu", "--adapter", str(style))
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.gallery", str(folder), *options],
        cwd=ROOT,
        env=environment({"RUNNER_CACHE": str(bench.cache)}),
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    said.close()
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"http://127.0.0.1:{port}/")
    found = Gallery(folder, port, jobs)
    while True:
        assert process.poll() is None
        try:
            assert found.ask("/")[0] == 200
            break
        except ConnectionError:
            continue
    yield found
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGINT)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Iterator[Tab]:
    browser.said.clear()
    browser.size(1280, 900)
    yield browser
    assert browser.said == [], "nothing on the console, and nothing blocked"


def path_of(job: Job) -> str:
    return f"{job.folder.parent.name}/{job.folder.name}"


def sample(job: Job, name: str, step: int = 3) -> bytes:
    return (job.paths.samples_at(step) / name).read_bytes()


def drawn(tab: Tab) -> list[bytes]:
    """The pictures on the strip, newest first."""
    pictures = tab.ask(
        "Promise.all([...document.querySelectorAll('#strip .drawn img')].map(async (one) => { const bytes = new "
        "Uint8Array(await (await fetch(one.src)).arrayBuffer()); return btoa(String.fromCharCode(...bytes)); }))"
    )
    return [base64.b64decode(each) for each in pictures]


def fill(tab: Tab, name: str, text: str) -> None:
    tab.ask(f"document.querySelector('[name={name}]').select()")
    tab.ask(f"document.querySelector('[name={name}]').focus()")
    tab.write(text)


def slide(tab: Tab, job: Job, steps: int) -> None:
    """Move a slider to its left end, and from there by some steps, with the keyboard."""
    tab.ask(f"document.querySelector(`[name='weight:{path_of(job)}']`).focus()")
    tab.press("Home", 36)
    for _ in range(steps):
        tab.press("ArrowRight", 39)


def test_from_the_trainings_to_samples_side_by_side(gallery: Gallery, tab: Tab) -> None:
    tab.open(f"{gallery.address}/")
    titles = tab.ask("[...document.querySelectorAll('.cover .title')].map((one) => one.textContent)")
    assert set(titles) == {"houses", "broken"}
    tab.click(".cover[href$=houses]")
    tab.until("document.querySelectorAll('.wall tbody').length === 4")
    assert sorted(tab.ask(COLUMNS)) == ["before", "seed=0", "seed=1"]
    tab.until(LOADED)
    prompts = tab.ask("[...document.querySelectorAll('.wall .prompt .text')].map((one) => one.textContent)")
    assert sorted(prompts) == sorted(PROMPTS * 2), "a row for each prompt and seed"
    sources = tab.ask("[...document.querySelector('.wall tbody').querySelectorAll('a')].map((a) => a.href)")
    assert [source.rpartition("/")[2] for source in sources] == ["p00-s0.png"] * 3
    tab.click("input[name=job]")
    tab.until("document.querySelector('input[name=job]').checked")
    tab.click(".chooser button")
    tab.until("location.pathname === '/compare' && document.readyState === 'complete'")
    assert len(tab.ask(COLUMNS)) == 2, "before, and the one that was chosen"
    tab.open(f"{gallery.address}/job/{path_of(gallery.jobs[1])}")
    assert tab.ask(COLUMNS) == ["before", "step 3"]
    assert tab.ask("document.querySelectorAll('svg.chart').length") > 0
    tab.open(f"{gallery.address}/job/broken/job")
    assert tab.ask("document.querySelector('.error pre').textContent") == "<b>no memory</b>"


def test_draws_what_is_typed_with_sliders_and_keeps_it(gallery: Gallery, tab: Tab) -> None:
    first, second = gallery.jobs
    tab.open(f"{gallery.address}/draw?use={quote(path_of(first))}")
    values = tab.ask("[...document.querySelectorAll('.slider')].map((one) => one.querySelector('output').value)")
    assert sorted(values) == ["0", "0", "1"], "the one to draw with is there already"
    there = len(drawn(tab))
    fill(tab, "prompt", PROMPTS[1])
    fill(tab, "seed", "5")
    tab.click(".go button")
    tab.until(f"document.querySelectorAll('#strip .drawn').length === {there + 1}")
    assert drawn(tab)[0] == sample(first, "p01-s5.png"), "the bits of the training's sample"
    slide(tab, first, 0)
    slide(tab, second, 14)
    tab.click(".go button")
    tab.until(f"document.querySelectorAll('#strip .drawn').length === {there + 2}")
    said = tab.ask("document.querySelector('#strip .drawn').innerText")
    assert "0.7 " in said and "seed 5" in said and "3 steps" in said and PROMPTS[1] in said
    slide(tab, second, 0)
    fill(tab, "seed", "0")
    fill(tab, "images", "2")
    tab.click(".go button")
    tab.until(f"document.querySelectorAll('#strip .drawn').length === {there + 4}")
    pictures = drawn(tab)
    assert pictures[1] == sample(first, "p01-s0.png", step=0), "without adapters the base"
    assert len(set(pictures[:4])) == 4
    tab.open(f"{gallery.address}/draw")
    assert drawn(tab) == pictures, "they are still there"
    tab.click("#strip .drawn:nth-child(3) .again")
    assert tab.ask("document.querySelector('[name=seed]').value") == "5"
    assert tab.ask(f"document.querySelector(`[name='weight:{path_of(second)}']`).value") == "0.7"
    tab.click(".go button")
    tab.until(f"document.querySelectorAll('#strip .drawn').length === {there + 5}")
    assert drawn(tab)[0] == pictures[2], "the same settings give the same picture"
    assert (gallery.folder.parent / "said").read_text() == "", "of other ways of using libraries"


def test_settings_are_taken_up_on_the_page_of_their_model(gallery: Gallery, tab: Tab) -> None:
    first, other = gallery.jobs[0], gallery.folder / "zoo" / "job"
    shutil.copytree(first.folder, other)
    settings = yaml.safe_load((other / "config.yaml").read_text())
    settings["model"]["variant"] = "fp16"
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    try:
        asked = f"prompt=a&steps=1&seed={2**64 - 1}&weight:{quote(path_of(first))}=0.55"
        assert gallery.ask("/draw", "POST", asked)[0] == 200
        tab.open(f"{gallery.address}/draw?use=zoo/job")
        weight = f"document.querySelector(`[name='weight:{path_of(first)}']`)"
        assert tab.ask(weight) is None, "of another base model"
        tab.click("#strip .drawn .again")
        tab.until(f"{weight}?.value === '0.55'")
        assert tab.ask("document.querySelector('[name=prompt]').value") == "a"
        seed = tab.ask("document.querySelector('[name=seed]').value")
        assert seed == str(2**64 - 1), "to the last digit, which numbers of JavaScript have not"
        _, said = gallery.ask("/draw", "POST", f"prompt=a&seed={seed}&images=2")
        assert b"seed = 18446744073709551615: 2 images need seeds up to 18446744073709551616" in said
    finally:
        shutil.rmtree(other.parent)


def test_draws_with_a_file_from_elsewhere(gallery: Gallery) -> None:
    file = quote(f"file:{gallery.folder.parent / 'style.safetensors'}")
    form = f"prompt={quote(PROMPTS[0])}&seed=0&steps=3&guidance=3&weight:{file}=1"
    code, page = gallery.ask("/draw", "POST", form)
    assert code == 200
    found = re.search(rb'src="(/drawn/\d+.png)"', page)
    assert found and b"style" in page
    assert gallery.ask(found[1].decode())[1] == sample(gallery.jobs[1], "p00-s0.png")


def test_what_is_wrong_is_said_on_the_page(gallery: Gallery, tab: Tab) -> None:
    tab.open(f"{gallery.address}/draw")
    fill(tab, "prompt", "   ")
    tab.click(".go button")
    assert tab.until("document.querySelector('.fault p')?.textContent") == "Say what to draw."
    tab.click(".fault .dismiss")
    assert tab.ask("document.querySelector('.fault')") is None


def test_fits_a_phone_and_reaches_for_nothing(gallery: Gallery, tab: Tab) -> None:
    tab.size(390, 844, phone=True)
    for path in ("/", "/experiment/houses", f"/job/{path_of(gallery.jobs[0])}", "/draw", "/nothing"):
        tab.open(f"{gallery.address}{path}")
        assert tab.ask("document.documentElement.scrollWidth") == 390, path
        reached = tab.ask("performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)")
        assert set(reached) <= {gallery.address}, path
    tab.said[:] = [text for text in tab.said if "404" not in text]


def test_pages_from_elsewhere_are_refused(gallery: Gallery) -> None:
    here = f"127.0.0.1:{gallery.port}"
    assert gallery.ask("/")[0] == 200
    assert gallery.ask("/", Host=f"localhost:{gallery.port}")[0] == 200
    assert gallery.ask("/", Host="localhost:9000")[0] == 200, "a port that is forwarded"
    for host in ("evil.example", f"evil.example:{gallery.port}", f"10.0.0.1:{gallery.port}", ""):
        assert gallery.ask("/", Host=host)[0] == 403, host
    before = gallery.ask("/draw")[1].count(b'class="drawn"')
    form = "prompt=a&steps=1"
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://evil.example:{gallery.port}"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},
    ):
        assert gallery.ask("/draw", "POST", form, Host=here, **headers)[0] == 403, headers
    assert gallery.ask("/draw")[1].count(b'class="drawn"') == before
    assert gallery.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200, "a link is followed"
    assert gallery.ask("/drawn/1.png", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert gallery.ask("/draw", "POST", form, Host=here, Origin=f"http://{here}")[0] == 200


def test_nothing_outside_of_the_folder_is_shown(gallery: Gallery) -> None:
    job = path_of(gallery.jobs[0])
    assert gallery.ask(f"/picture/{job}/samples/step-000003/p00-s0.png")[0] == 200
    for path in (
        "../secret.png",
        "%2e%2e/secret.png",
        "outside/secret.png",
        f"{job}/../../../secret.png",
        quote(str(gallery.folder.parent / "secret.png"), safe=""),
        f"/{gallery.folder.parent}/secret.png",
        f"{job}/config.yaml",
        f"{job}/samples",
        "%00",
        "x" * 5000,
    ):
        for kind in ("picture", "small", "job", "experiment"):
            assert gallery.ask(f"/{kind}/{path}")[0] == 404, (kind, path)


def test_weights_that_are_none_are_refused(gallery: Gallery) -> None:
    job = quote(path_of(gallery.jobs[0]))
    for form, said in (
        (f"prompt=a&weight:{job}=2", "should be from 0 to 1.5"),
        (f"prompt=a&weight:{job}=nan", "should be from 0 to 1.5"),
        (f"prompt=a&weight:{job}=x", "should be a number"),
        ("prompt=a&weight:../secret=1", "is not a completed adapter"),
        ("prompt=a&size=9", "size = 9"),
    ):
        code, body = gallery.ask("/draw", "POST", form)
        assert code == 200
        assert said in body.decode(), form


def test_a_name_or_an_address_of_this_machine_is_told_when_all_may_ask() -> None:
    wide = Guard("0.0.0.0")
    assert not wide.refused("GET", {"host": "192.168.1.5"})
    assert not wide.refused("GET", {"host": f"{os.uname().nodename}:80"})
    assert wide.refused("GET", {"host": "evil.example"})
    assert wide.refused("GET", {"host": "[::1"})
    assert not Guard("::1").refused("GET", {"host": "[::1]:7878"})
    assert Guard("::1").refused("GET", {"host": "[fe80::1]:7878"})
    assert not Guard("0.0.0.0", any_name=True).refused("POST", {"host": "model.example"})
    assert Guard("127.0.0.1", any_name=True).refused("POST", {"host": "model.example"})


@pytest.mark.parametrize("port", ["99999", "-1", "0", "http"])
def test_what_is_no_port_is_refused(port: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--port", port])
    assert ended.value.code == 2
    assert f"--port: '{port}' is not a port; give a whole number from 1 to 65535" in capsys.readouterr().err


def test_the_address_that_is_printed_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uvicorn.Server, "run", lambda server: None)
    main([str(tmp_path), "--host", "::1"])
    assert capsys.readouterr().out.startswith("http://[::1]:7878/ ")


def test_listening_for_others_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main([str(tmp_path), "--adapter", "lost.safetensors"]) == 2
    assert "lost.safetensors: no such file" in capsys.readouterr().err
    assert main([str(tmp_path / ("x" * 300))]) == 2
    assert "File name too long: " in capsys.readouterr().err
    command = [sys.executable, "-m", "runner.gallery", str(tmp_path), "--host", "0.0.0.0", "--port", str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "warning: with --host 0.0.0.0, everybody who reaches this machine" in process.stderr.readline()
        process.terminate()
        process.communicate(timeout=30)
    assert json.dumps(process.returncode) in ("0", "-15", "143")
