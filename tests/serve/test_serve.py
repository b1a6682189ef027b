"""The endpoint as SageMaker and its callers see it: a process as in the container, over HTTP."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from runner.jobs.job import Job
from runner.serve.__main__ import main
from tests.command_line import ROOT, environment
from tests.train.bench import Bench

PROMPT = "a red house on a white background"
DRAWN: dict[str, Any] = {"prompts": [PROMPT], "seeds": [0, 5], "inference_steps": 3, "guidance_scale": 3.0}
PATIENCE_S = 240.0
SERVED: dict[str, Any] = {"inference_steps": 3, "guidance_scale": 3.0, "most_images": 4, "most_waiting": 1}


@dataclass
class Answer:
    code: int
    kind: str
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


@dataclass
class Endpoint:
    port: int
    jobs: list[Job]
    pings: list[int]
    said: Path

    def ask(self, body: object, **headers: str) -> Answer:
        return ask(self.port, "POST", "/invocations", json.dumps(body).encode(), headers)

    def image(self, **body: Any) -> bytes:
        answer = self.ask({"prompt": PROMPT, **body}, Accept="image/png")
        assert (answer.code, answer.kind) == (200, "image/png"), answer.body
        return answer.body


def ask(port: int, method: str, path: str, body: bytes | None = None, headers: Any = None) -> Answer:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.getheader("content-type", ""), response.read())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def endpoint(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    settings: dict[str, Any] = {"model": {"family": "sdxl"}, "steps": 3, "validation": DRAWN}
    jobs = [bench.job(Path("embedded"), **settings, seed=seed) for seed in (0, 1)]
    assert bench.train(*jobs)
    folder = tmp_path_factory.mktemp("model")
    for name, job in zip(("house", "other"), jobs, strict=True):
        (folder / "adapters" / name).mkdir(parents=True)
        shutil.copy(job.paths.weights, folder / "adapters" / name)
    (folder / "serve.json").write_text(json.dumps(SERVED))
    port, said = free_port(), folder.parent / "said"
    with said.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner.container", "serve", "--host", "127.0.0.1"],
            cwd=ROOT,
            env=environment({"SM_MODEL_DIR": str(folder), "SAGEMAKER_BIND_TO_PORT": str(port)}),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    pings: list[int] = []
    give_up = time.monotonic() + PATIENCE_S
    while 200 not in pings:
        assert process.poll() is None and time.monotonic() < give_up
        try:
            pings.append(ask(port, "GET", "/ping").code)
        except OSError:
            time.sleep(0.02)
    yield Endpoint(port, jobs, pings, said)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) in (0, -signal.SIGTERM), "a signal ends it at once"


def sample(job: Job, seed: int, step: int = 3) -> bytes:
    return (job.paths.samples_at(step) / f"p00-s{seed}.png").read_bytes()


def test_the_log_tells_nothing_of_other_ways_of_using_its_libraries(endpoint: Endpoint) -> None:
    said = endpoint.said.read_text()
    assert said and "transformers" not in said


def test_ping_says_when_the_model_is_loaded(endpoint: Endpoint) -> None:
    assert set(endpoint.pings) == {503, 200}


def test_each_request_chooses_its_adapters(endpoint: Endpoint) -> None:
    first, second = endpoint.jobs
    assert endpoint.image(adapters={"house": 1}) == sample(first, 0), "the bits of the training's sample"
    assert endpoint.image(adapters={"other": 1}, seed=5) == sample(second, 5)
    assert endpoint.image() == endpoint.image(adapters={"house": 0}) == sample(first, 0, step=0), "the base"
    mixed = endpoint.image(adapters={"house": 0.7, "other": 0.5})
    assert mixed not in (sample(first, 0), sample(second, 0), sample(first, 0, step=0))
    assert endpoint.image(adapters={"house": 1}) == sample(first, 0), "and nothing of others stays"


def test_several_images_come_as_json(endpoint: Endpoint) -> None:
    answer = endpoint.ask({"prompts": [PROMPT, "a star"], "seeds": [0, 5], "adapters": {"house": 1}})
    assert answer.code == 200
    images = answer.said["images"]
    assert [(image["prompt"], image["seed"]) for image in images] == [
        (prompt, seed) for prompt in (PROMPT, "a star") for seed in (0, 5)
    ]
    assert [base64.b64decode(image["png"]) for image in images[:2]] == [sample(endpoint.jobs[0], s) for s in (0, 5)]
    assert answer.said["adapters"] == {"house": 1}
    plain = endpoint.image(sampler="tcd", inference_steps=2)
    assert plain != endpoint.image(sampler="tcd", inference_steps=2, eta=0.9)
    assert plain != endpoint.image(negative_prompt="a star", sampler="tcd", inference_steps=2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "prompt = null: has no value"),
        ({"prompt": "a", "promts": 1}, "promts = 1: unknown key, did you mean prompts?"),
        ({"prompt": "a", "adapters": {"hose": 1}}, "adapters.hose = 1.0: no such adapter, did you mean house?"),
        ({"prompt": "a", "adapters": {"house": 99}}, "adapters.house = 99: should be at most 10"),
        ({"prompt": "a", "inference_steps": 0}, "inference_steps = 0: should be at least 1"),
        ({"prompt": "a", "sampler": "eulr"}, "sampler = 'eulr': should be 'model'"),
        ({"prompt": "a", "sampler": "lcm", "eta": 0.5}, "eta = 0.5: has no effect with the sampler 'lcm'"),
        ({"prompt": "a", "sampler": "tcd", "inference_steps": 60}, "inference_steps = 60: the sampler 'tcd' picks"),
        ({"prompt": "a", "seeds": [1, 2, 3, 4, 5]}, "ask for 5 images, and this endpoint draws at most 4"),
        ({"prompt": "a", "seed": 1, "seeds": [2]}, "seed = 1: cannot be combined with seeds"),
        ([1], "should be a JSON object"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(endpoint: Endpoint, body: object, said: str) -> None:
    answer = endpoint.ask(body)
    assert answer.code == 400
    assert any(said in each for each in answer.said["errors"]), answer.said


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/png, */*;q=0.1", "image/png"),
        ("image/webp,image/png;q=0.9", "image/png"),
        ("application/json, image/png", "application/json"),
        ("*/*", "application/json"),
    ],
)
def test_the_image_alone_is_sent_to_who_takes_it_and_not_the_other(endpoint: Endpoint, accept: str, kind: str) -> None:
    answer = endpoint.ask({"prompt": PROMPT}, Accept=accept)

    assert (answer.code, answer.kind) == (200, kind)


def test_what_is_no_request_is_refused(endpoint: Endpoint) -> None:
    assert ask(endpoint.port, "POST", "/invocations", b"{").code == 400
    assert ask(endpoint.port, "POST", "/invocations", b" " * (2 << 20)).code == 413
    assert endpoint.ask({"prompt": "a", "seeds": [1, 2]}, Accept="image/png").code == 400
    assert ask(endpoint.port, "GET", "/invocations").code == 405
    assert ask(endpoint.port, "GET", "/docs").code == 404


def test_more_requests_than_may_wait_are_refused_at_once(endpoint: Endpoint) -> None:
    with ThreadPoolExecutor(5) as pool:
        body = {"prompt": PROMPT, "inference_steps": 20}
        answers = list(pool.map(lambda seed: endpoint.ask({**body, "seed": seed}), range(5)))
        while_busy = ask(endpoint.port, "GET", "/ping").code
    assert sorted(answer.code for answer in answers) == [200, 200, 503, 503, 503]
    assert while_busy == 200
    assert endpoint.image(), "it goes on"


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        (None, "serve.json: is not there"),
        ({"model": {"pth": "x"}}, "model.pth = 'x': unknown key"),
        ({"adapters": {"lost": 1}}, "adapters.lost = 1.0: no such adapter"),
    ],
)
def test_what_cannot_be_served_ends_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, serving: object, said: str
) -> None:
    if serving is not None:
        (tmp_path / "serve.json").write_text(json.dumps(serving))
    if said.startswith("adapters"):
        (tmp_path / "adapters" / "found").mkdir(parents=True)
        (tmp_path / "adapters" / "found" / "nothing.txt").touch()
        said = "no adapter is there"
    assert main(["--model-dir", str(tmp_path), "--port", str(free_port())]) == 1
    assert said in caplog.text


def test_what_is_no_port_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "8o80")
    for arguments, said in (([], "'8o80' is not a port"), (["--port", "99999"], "'99999' is not a port")):
        with pytest.raises(SystemExit) as ended:
            main(["--model-dir", str(tmp_path), *arguments])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_ends_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model_index.json").write_text("{}")
    (tmp_path / "serve.json").write_text(json.dumps({"model": {"path": "base"}}))
    assert main(["--model-dir", str(tmp_path), "--port", str(free_port()), "--host", "127.0.0.1"]) == 1
    assert "the model cannot be loaded" in caplog.text
    assert str(tmp_path / "base") in caplog.text, "a path beside serve.json"


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(server: uvicorn.Server) -> None:
        server.started = True
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    (tmp_path / "serve.json").write_text("{}")
    assert main(["--model-dir", str(tmp_path), "--port", str(free_port())]) == 0
