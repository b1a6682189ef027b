"""A stand-in for the Hub over HTTP that serves data sets and models: listings, and files whole or in part."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import huggingface_hub.constants
import pytest

HANGS_UP = 0
NAME = r"([\w.-]+/[\w.-]+)"


@dataclasses.dataclass
class DataSets:
    """The files of each data set, all at one commit; which of them need a token; and who requested what."""

    files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    gated: set[str] = dataclasses.field(default_factory=set)
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    """Part of a path -> status that requests for it get; 0 for no answer."""
    requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    damaged: set[str] = dataclasses.field(default_factory=set)
    """Files that arrive with their last byte changed."""
    stuck: dict[str, threading.Event] = dataclasses.field(default_factory=dict)
    """Files that are sent only once this is set."""
    watched: Callable[[], int] = dataclasses.field(default=lambda: 0)
    """Returns how many bytes the client has on its disk ..."""
    most: int = 0
    """... and this is the largest number, with the file that was about to be sent."""
    address: str = ""

    def commit(self, name: str) -> str:
        """Changes with the files."""
        known = sorted((file, hashlib.sha1(content).hexdigest()) for file, content in self.files[name].items())
        return hashlib.sha1(json.dumps(known).encode()).hexdigest()

    def fetched(self) -> list[str]:
        """Files whose bytes were sent since the last call, in order."""
        found = [path.partition("/resolve/")[2].partition("/")[2] for verb, path in self.requests if verb == "GET"]
        self.requests.clear()
        return [file for file in found if file]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: DataSets

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, verb: str) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append((verb, path))
        status, content, headers = self._found(path)
        if status == HANGS_UP:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if verb != "HEAD":
            with suppress(ConnectionError):  # the client may be gone
                self.wfile.write(content)

    def _found(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if (status := next((status for part, status in self.hub.refused.items() if part in path), None)) is not None:
            return _fault(status, "", "out of order")
        for pattern, call in (
            (rf"/api/(?:datasets|models)/{NAME}(?:/revision/([^/]+))?", self._info),
            (rf"/api/(?:datasets|models)/{NAME}/tree/([^/]+)", self._tree),
            (rf"(?:/datasets)?/{NAME}/resolve/([^/]+)/(.+)", self._file),
        ):
            if found := re.fullmatch(pattern, path):
                name, revision, *rest = found.groups()
                if name not in self.hub.files:
                    return _fault(404, "RepoNotFound", "Repository not found")
                if revision not in (None, "main", self.hub.commit(name)):
                    return _fault(404, "RevisionNotFound", "Revision not found")
                return call(name, *rest)
        return _fault(404, "", f"no such call: {path}")

    def _info(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        about = {"id": name, "sha": self.hub.commit(name), "private": False, "tags": [], "downloads": 0}
        return _json(about | {"siblings": [{"rfilename": file} for file in self.hub.files[name]]})

    def _tree(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        entries = []
        for file, content in self.hub.files[name].items():
            entry = {"type": "file", "path": file, "size": len(content), "oid": _git(content)}
            if file.endswith(".parquet"):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return _json(entries)

    def _file(self, name: str, file: str) -> tuple[int, bytes, dict[str, str]]:
        if name in self.hub.gated and not self.headers.get("Authorization"):
            return _fault(401, "GatedRepo", "Access to this data set is restricted")
        content = self.hub.files[name].get(file)
        if content is None:
            return _fault(404, "EntryNotFound", "Entry not found")
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.hub.commit(name)}
        if self.command == "GET":
            self.hub.most = max(self.hub.most, self.hub.watched() + len(content))
            if file in self.hub.stuck:
                self.hub.stuck[file].wait(60)
        if file in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(part[1]), int(part[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return 206, content[start : end + 1], headers
        return 200, content, headers


def _json(found: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(found).encode(), {"Content-Type": "application/json"}


def _fault(status: int, code: str, text: str) -> tuple[int, bytes, dict[str, str]]:
    return status, b"", {"X-Error-Message": text, **({"X-Error-Code": code} if code else {})}


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def giving(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[DataSets]:
    """Such a Hub, which the client is made to use; `cache` is the folder for its downloads."""
    hub = DataSets()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
