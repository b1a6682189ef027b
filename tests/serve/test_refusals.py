"""How the application answers invalid requests, in this process: never with 500, however they are sent."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from runner.container import serving as container
from runner.errors import SettingsError
from runner.schema.serving import Invocation
from runner.schema.serving import told as asked_as_told
from runner.serve import __main__ as serving_command
from runner.serve.app import MOST_BYTES, make_app
from runner.serve.service import Service, find_served, read_serving
from runner.studio import Studio
from runner.system.listening import LOOPBACK, Guard


def told(folder: Path, **serving: Any) -> Path:
    (folder / "serve.json").write_text(json.dumps({"inference_steps": 1, **serving}))
    return folder


def serving(folder: Path) -> Iterator[TestClient]:
    """A client of the application for a folder, once its model is loaded."""
    failures: list[BaseException] = []
    app = make_app(Service(folder, "cpu"), guard=Guard(LOOPBACK), failed=failures.append)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        while client.get("/ping").status_code != 200:
            assert not failures
            time.sleep(0.02)
        yield client


def test_a_seed_may_be_any_that_an_image_was_drawn_with() -> None:
    assert asked_as_told(Invocation, {"prompt": "a house", "seed": 2**64 - 1})[1] == []
    assert asked_as_told(Invocation, {"prompt": "a house", "seed": 2**64})[1] != []


def test_wrong_kinds_are_told_in_the_words_of_json() -> None:
    assert asked_as_told(Invocation, {"prompt": "a house", "seeds": 3, "adapters": ["house"]})[1] == [
        "seeds = 3: should be a list",
        "adapters = [house]: should be an object, {...}",
    ]


@pytest.fixture(scope="module")
def flux(flux_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    model = {"family": "flux", "path": str(flux_folder)}
    yield from serving(told(tmp_path_factory.mktemp("flux-served"), model=model))


@pytest.fixture
def sd3(sd3_folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    yield from serving(told(tmp_path, model={"family": "sd3", "path": str(sd3_folder)}))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sampler": "euler"}, "sampler = 'euler': belongs to models with a table of noise levels; set sampler=model"),
        ({"guidance_rescale": 0.5}, "guidance_rescale = 0.5: has no effect on the sampler of model.family=flux"),
        ({"negative_prompt": "x"}, "negative_prompt = 'x': has no effect with model.family=flux"),
        ({"resolution": 24}, "resolution = 24: should be a multiple of 16 with model.family=flux"),
        ({"adapters": {"\ud800": 1}}, "adapters.? = 1.0: no such adapter"),
    ],
)
def test_what_the_model_does_not_know_is_refused(flux: TestClient, asked: dict[str, Any], said: str) -> None:
    answer = flux.post("/invocations", content=json.dumps({"prompt": "a house", **asked}))
    assert answer.status_code == 400
    assert said in answer.json()["errors"][0]
    assert flux.post("/invocations", json={"prompt": "a house"}).status_code == 200


def test_an_image_that_the_model_has_no_places_for_is_refused(sd3: TestClient) -> None:
    answer = sd3.post("/invocations", json={"prompt": "a house", "resolution": 4096})
    assert answer.status_code == 400
    assert "resolution = 4096: " in answer.text and "supports images of up to" in answer.text


def test_brackets_in_brackets_are_no_request(flux: TestClient) -> None:
    answer = flux.post("/invocations", content=b"[" * 500_000)
    assert answer.status_code == 400
    assert "the request is not JSON" in answer.json()["errors"][0]


def test_a_request_that_does_not_say_its_length_may_be_no_longer(flux: TestClient) -> None:
    def parts(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b" " * (MOST_BYTES // 4)
        yield b'{"prompt": "a house"}'

    assert flux.post("/invocations", content=parts(16)).status_code == 413
    assert flux.post("/invocations", content=parts(3)).status_code == 200


@pytest.mark.parametrize("accept", ["image/png", "application/json"])
def test_a_request_for_more_images_than_there_is_memory_to_count_is_refused(flux: TestClient, accept: str) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = {"prompts": ["a"] * 2000, "seeds": list(range(1000))}
    answer = flux.post("/invocations", json=many, headers={"Accept": accept})
    assert answer.status_code == 400 and "2000000 images" in answer.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000


@pytest.mark.parametrize(
    ("drawing", "said"),
    [
        ({"sampler": "ddim"}, "sampler = 'ddim': belongs to models with a table of noise levels"),
        ({"negative_prompt": "x"}, "negative_prompt = 'x': has no effect with model.family=flux"),
        ({"resolution": 520}, "resolution = 520: should be a multiple of 16"),
    ],
)
def test_what_is_served_fits_the_family(tmp_path: Path, drawing: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read_serving(told(tmp_path, model={"family": "flux"}, **drawing))


def test_the_noise_that_is_said_for_one_sampler_is_not_for_another(tmp_path: Path) -> None:
    service = Service(told(tmp_path, sampler="tcd", eta=0.5), "cpu")
    assert service.sampling(Invocation(prompt="a")).eta == 0.5
    assert service.sampling(Invocation(prompt="a", sampler="euler")).eta is None


def test_folders_that_editors_leave_are_no_adapters(tmp_path: Path) -> None:
    for name in ("house", ".ipynb_checkpoints"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
    (tmp_path / "adapters" / "house" / "pytorch_lora_weights.safetensors").touch()
    assert list(find_served(tmp_path)) == ["house"]


def test_pages_from_elsewhere_do_not_draw(flux: TestClient) -> None:
    for host, code in (("evil.example:8080", 403), ("127.0.0.1:8080", 400), ("localhost", 400)):
        assert flux.post("/invocations", content="{}", headers={"Host": host}).status_code == code
    for site, code in (("cross-site", 403), ("same-site", 403), ("same-origin", 400), ("none", 400)):
        assert flux.post("/invocations", content="{}", headers={"Sec-Fetch-Site": site}).status_code == code
    for origin, code in (("http://evil.example", 403), ("null", 403), ("http://[", 403), ("http://localhost", 400)):
        assert flux.post("/invocations", content="{}", headers={"Origin": origin}).status_code == code


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
def test_a_gpu_that_has_failed_ends_the_server(kind: type[Exception], flux_folder: Path, tmp_path: Path) -> None:
    """Otherwise it would answer 500 forever and pass as healthy. Torch before 2.8 has no exception type for this."""
    folder = told(tmp_path, model={"family": "flux", "path": str(flux_folder)})
    failures: list[BaseException] = []
    service = Service(folder, "cpu")
    app = make_app(service, guard=Guard(LOOPBACK), failed=failures.append)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        while client.get("/ping").status_code != 200:
            time.sleep(0.02)
        assert service._studio is not None

        def draw(*_: object) -> None:
            raise kind("CUDA error: an illegal memory access was encountered\nCompile with ...")

        service._studio.draw = draw  # type: ignore[assignment,method-assign]
        answer = client.post("/invocations", json={"prompt": "a house"})
        said = "the GPU cannot be used any more: CUDA error: an illegal memory access was encountered"
        assert (answer.status_code, answer.json()["errors"]) == (500, [said])
        assert client.get("/ping").status_code == 503
    assert [str(failure) for failure in failures] == [said]


def test_what_nobody_waits_for_any_longer_is_not_drawn(flux: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise requests that have timed out would delay those sent to replace them."""
    with caplog.at_level("INFO"):
        assert hung_up_after(b'{"prompt": "a house"}', flux, is_whole=True) == 503
    assert "the client no longer waits for 1 image: not drawn" in caplog.text
    assert "1 image in " not in caplog.text
    assert flux.post("/invocations", json={"prompt": "a house"}).status_code == 200, "others are"


def hung_up_after(body: bytes, client: TestClient, *, is_whole: bool) -> int:
    """The answers to a request whose sender disconnects after this part of the body."""
    said = [{"type": "http.request", "body": body, "more_body": not is_whole}, {"type": "http.disconnect"}]
    answers: list[Any] = []

    async def receive() -> Any:
        return said.pop(0) if len(said) > 1 else said[0]

    async def send(message: Any) -> None:
        answers.append(message)

    host = (b"host", b"localhost")
    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": [host], "query_string": b""}
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    return int(answers[0]["status"])


def test_who_hangs_up_while_he_asks_is_no_fault_of_the_server(flux: TestClient) -> None:
    """Otherwise each would leave a page of traceback in its log."""
    assert hung_up_after(b'{"prompt": "a ', flux, is_whole=False) == 503


def test_a_server_that_ends_while_it_loads_says_nothing_of_it(
    flux_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with Ctrl-C, which ends everything in progress; the log would contain a traceback of that."""
    loaded = Event()
    monkeypatch.setattr(Studio, "load", lambda _: loaded.wait(60))
    failures: list[BaseException] = []
    folder = told(tmp_path, model={"family": "flux", "path": str(flux_folder)})
    app = make_app(Service(folder, "cpu"), guard=Guard(LOOPBACK), failed=failures.append)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/ping").status_code == 503
        answer = client.post("/invocations", json={"prompt": "a house"})
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
    loaded.set()
    assert not failures and "Traceback" not in caplog.text


def test_only_a_container_listens_to_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def taken(host: str, port: int) -> str:
        asked.append(host)
        return "taken"

    monkeypatch.setattr(serving_command, "why_not", taken)
    monkeypatch.setattr(container, "leave_root", lambda tree: None)
    assert serving_command.main([]) == 2
    assert container.serve([]) == 2
    assert container.serve(["--host", "::1"]) == 2
    assert asked == ["127.0.0.1", "0.0.0.0", "::1"]
