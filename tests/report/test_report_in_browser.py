"""The page as a reader sees it: on a desk, on a phone, in the dark, without a network."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.job_folders import find_jobs
from runner.report import write_report

from .job_folders import change_config, change_manifest, write_job, write_search, write_sweep
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

WIDE = """<!doctype html><title>waiting</title>
<iframe id=f style="width:1280px;height:1200px;border:0"></iframe><pre id=said></pre>
<script>
f.onload = () => {
  const charts = [...f.contentDocument.querySelectorAll(".charts:not(.wide) svg.chart")];
  said.textContent = JSON.stringify(charts.map((svg) => Math.round(svg.getBoundingClientRect().width)));
};
f.srcdoc = PAGE;
</script>"""

# The labels of the curves' charts, and whether the first digit of each can be pointed at.
LABELS = """<!doctype html><title>waiting</title>
<iframe id=f style="width:WIDTHpx;height:9000px;border:0"></iframe><pre id=said></pre>
<script>
f.onload = () => {
  const inside = f.contentDocument, labels = [...inside.querySelectorAll("svg.chart[data-series] text")];
  said.textContent = JSON.stringify(labels.map((label) => {
    const box = label.getBoundingClientRect();
    return [label.textContent, inside.elementFromPoint(box.left + 1, (box.top + box.bottom) / 2) === label];
  }));
};
f.srcdoc = PAGE;
</script>"""

# Points at the charts of settings like a mouse or a finger, and returns what the page then shows.
POINT = """<!doctype html><title>waiting</title>
<iframe id=f style="width:WIDTHpx;height:9000px;border:0"></iframe><pre id=said></pre>
<script>
f.onload = () => {
  const inside = f.contentDocument, charts = [...inside.querySelectorAll("svg.marks")];
  const shown = charts.filter((svg) => svg.getBoundingClientRect().width);
  const told = (svg) => svg.parentElement.querySelector(".readout").textContent;
  const send = (svg, kind, x, y, more) =>
    svg.dispatchEvent(new f.contentWindow.PointerEvent(kind, { clientX: x, clientY: y, bubbles: true, ...more }));
  const over = (svg, mark, kind, more) => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const [x, y] = mark.points
      ? [(mark.points[0].x + mark.points[1].x) / 2, (mark.points[0].y + mark.points[1].y) / 2]
      : [mark.cx.baseVal.value, mark.cy.baseVal.value];
    send(svg, kind, box.left + x * scale, box.top + y * scale, more);
  };
  const marks = (svg) => [...svg.querySelectorAll(".mark")];
  const said = { shown: shown.length, hidden: charts.length - shown.length, hits: [] };
  for (const svg of shown) {
    const mark = marks(svg).at(-1);
    over(svg, mark, "pointermove");
    said.hits.push([mark.dataset.job, told(svg)]);
  }
  const on = () => inside.querySelectorAll(".mark.on");
  said.linked = [...new Set([...on()].map((mark) => mark.dataset.job))];
  said.marked = on().length;
  send(shown.at(-1), "pointerleave", 0, 0, { pointerType: "mouse" });
  said.left = on().length;
  over(shown[0], marks(shown[0]).at(-1), "pointerdown", { pointerType: "touch" });
  send(shown[0], "pointerleave", 0, 0, { pointerType: "touch" });
  said.tapped = [on().length, told(shown[0])];
  over(shown[1], marks(shown[1])[0], "pointerdown", { pointerType: "touch" });
  said.again = [told(shown[0]), told(shown[1]), on()[0].dataset.job];
  said.size = parseFloat(f.contentWindow.getComputedStyle(shown[0].querySelector("text")).fontSize)
    * shown[0].getBoundingClientRect().width / shown[0].viewBox.baseVal.width;
  const boxes = (svg) => [...svg.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
  const touch = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
  said.touching = shown.flatMap((svg) => boxes(svg).filter((box, i, all) => all.slice(0, i).some((o) => touch(o, box))))
    .length;
  said.cut = shown.flatMap((svg) => boxes(svg).filter((box) => {
    const edge = svg.getBoundingClientRect();
    return box.left < edge.left - 1 || box.right > edge.right + 1 || box.bottom > edge.bottom + 1;
  })).length;
  document.getElementById("said").textContent = JSON.stringify(said);
};
f.srcdoc = PAGE;
</script>"""


def asked(tmp_path: Path, browser: Browser, page: Path, script: str) -> Any:
    """What a script reports about a page that it holds in a frame."""
    source = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    outer = tmp_path / "outer.html"
    outer.write_text(script.replace("PAGE", source), encoding="utf-8")
    dom = browser.dom(outer, "--virtual-time-budget=5000", "--window-size=1400,1300")
    said = re.search(r"<pre id=\"said\">(.+?)</pre>", dom)
    assert said, "the page did not load in the frame"
    return json.loads(html.unescape(said[1]))


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


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_search(tmp_path_factory.mktemp("outputs"), 40, draws=2)
    write_report(folder)
    return folder


def brightness(image: Image.Image) -> float:
    return sum(image.resize((1, 1), Image.Resampling.BOX).convert("RGB").getpixel((0, 0))) / 3  # type: ignore[arg-type]


def test_no_sideways_scrolling_on_a_phone(tmp_path: Path, sweep: Path, browser: Browser) -> None:
    pages = [sweep / "report.html", write_report(sweep / "e5a7c9"), write_report(sweep / "c3e5a7")]
    pages.append(write_report(write_search(tmp_path, 12)))
    for page in pages:
        assert asked(tmp_path, browser, page, MEASURE) == {"width": 390, "wide": []}, page.parent.name


HEADS = """<!doctype html>
<iframe id=f style="width:WIDTHpx;height:900px;border:0"></iframe><pre id="said"></pre>
<script>
f.onload = () => {
  const heads = [...f.contentDocument.querySelectorAll(".compare thead a")];
  said.textContent = JSON.stringify(heads.map((head) => head.scrollHeight > head.clientHeight + 2));
};
f.srcdoc = PAGE;
</script>"""


@pytest.mark.parametrize("width_px", [390, 1280])
def test_what_tells_samples_apart_is_read_whole(tmp_path: Path, browser: Browser, width_px: int) -> None:
    for rate in (f"0.000{digit}" for digit in range(1, 8)):
        job = write_job(tmp_path / "x" / rate, sampled=[0, 40])
        settings = [f"{key}={rate}" for key in ("optimizer.weight_decay", "lora.dropout", "optimizer.lr")]
        change_manifest(job, name="x", overrides=settings)
    page = write_report(tmp_path / "x")
    assert asked(tmp_path, browser, page, HEADS.replace("WIDTH", str(width_px))) == [False] * 7


RESULTS = """<!doctype html>
<iframe id=f style="width:390px;height:900px;border:0"></iframe><pre id="said"></pre>
<script>
f.onload = () => {
  const ends = (which) => [...f.contentDocument.querySelectorAll(which)].map((e) => e.getBoundingClientRect().right);
  const value = f.contentDocument.createRange(), text = f.contentDocument.querySelector(".compare thead a").lastChild;
  value.setStart(text, text.length - 6);
  value.setEnd(text, text.length);
  said.textContent = JSON.stringify([Math.max(...ends(".ranking .objective")) < 390, value.getClientRects().length]);
};
f.srcdoc = PAGE;
</script>"""


def test_a_phone_shows_each_result_beside_its_job_and_no_number_in_two_parts(tmp_path: Path, browser: Browser) -> None:
    for rate in ("1000000000.0", "0.009062"):
        job = write_job(tmp_path / "x" / rate, sampled=[0, 40])
        change_manifest(job, name="x", overrides=[f"optimizer.lr={rate}"])
    assert asked(tmp_path, browser, write_report(tmp_path / "x"), RESULTS) == [True, 1]


PROMPTS = """<!doctype html>
<iframe id=f style="width:WIDTHpx;height:900px;border:0"></iframe><pre id="said"></pre>
<script>
f.onload = () => {
  const grid = f.contentDocument.querySelector(".compare").parentElement;
  const parts = [...grid.querySelectorAll(".prompt .text, .prompt small")];
  const outside = (e) => e.getBoundingClientRect().left < 0 || e.getBoundingClientRect().right > WIDTH;
  const beyond = [parts.filter(outside).length];
  grid.scrollLeft = 9999;
  said.textContent = JSON.stringify([...beyond, parts.filter(outside).length, grid.scrollLeft > 300]);
};
f.srcdoc = PAGE;
</script>"""


@pytest.mark.parametrize("width_px", [390, 1280])
def test_a_prompt_and_its_seed_stay_in_sight(tmp_path: Path, browser: Browser, width_px: int) -> None:
    folder = write_search(tmp_path, 12)
    for job in find_jobs(folder):
        (job / "samples" / "prompts.json").write_text(json.dumps({"prompts": ["a long prompt " * 12] * 3}))
    page = write_report(folder)
    assert asked(tmp_path, browser, page, PROMPTS.replace("WIDTH", str(width_px))) == [0, 0, True]


def test_light_and_dark_follow_the_reader(sweep: Path, browser: Browser) -> None:
    light = browser.screenshot(sweep / "report.html", "--blink-settings=preferredColorScheme=1")
    dark = browser.screenshot(sweep / "report.html", "--blink-settings=preferredColorScheme=0")
    assert brightness(light.crop((0, 0, 30, 900))) > 240
    assert brightness(dark.crop((0, 0, 30, 900))) < 40
    title = (96, 40, 700, 150)
    assert light.crop(title).convert("L").getextrema()[0] < 60  # type: ignore[operator]
    assert dark.crop(title).convert("L").getextrema()[1] > 200  # type: ignore[operator]


@pytest.mark.parametrize("width_px", [390, 1280])
def test_pointing_at_a_point_or_a_line_names_its_job(
    tmp_path: Path, search: Path, browser: Browser, width_px: int
) -> None:
    said = asked(tmp_path, browser, search / "report.html", POINT.replace("WIDTH", str(width_px)))
    assert (said["shown"], said["hidden"]) == (7, 1), "one of the two drawings of the lines, and six scatters"
    assert len({job for job, _ in said["hits"]}) == 1, "the best lies on top in each"
    assert [text.split(" · ")[0] for _, text in said["hits"]] == [job for job, _ in said["hits"]]
    assert said["hits"][0][1].count(",") == 5, "a line names all of its settings"
    assert said["linked"] == [said["hits"][0][0]]
    assert said["marked"] == 8, "the job is picked out in every chart"
    assert said["left"] == 0
    assert said["tapped"] == [8, said["hits"][0][1]], "what a tap shows stays when the finger is gone"
    rest, other, picked = said["again"]
    assert rest.startswith("Each line is a job")
    assert other.split(" · ")[0] == picked != said["hits"][0][0]


@pytest.mark.parametrize("width_px", [390, 700, 1280])
def test_labels_of_settings_are_legible_and_apart(
    tmp_path: Path, search: Path, browser: Browser, width_px: int
) -> None:
    for number, rank in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 100)):
        job = write_job(tmp_path / "crowded" / f"j{number}", rank=rank, sampled=[])
        change_config(
            job, dataset__path=f"data/photographs-of-houses-{'x' * (number % 8)}-by-the-sea", seed=number // 2
        )
    for folder in (search, tmp_path / "crowded"):
        said = asked(tmp_path, browser, write_report(folder), POINT.replace("WIDTH", str(width_px)))
        assert (said["touching"], said["cut"]) == (0, 0), folder.name
    assert said["size"] > {390: 11, 700: 8.5, 1280: 11.5}[width_px]


CURVES = """<!doctype html>
<iframe id=f style="width:1280px;height:4000px;border:0"></iframe><pre id="said"></pre>
<script>
f.onload = () => {
  const svg = f.contentDocument.querySelector("svg.chart[data-series]"), box = svg.getBoundingClientRect();
  const at = (x) => new f.contentWindow.PointerEvent("pointermove", { clientX: x, bubbles: true });
  const told = (x) => (svg.dispatchEvent(at(x)), svg.parentElement.querySelector(".readout").textContent);
  said.textContent = JSON.stringify([told(box.left), told(box.right)]);
};
f.srcdoc = PAGE;
</script>"""


def test_pointing_beyond_the_end_of_a_curve_says_where_it_ended(tmp_path: Path, browser: Browser) -> None:
    whole = write_job(tmp_path / "x" / "whole", rank=4, sampled=[], objective=0.1)
    write_job(tmp_path / "x" / "stopped", rank=8, steps=80, sampled=[], state="pruned", objective=None)
    page = write_report(whole.parent)
    rest = html.unescape(re.findall(r'data-rest="(.*?)"', page.read_text())[0])
    start, end = asked(tmp_path, browser, page, CURVES)
    assert re.fullmatch(r"step 0 · rank 4, lr 0.001: 0\.\d+ · rank 8, lr 0.001: 0\.\d+", start), "the best first"
    assert end == f"step 200 · {rest} at step 80"


def test_a_chart_that_stands_alone_is_as_wide_as_one_of_several(tmp_path: Path, browser: Browser) -> None:
    """Stretched across the page, it would be twice as high, with letters of twice the size."""
    alone, several = (write_job(tmp_path / name / "job", sampled=[]) for name in ("alone", "several"))
    lines = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: line[key] for key in ("step", "time", "train/loss") if key in line} for line in lines]
    (alone / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))

    (only,) = asked(tmp_path, browser, write_report(alone.parent), WIDE)
    first, second, *_ = asked(tmp_path, browser, write_report(several.parent), WIDE)
    assert only == first == second < 640


@pytest.mark.parametrize("width_px", [390, 1280])
def test_the_values_of_curves_that_hardly_differ_are_read_whole(
    tmp_path: Path, browser: Browser, width_px: int
) -> None:
    job = write_job(tmp_path / "close" / "job", sampled=[])
    close = [{"step": step, "validation/loss": 0.3148 - step * 2e-5} for step in (1, 5)]
    (job / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in close))
    labels = asked(tmp_path, browser, write_report(job.parent), LABELS.replace("WIDTH", str(width_px)))
    assert any(len(label) >= 7 for label, _ in labels) and [label for label, whole in labels if not whole] == []


def test_the_charts_of_settings_follow_light_and_dark(search: Path, browser: Browser) -> None:
    page = search.parent / "charts.html"
    source = (search / "report.html").read_text(encoding="utf-8")
    start = source.index('<section class="settings">')
    page.write_text(source[: source.index("<main>")] + "<main>" + source[start:], encoding="utf-8")
    light = browser.screenshot(page, "--blink-settings=preferredColorScheme=1")
    dark = browser.screenshot(page, "--blink-settings=preferredColorScheme=0")
    chart = (96, 150, 1180, 420)
    for image, paper in ((light, (252, 252, 250)), (dark, (18, 19, 22))):
        colours = image.crop(chart).getcolors(maxcolors=1_000_000)
        assert colours
        assert max(colours)[1] == paper
        strongest = max(sum(abs(a - b) for a, b in zip(colour, paper, strict=True)) for _, colour in colours)  # type: ignore[arg-type]
        assert strongest > 350, "the best line stands out from the paper"


def test_the_script_runs_under_its_policy_and_others_do_not(tmp_path: Path, sweep: Path, browser: Browser) -> None:
    # The page's script opens the job named after the #; it leaves no other trace by itself.
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
