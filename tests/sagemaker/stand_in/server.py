"""The front door: one port for all services; records requests, answers ours, and hands the rest to moto."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

from .calls import Call, error_body, read_call
from .protocol import ServiceError, answer_of, check_request

IP_FREEBIND = 15
"""Linux: an address may be bound before an interface has it."""

CLIENTS = {
    "sagemaker": "sagemaker",
    "servicequotas": "service-quotas",
    "pricing": "pricing",
}
"""Services that are answered here, and the names of their clients in botocore."""

Operation = Callable[[dict[str, Any], Call], dict[str, Any]]


@dataclasses.dataclass
class Reply:
    """A complete HTTP answer."""

    body: bytes
    kind: str
    headers: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    status: int = 200


class _QuietHandler(MotoRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: a line per request would bury a test's output."""

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        """If the gate gives no answer, the client must see the connection end instead of waiting."""
        self.close_connection = True


class FrontDoor:
    """A WSGI application, and the servers that it listens on."""

    def __init__(self, gate: Callable[[Call], None], raw: dict[str, Callable[[Call, dict[str, Any]], Reply]]) -> None:
        """`gate` may refuse a call or drop its connection; `raw` answers operations that are not JSON."""
        self.operations: dict[tuple[str, str], Operation] = {}
        self.faults: list[str] = []
        """Tracebacks of our own errors: a test that leaves any behind fails."""
        self.gate, self.raw = gate, raw
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._servers: list[BaseWSGIServer] = []
        self._threads: list[threading.Thread] = []
        logging.getLogger("werkzeug").setLevel(logging.ERROR)

    def listen(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Answer on an address; returns the port."""
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
            bound.bind((host, port))
            bound.listen(128)
            port = bound.getsockname()[1]
            server = make_server(host, port, self, threaded=True, request_handler=_QuietHandler, fd=bound.fileno())
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True, name=f"front door {port}")
        thread.start()
        self._servers.append(server)
        self._threads.append(thread)
        return port

    def close(self) -> None:
        """Stop answering."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        length = environ.get("CONTENT_LENGTH")
        body = environ["wsgi.input"].read(*([int(length)] if length else [])) if _has_body(environ) else b""
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        # With this header, moto would treat the body as chunked; it has already been read.
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        call = read_call(environ, body)
        reply: Reply | None
        try:
            self.gate(call)
            reply = self._answer(call, environ)
        except ServiceError as error:
            call.error = error.code
            kind, content = error_body(call, error)
            reply = Reply(content, kind, [("x-amzn-ErrorType", error.code)], error.status)
        if reply is None:
            answer: Iterable[bytes] = self._moto(environ, self._noting(call, start_response))
            return answer
        call.status = reply.status
        headers = [("Content-Type", reply.kind), ("Content-Length", str(len(reply.body))), *reply.headers]
        start_response(f"{reply.status} {'OK' if reply.status == 200 else 'Error'}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [reply.body]

    def _answer(self, call: Call, environ: dict[str, Any]) -> Reply | None:
        """Our answer; None for what moto answers."""
        try:
            if call.action in self.raw:
                return self.raw[call.action](call, environ)
            client = CLIENTS.get(call.service)
            if client is None:
                return None
            operation = self.operations.get((call.service, call.operation))
            if operation is None:
                message = f"The stand-in does not imitate {call.service}:{call.operation}."
                self.faults.append(message)
                raise ServiceError("UnknownOperationException", message)
            check_request(client, call.operation, call.parameters)
            answer = answer_of(client, call.operation, operation(call.parameters, call))
            return Reply(json.dumps(answer).encode(), "application/x-amz-json-1.1")
        except (ServiceError, ConnectionError):
            raise
        except Exception as error:
            self.faults.append(traceback.format_exc())
            raise ServiceError("InternalFailure", f"{type(error).__name__}: {error}", 500) from error

    def _noting(self, call: Call, start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], failure: Any = None) -> Any:
            call.status = int(status.split()[0])
            if call.status >= 500:
                self.faults.append(f"moto answers {call.action} with {status}.")
            return start_response(status, headers, failure)

        return start


def _has_body(environ: dict[str, Any]) -> bool:
    return bool(environ.get("CONTENT_LENGTH")) or bool(environ.get("wsgi.input_terminated"))
