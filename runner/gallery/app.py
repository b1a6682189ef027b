"""The pages of the gallery, and the pictures on them."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from jinja2 import ChoiceLoader, FileSystemLoader
from markupsafe import Markup
from PIL import Image
from starlette.requests import ClientDisconnect

from runner.errors import RunnerError
from runner.gallery.easel import MOST_WEIGHT, SAMPLERS, WEIGHT, Easel
from runner.gallery.shelf import NotThere, Shelf
from runner.gallery.table import MOST_JOBS, over_steps, side_by_side
from runner.report.evaluations import apart
from runner.report.page import TEMPLATES as REPORT
from runner.report.page import environment
from runner.report.ranking import Ranking
from runner.report.several import comparison_charts, experiment_sentence, facts_of_experiment
from runner.report.views import view_job
from runner.report.words import job_sentence
from runner.system.amounts import count
from runner.system.listening import Guard
from runner.system.printable import whole

HERE = Path(__file__).parent
THUMBNAIL_PX, SMALL_PX = 384, 128
"""Longest side of reduced pictures; pictures up to the smaller size are shown enlarged, pixel by pixel."""
MOST_FORM_BYTES = 1 << 18
PICTURES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
KEPT = {"Cache-Control": "private, max-age=3600"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every response: nothing is loaded from other sites, and other sites can embed nothing from here."""


def make_app(folder: Path, *, host: str, device: str, files: Sequence[Path] = ()) -> FastAPI:
    """The application for a folder of experiments, listening at an address."""
    shelf, guard = Shelf(folder, files), Guard(host)
    easel = Easel(shelf, device)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages = environment(ChoiceLoader([FileSystemLoader(HERE / "templates"), FileSystemLoader(REPORT)]))
    pages.filters["address"] = lambda path: Markup(quote(whole(str(path))))

    def page(name: str, status: int = 200, **content: Any) -> Response:
        # Folder names may not be valid UTF-8.
        return HTMLResponse(whole(pages.get_template(name).render(root=shelf.root.name, **content)), status)

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        why = guard.refused(request.method, request.headers)
        response = PlainTextResponse(f"refused: {why}\n", 403) if why else await answer(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(404)
    @app.exception_handler(NotThere)
    async def not_there(_request: Request, _error: Exception) -> Response:
        return page("missing.html.j2", 404)

    @app.exception_handler(ClientDisconnect)
    async def hung_up(_request: Request, _error: Exception) -> Response:
        return Response(status_code=503)  # nobody reads it

    @app.get("/")
    def home() -> Response:
        return page("home.html.j2", covers=[shelf.cover(each) for each in shelf.experiments()])

    @app.get("/experiment/{path:path}")
    def experiment(path: str) -> Response:
        found = shelf.experiment(path)
        ranking = shelf.ranking([shelf.path_of(each) for each in found.folders])
        return page("compare.html.j2", **_compared(ranking, shelf), title=found.name, whole=True)

    @app.get("/compare")
    def compare(job: list[str] = Query(default=[])) -> Response:  # noqa: B008 - this is how FastAPI does it
        if not job:
            return RedirectResponse("/")  # nothing was chosen
        return page("compare.html.j2", **_compared(shelf.ranking(job), shelf), title="Side by side", whole=False)

    @app.get("/job/{path:path}")
    def job(path: str) -> Response:
        record, figures = shelf.job(path)
        view = view_job(record, None, root=record.folder, figures=figures)
        return page(
            "job.html.j2",
            view=view,
            usable=shelf.is_usable(record),
            table=over_steps(record, shelf),
            path=path,
            sentence=job_sentence(record),
        )

    @app.get("/draw")
    def draw(base: str = "", use: str = "") -> Response:
        bases = shelf.bases()
        using = next((each for each in bases for usable in each.adapters if usable.path == use), None)
        chosen = using or next((each for each in bases if each.key == base), bases[0] if bases else None)
        return page(
            "draw.html.j2", bases=bases, base=chosen, use=use, samplers=SAMPLERS, most_weight=MOST_WEIGHT,
            weight=WEIGHT, drawn=[*easel.drawn.values()][::-1],
        )  # fmt: skip

    @app.post("/draw")
    async def drawn(request: Request) -> Response:
        length = request.headers.get("content-length")
        if length is None or int(length) > MOST_FORM_BYTES:  # without it, the body may have any length
            return PlainTextResponse("the form is too long", 413)
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))
        try:
            return page("drawn.html.j2", drawn=await easel.draw(form), fault="")
        except RunnerError as error:
            return page("drawn.html.j2", drawn=[], fault=str(error))

    _add_files(app, shelf, easel)
    return app


def _add_files(app: FastAPI, shelf: Shelf, easel: Easel) -> None:
    """Add what the pages refer to: pictures, styles and scripts."""

    @app.get("/drawn/{number}.png")
    def picture(number: int) -> Response:
        if number not in easel.drawn:
            raise NotThere(str(number))
        return Response(easel.drawn[number].png, media_type="image/png", headers=KEPT)

    def file_of(path: str) -> Path:
        file = shelf.inside(path)
        if file.suffix.lower() not in PICTURES or not file.is_file():
            raise NotThere(path)
        return file

    @app.get("/picture/{path:path}")
    def large(path: str) -> Response:
        file = file_of(path)
        return Response(file.read_bytes(), media_type=PICTURES[file.suffix.lower()])

    @app.get("/small/{path:path}")
    def small(path: str) -> Response:
        return Response(_small(file_of(path)), media_type="image/webp")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise NotThere(name)
        kind, files = STATIC[name]
        return Response("\n".join(file.read_text(encoding="utf-8") for file in files), media_type=kind)


STATIC = {
    "style.css": ("text/css", (REPORT / "style.css", HERE / "static" / "gallery.css")),
    "hover.js": ("text/javascript", (REPORT / "hover.js",)),
    "gallery.js": ("text/javascript", (HERE / "static" / "gallery.js",)),
    "htmx.js": ("text/javascript", (HERE / "static" / "htmx.min.js",)),
}


def _compared(ranking: Ranking, shelf: Shelf) -> dict[str, Any]:
    values = [entry.value is not None for entry in ranking.entries]
    folders = {job.folder for job in apart([entry.job for entry in ranking.entries])[0]}
    # As in the report, only trainings are counted; their evaluations are in the list.
    counted = replace(ranking, entries=[entry for entry in ranking.entries if entry.job.folder in folders])
    measured = len(ranking.entries) - len(counted.entries)
    return {
        "entries": [(entry, shelf.path_of(entry.job.folder), shelf.is_usable(entry.job)) for entry in ranking.entries],
        "counted": count(len(counted.entries), "job") + (f", {count(measured, 'evaluation')}" if measured else ""),
        "sentence": experiment_sentence(counted) if len(counted.entries) > 1 else job_sentence(counted.entries[0].job),
        "facts": facts_of_experiment(counted) if len(counted.entries) > 1 and any(values) else [],
        "measured": any(values),
        "label": ranking.aim.label(ranking.entries[0].job),
        "table": side_by_side(ranking.entries, shelf),
        "shown": MOST_JOBS,
        "charts": comparison_charts(ranking),
    }


def _small(file: Path) -> bytes:
    """The picture as WebP, reduced for a page with many; that of a miniature unchanged."""
    stream = io.BytesIO()
    try:
        with Image.open(file) as image:
            exact = max(image.size) <= SMALL_PX
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise NotThere(file.name) from error
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    picture.save(stream, "WEBP", lossless=exact, quality=84)
    return stream.getvalue()
