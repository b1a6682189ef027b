"""The endpoint's two addresses, as SageMaker calls them.

`GET /ping`: 200 once the model is loaded; 503 before that, and after the GPU has failed. `POST /invocations`: JSON in,
JSON with base64 PNGs out, or the PNG alone for `Accept: image/png`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from runner.errors import RunnerError
from runner.schema.serving import Invocation, told
from runner.serve.service import Broken, Busy, Gone, Service
from runner.system.amounts import count
from runner.system.listening import Guard
from runner.system.printable import whole
from runner.train.drawing import Picture

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
"""Larger requests are rejected."""
RETRY_AFTER_S = "5"


def make_app(service: Service, *, guard: Guard, failed: Callable[[BaseException], None]) -> FastAPI:
    """The application.

    Args:
        guard: decides which requests are refused, because drawing keeps the GPU busy.
        failed: called with the reason when nothing can be drawn any more.
    """

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        def is_over(task: asyncio.Task[None]) -> None:
            # A server that ends before the model is loaded cancels this task.
            if not task.cancelled() and (error := task.exception()) is not None:
                failed(error)

        loading = asyncio.create_task(service.load())
        loading.add_done_callback(is_over)
        yield

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/ping")
    async def ping() -> Response:
        return Response(status_code=200 if service.ready else 503)

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        if reason := guard.refused(request.method, request.headers):
            return _refused(403, [reason])
        if not service.ready:
            return _refused(503, ["the model is being loaded; try again when /ping answers 200"])
        try:
            body = await _body(request)
        except ClientDisconnect:
            log.info("a request was cut off: the client has disconnected")
            return Response(status_code=503)  # nobody reads it
        if body is None:
            return _refused(413, [f"the request is longer than {MOST_BYTES} bytes"])
        try:
            raw = json.loads(body)
        except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
            return _refused(400, [f"the request is not JSON ({error})"])
        wanted, faults = told(Invocation, raw)
        if wanted is None:
            return _refused(400, faults)
        accepted = {each.partition(";")[0].strip() for each in request.headers.get("accept", "").split(",")}
        alone = "image/png" in accepted and "application/json" not in accepted
        if alone and wanted.count > 1:
            said = f"Accept = 'image/png': the request is for {wanted.count} images; ask for application/json"
            return _refused(400, [said])
        start = time.perf_counter()
        try:
            pictures = await service.draw(wanted, is_gone=request.is_disconnected)
        except RunnerError as error:
            return _refused(400, str(error).splitlines())
        except Busy as error:
            return _refused(503, [str(error)])
        except Gone:
            log.info("the client no longer waits for %s: not drawn", count(wanted.count, "image"))
            return Response(status_code=503)  # nobody reads it
        except Broken as error:
            failed(error)
            return _refused(500, [str(error)])
        log.info("%s in %.1f s", count(len(pictures), "image"), time.perf_counter() - start)
        if alone:
            return Response(pictures[0].png, media_type="image/png")
        return JSONResponse({"images": _images(wanted, pictures), "adapters": _used(service, wanted)})

    return app


async def _body(request: Request) -> bytes | None:
    """The body of a request; None if it is too long, in which case the rest is not read."""
    if int(request.headers.get("content-length") or 0) > MOST_BYTES:
        return None
    body = bytearray()
    async for part in request.stream():  # a body may come without a length
        body += part
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def _images(wanted: Invocation, pictures: list[Picture]) -> list[dict[str, object]]:
    return [
        {"prompt": prompt, "seed": seed, "png": base64.b64encode(picture.png).decode("ascii")}
        for (prompt, seed), picture in zip(wanted.wanted, pictures, strict=True)
    ]


def _used(service: Service, wanted: Invocation) -> dict[str, float]:
    return dict(service.serving.adapters if wanted.adapters is None else wanted.adapters)


def _refused(code: int, faults: list[str]) -> Response:
    headers = {"Retry-After": RETRY_AFTER_S} if code == 503 else None
    # A fault may quote the request, even half a character of it.
    return JSONResponse({"errors": [whole(fault) for fault in faults]}, status_code=code, headers=headers)
