"""A stand-in for the Hub over HTTP: accounts, repositories, preupload, LFS and commits; it keeps what it is sent.

Large files go through LFS: a commit accepts them only if they were sent before and match their hash.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

LFS_SUFFIXES = (".safetensors", ".png")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    commits: list[str] = dataclasses.field(default_factory=list)


class Hub:
    """The contents of the Hub, and who may do what."""

    def __init__(self) -> None:
        self.accounts: dict[str, dict[str, Any]] = {
            "hf_writes": {"name": "ann", "orgs": [{"name": "studio"}], "auth": {"accessToken": {"role": "write"}}},
            "hf_reads": {"name": "ann", "orgs": [], "auth": {"accessToken": {"role": "read"}}},
        }
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.refused: dict[str, int] = {}
        """Part of a path -> status that calls to it get."""
        self.address = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, verb: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body, path = self.rfile.read(length), self.path.partition("?")[0]
        self.hub.calls.append((verb, path))
        status, found = self._route(verb, path, body)
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status >= 400:
            self.send_header("X-Error-Message", str(found.get("error")))
        if status == 404 and "Repository" in str(found.get("error")):
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _route(self, verb: str, path: str, body: bytes) -> tuple[int, Any]:
        hub = self.hub
        for part, status in hub.refused.items():
            if part in path:
                return status, {"error": f"not for you ({part})"}
        if verb == "PUT" and (found := re.fullmatch(r"/storage/(\w+)", path)):  # signed addresses need no token
            if hashlib.sha256(body).hexdigest() != found[1]:
                return 400, {"error": "other content than was announced"}
            hub.objects[found[1]] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        account = hub.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if account is None:
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, account
        if path == "/api/repos/create":
            return self._create(json.loads(body), account)
        for pattern, call in (
            (r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", self._preupload),
            (r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/api/models/([\w.-]+/[\w.-]+)/commit/main", self._commit),
            (r"/api/models/([\w.-]+/[\w.-]+)", self._info),
        ):
            if found := re.fullmatch(pattern, path):
                repository = hub.repositories.get(found[1])
                return (404, {"error": "Repository not found"}) if repository is None else call(repository, body)
        return 404, {"error": f"no such call: {verb} {path}"}

    def _validate(self, content: str) -> tuple[int, Any]:
        front = yaml.safe_load(content.split("---")[1])
        if "base_model" in front and not HUB_ID.fullmatch(front["base_model"]):
            return 400, {"errors": [{"message": '"base_model" must be a Hub id'}], "error": "bad metadata"}
        return 200, {"errors": [], "warnings": []}

    def _create(self, given: dict[str, Any], account: dict[str, Any]) -> tuple[int, Any]:
        owner = given.get("organization") or account["name"]
        if owner not in {account["name"], *(each["name"] for each in account["orgs"])}:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        name = f"{owner}/{given['name']}"
        about = {"url": f"{self.hub.address}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            return 409, {"error": "You already created this model repo", **about}
        self.hub.repositories[name] = Repository(given.get("visibility") == "private" or bool(given.get("private")))
        return 200, about

    def _preupload(self, repository: Repository, body: bytes) -> tuple[int, Any]:
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(body)["files"]
        ]
        return 200, {"files": files}

    def _batch(self, repository: Repository, body: bytes) -> tuple[int, Any]:
        objects = []
        for each in json.loads(body)["objects"]:
            known = each["oid"] in self.hub.objects
            upload = {"upload": {"href": f"{self.hub.address}/storage/{each['oid']}", "header": {}}}
            objects.append({"oid": each["oid"], "size": each["size"], **({} if known else {"actions": upload})})
        return 200, {"transfer": "basic", "objects": objects}

    def _commit(self, repository: Repository, body: bytes) -> tuple[int, Any]:
        lines = [json.loads(line) for line in body.splitlines()]
        assert [line["key"] for line in lines].count("header") == 1
        changed = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return 400, {"error": f"{value['path']} was not sent"}
                changed[value["path"]] = self.hub.objects[value["oid"]]
        repository.files |= changed
        repository.commits.append(lines[0]["value"]["summary"])
        oid = hashlib.sha1(body).hexdigest()
        name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        return 200, {"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid, "success": True}

    def _info(self, repository: Repository, body: bytes) -> tuple[int, Any]:
        name = next(name for name, each in self.hub.repositories.items() if each is repository)
        siblings = [{"rfilename": path, "size": len(content)} for path, content in repository.files.items()]
        return 200, {"id": name, "private": repository.private, "siblings": siblings, "tags": [], "downloads": 0}


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that listens on this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
