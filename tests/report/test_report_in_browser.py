"""The page as a reader sees it: on a desk, on a phone, in the dark, without a network."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from runner.report import write_report

from .job_folders import change_manifest, write_job, write_sweep
from .page_reader import Browser, find_browser

MEASURE = """<!doctype html><title>waiting</title>
<iframe id=f style="width:390px;height:1200px;border:0"></iframe><pre id=said></pre>
<script>
f.onload = () => {
  const inside = f.contentDocument;
  for (const one of inside.querySelectorAll("details")) one.open = true;
  const beyond = (e) => !e.closest(".scroll > *") && !e.closest("svg") && e.getBoundingClientRect().right > 391;
  const wide = [...inside.querySelectorAll("main *")].filter(beyond).slice(0, 5).map((e) => e.outerHTML.slice(0, 80));
  said.textContent = JSON.stringify({ width: inside.documentElement.scrollWidth, wide });
};
f.srcdoc = PAGE;
</script>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return find_browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("outputs"))
    change_manifest(folder / "c3e5a7", name="a job with " + "averylongname" * 30, plan={"why": "W" * 400})
    (folder / "b2d4f6" / "samples" / "prompts.json").write_text(json.dumps({"prompts": ["long prompt " * 90] * 3}))
    write_report(folder)
    return folder


def brightness(image: Image.Image) -> float:
    return sum(image.resize((1, 1), Image.Resampling.BOX).convert("RGB").getpixel((0, 0))) / 3  # type: ignore[arg-type]


def test_no_sideways_scrolling_on_a_phone(tmp_path: Path, sweep: Path, browser: Browser) -> None:
    pages = [sweep / "report.html", write_report(sweep / "e5a7c9"), write_report(sweep / "c3e5a7")]
    for page in pages:
        source = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
        measure = tmp_path / "measure.html"
        measure.write_text(MEASURE.replace("PAGE", source), encoding="utf-8")
        dom = browser.dom(measure, "--virtual-time-budget=5000", "--window-size=800,1300")
        said = re.search(r"<pre id=\"said\">(.+?)</pre>", dom)
        assert said, "the page did not load in the frame"
        measured = json.loads(html.unescape(said[1]))
        assert measured == {"width": 390, "wide": []}, page.parent.name


def test_light_and_dark_follow_the_reader(sweep: Path, browser: Browser) -> None:
    light = browser.screenshot(sweep / "report.html", "--blink-settings=preferredColorScheme=1")
    dark = browser.screenshot(sweep / "report.html", "--blink-settings=preferredColorScheme=0")
    assert brightness(light.crop((0, 0, 30, 900))) > 240
    assert brightness(dark.crop((0, 0, 30, 900))) < 40
    title = (96, 40, 700, 150)
    assert light.crop(title).convert("L").getextrema()[0] < 60  # type: ignore[operator]
    assert dark.crop(title).convert("L").getextrema()[1] > 200  # type: ignore[operator]


def test_the_script_runs_under_its_policy_and_others_do_not(tmp_path: Path, sweep: Path, browser: Browser) -> None:
    # The page's script opens the job named after the #, which is the only trace it leaves by itself.
    page = (sweep / "report.html").read_text(encoding="utf-8")
    foreign = tmp_path / "foreign.html"
    foreign.write_text(page + "<script>document.title = 'taken over'</script>", encoding="utf-8")
    dom = browser.dom(foreign, fragment="job-b2d4f6")
    assert re.search(r'<details class="job" id="job-b2d4f6" open', dom)
    assert dom.count('<details class="job"') - 1 == len(re.findall(r'<details class="job" id="[^"]+">', dom))
    assert "<title>taken over" not in dom


def test_the_page_reaches_for_nothing(tmp_path: Path, sweep: Path, browser: Browser) -> None:
    # Chromium itself asks for updates and the time, so that the page's own requests are told apart by their host.
    lure = (sweep / "report.html").read_text(encoding="utf-8")
    bare = lure.replace("default-src 'none'; ", "").replace("img-src data:; ", "")
    bait = '<img src="http://bait.invalid/a.png">'
    for name, text, reached in (("page", lure, False), ("baited", lure + bait, False), ("open", bare + bait, True)):
        page, log = tmp_path / f"{name}.html", tmp_path / f"{name}.json"
        page.write_text(text, encoding="utf-8")
        browser.dom(page, f"--log-net-log={log}")
        asked = set(re.findall(r'"url":"(?:https?|wss?|ftp)://([^/"]+)', log.read_text(errors="replace")))
        assert ("bait.invalid" in asked) == reached
        assert {host for host in asked if not host.endswith((".google.com", ".googleapis.com", ".invalid"))} == set()


def test_a_job_page_renders_its_samples(tmp_path: Path, browser: Browser) -> None:
    page = write_report(write_job(tmp_path / "x" / "job"))
    picture = browser.screenshot(page, size=(1280, 1400))
    pixels = picture.crop((96, 380, 1180, 1300)).tobytes()
    red = sum(r > 180 and g < 90 and b < 80 for r, g, b in zip(*[iter(pixels)] * 3, strict=True))
    assert red > 3000
