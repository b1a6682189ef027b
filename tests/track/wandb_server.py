"""A W&B server just large enough for real online runs over HTTP: metrics, media, artifacts, resume, sweeps, views."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Variables = dict[str, Any]


class WandbServer(ThreadingHTTPServer):
    """Listens on a free local port from the start until `stop`; keeps what it receives in plain dicts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.sweep: dict[str, Any] = {}
        """Its `config` as YAML, and the `commands` for its agent, one list for each heartbeat."""
        self.views: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []
        self.stopped = False
        self.deny = False
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Act dead: refuse new connections and drop the open ones."""
        if not self.stopped:
            self.stopped = True
            self.shutdown()
            self.server_close()

    def storage(self, name: str) -> str:
        """The address to upload a file to."""
        return f"{self.url}/storage/{name}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep broken connections out of the test's output."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log nothing."""

    def _send(self, answer: Any) -> None:
        if self.server.stopped:
            self.close_connection = True
            return
        body = json.dumps(answer).encode()
        self.send_response(401 if self.server.deny else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def do_GET(self) -> None:
        self._send({})

    def do_HEAD(self) -> None:
        self._send({})

    def do_PUT(self) -> None:
        self.server.uploads[self.path.removeprefix("/storage/")] = self._body()
        self._send({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            self._send(self._graphql(json.loads(body)))
        elif self.path.endswith("/file_stream"):
            self._file_stream(json.loads(body))
            self._send({"exitcode": None, "limits": {}})
        else:
            self._send({})

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation = named[1] if named else "?"
        if operation not in OPERATIONS:
            self.server.unknown.append(operation)
            return {"errors": [{"message": f"this server does not know {operation}"}]}
        variables = request.get("variables") or {}
        return {"data": OPERATIONS[operation](self.server, variables.get("input", variables))}

    def _file_stream(self, told: dict[str, Any]) -> None:
        run = self.server.runs[self.path.split("/")[-2]]
        for name, chunk in told.get("files", {}).items():
            if name == "wandb-history.jsonl":
                run["history"] += [json.loads(line) for line in chunk["content"]]
            if name == "wandb-summary.json":
                run["summary"] = json.loads(chunk["content"][-1])
        run["preempting"] = run.get("preempting", False) or bool(told.get("preempting"))
        if told.get("complete"):
            run["exit_code"] = told["exitcode"]


def _viewer(server: WandbServer, told: Variables) -> Any:
    person = {"id": "u", "entity": "me", "username": "me", "email": "me@example.com", "flags": "{}"}
    return {"viewer": {**person, "teams": {"edges": []}}}


def _resume(server: WandbServer, told: Variables) -> Any:
    run = server.runs.get(told["name"])
    bucket = run and {
        "id": run["name"], "name": run["name"], "displayName": run["displayName"],
        "summaryMetrics": json.dumps(run["summary"]), "historyLineCount": len(run["history"]),
        "historyTail": json.dumps([json.dumps(line) for line in run["history"][-1:]]),
        "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]", "notes": None,
        "config": json.dumps(run["config"]), "tags": run.get("tags", []), "wandbConfig": json.dumps({"t": 1}),
    }  # fmt: skip
    return {"model": {"id": "p", "name": told["project"], "entity": {"id": "e", "name": "me"}, "bucket": bucket}}


def _upsert(server: WandbServer, told: Variables) -> Any:
    new = told["name"] not in server.runs
    # The first call sets the owner; from then on, wandb follows the answer, which is the same for everyone.
    fresh = {"name": told["name"], "displayName": told["name"], "history": [], "summary": {}, "config": {},
             "entity": told.get("entity")}  # fmt: skip
    run = server.runs.setdefault(told["name"], fresh)
    run.update({k: told[k] for k in ("displayName", "groupName", "jobType", "tags", "state", "sweep") if told.get(k)})
    run["project"] = told.get("project")
    if told.get("config"):
        run["config"] = json.loads(told["config"])
    bucket = {
        "id": run["name"], "name": run["name"], "displayName": run["displayName"], "description": "",
        "config": json.dumps(run["config"]), "sweepName": run.get("sweep"), "historyLineCount": len(run["history"]),
        "project": {"id": "p", "name": told.get("project") or "lora", "entity": {"id": "e", "name": "me"}},
    }  # fmt: skip
    return {"upsertBucket": {"bucket": bucket, "inserted": new}}


def _create_run_files(server: WandbServer, told: Variables) -> Any:
    files = [{"name": name, "uploadUrl": server.storage(f"{told['run']}/{name}")} for name in told["files"]]
    return {"createRunFiles": {"runID": told["run"], "uploadHeaders": [], "files": files}}


def _create_artifact(server: WandbServer, told: Variables) -> Any:
    identity = f"A{len(server.artifacts)}"
    server.artifacts[identity] = {
        "state": "PENDING", "name": told["artifactCollectionName"], "type": told["artifactTypeName"],
        "aliases": [entry["alias"] for entry in told["aliases"] or []], "run": told["runName"],
        "metadata": json.loads(told["metadata"] or "{}"), "files": [],
    }  # fmt: skip
    answer = {"id": identity, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
    return {"createArtifact": {"artifact": answer}}


def _create_manifest(server: WandbServer, told: Variables) -> Any:
    identity = told.get("artifactID") or told.get("artifactId")
    file = {"id": "f", "name": "m", "displayName": "m", "uploadHeaders": []}
    file["uploadUrl"] = server.storage(f"manifest/{identity}")
    return {"createArtifactManifest": {"artifactManifest": {"id": f"M{identity}", "file": file}}}


def _create_artifact_files(server: WandbServer, told: Variables) -> Any:
    edges = []
    for file in told["artifactFiles"]:
        name, identity = file["name"], file["artifactID"]
        server.artifacts[identity]["files"].append(name)
        node = {
            "id": "f", "name": name, "displayName": name, "uploadUrl": server.storage(f"{identity}/{name}"),
            "uploadHeaders": [], "uploadMultipartUrls": None, "storagePath": name, "artifact": {"id": identity},
        }  # fmt: skip
        edges.append({"node": node})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _commit(server: WandbServer, told: Variables) -> Any:
    server.artifacts[told["artifactID"]]["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": told["artifactID"], "digest": "d"}}}


def _sweep(server: WandbServer, told: Variables) -> Any:
    sweep = {"id": "S", "name": told["sweep"], "state": "RUNNING", "config": server.sweep["config"]}
    return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}


def _heartbeat(server: WandbServer, told: Variables) -> Any:
    commands = server.sweep["commands"].pop(0) if server.sweep["commands"] else []
    return {"agentHeartbeat": {"agent": {"id": told["id"]}, "commands": json.dumps(commands)}}


def _upsert_view(server: WandbServer, told: Variables) -> Any:
    new = told["name"] not in server.views
    server.views[told["name"]] = {**told, "saved": 1 if new else server.views[told["name"]]["saved"] + 1}
    return {"upsertView": {"view": {"id": f"id of {told['name']}", "name": told["name"]}, "inserted": new}}


def _view(server: WandbServer, told: Variables) -> Any:
    view = server.views.get(told["viewName"])
    node = view and {"id": f"id of {view['name']}", "displayName": view["displayName"], "spec": view["spec"]}
    return {"project": {"allViews": {"edges": [{"node": node}] if node else []}}}


OPERATIONS: dict[str, Callable[[WandbServer, Variables], Any]] = {
    "Viewer": _viewer,
    "RunResumeStatus": _resume,
    "UpsertBucket": _upsert,
    "CreateRunFiles": _create_run_files,
    "ArtifactType": lambda server, told: {"project": {"artifact": None}},
    "ServerFeaturesQuery": lambda server, told: {"serverInfo": {"features": []}},
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": _create_manifest,
    "CreateArtifactFiles": _create_artifact_files,
    "CommitArtifact": _commit,
    "SweepWithRuns": _sweep,
    "CreateAgent": lambda server, told: {"createAgent": {"agent": {"id": f"agent of {told['sweep']}"}}},
    "Heartbeat": _heartbeat,
    "UpsertView2": _upsert_view,
    "View": _view,
    "OrganizationCoreWeaveOrganizationID": lambda server, told: {
        "entity": {"organization": {"coreWeaveOrganizationId": ""}}
    },
}
