"""Images: what goes in, what an engine is told, what ECR contains afterwards; neither engine nor ECR is real here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from runner.aws.image import image_of, last_pushed
from runner.image.__main__ import main
from runner.image.checkout import BASE_IMAGE, SOURCES, default_tag, files
from runner.schema import SageMakerLauncher
from tests.command_line import ROOT

REGION = "eu-west-1"
ENGINE = """#!{python}
import hashlib, json, sys
if sys.argv[1:] == ["build", "--help"]:
    print({knows!r})
    sys.exit(0)
given = sys.stdin.read() if "--password-stdin" in sys.argv else ""
with open({log!r}, "a") as log:
    log.write(json.dumps([sys.argv[1:], given]) + "\\n")
if sys.argv[1] == "push":
    import boto3
    repository, _, tag = sys.argv[2].partition("/")[2].rpartition(":")
    layer = {{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 1}}
    layer["digest"] = "sha256:" + hashlib.sha256(tag.encode()).hexdigest()
    config = {{**layer, "mediaType": "application/vnd.docker.container.image.v1+json"}}
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {{"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}}
    boto3.client("ecr").put_image(repositoryName=repository, imageTag=tag, imageManifest=json.dumps(manifest))
sys.exit({code})
"""


@pytest.fixture
def ecr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urlopen(f"{url}/moto-api/reset", data=b"").close()  # removes what other tests left in this process
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    yield boto3.client("ecr", region_name=REGION)
    server.stop()


class FakeEngine:
    """Podman or another engine, as far as the tests need it.

    Args:
        knows: what its help says about build options.
    """

    def __init__(self, folder: Path, name: str = "podman", knows: str = "") -> None:
        self.log, self.program, self.knows = folder / "engine.jsonl", folder / name, knows
        self.fails(0)

    def fails(self, code: int) -> None:
        script = ENGINE.format(python=sys.executable, log=str(self.log), code=code, knows=self.knows)
        self.program.write_text(script)
        self.program.chmod(0o755)

    @property
    def calls(self) -> list[tuple[list[str], str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [tuple(json.loads(line)) for line in lines]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return FakeEngine(folder)


def test_build_tells_the_engine_what_to_build(engine: FakeEngine) -> None:
    base = "debian:bookworm"

    assert main(["build", "--base-image", base, "--", "--network", "host"]) == 0
    arguments, _ = engine.calls[0]
    assert arguments == [
        *("build", "--platform", "linux/amd64", "--file", str(ROOT / "container" / "Dockerfile")),
        *("--tag", f"lora-runner:{default_tag(ROOT, base)}", "--build-arg", f"BASE_IMAGE={base}"),
        *("--format", "docker", "--network", "host", str(ROOT)),
    ]


@pytest.mark.parametrize(
    ("name", "knows", "options", "said"),
    [
        ("podman", "", [], ["--format", "docker"]),
        ("buildah", "", [], ["--format", "docker"]),
        ("docker", "--provenance string", [], ["--provenance=false", "--output", "type=image,oci-mediatypes=false"]),
        ("docker", "--provenance string", ["--output=type=oci"], ["--provenance=false", "--output=type=oci"]),
        ("docker", "--provenance string", ["--push"], ["--provenance=false", "--push"]),
        ("docker", "--platform string", [], []),
    ],
)
def test_an_image_is_of_the_types_that_endpoints_take(
    engine: FakeEngine, name: str, knows: str, options: list[str], said: list[str]
) -> None:
    other = FakeEngine(engine.program.parent, name, knows)

    assert main(["build", "--engine", name, "--base-image", "debian", "--", *options]) == 0
    arguments, _ = other.calls[0]
    assert arguments[arguments.index("BASE_IMAGE=debian") + 1 : -1] == said


def test_a_base_image_in_ecr_is_logged_in_for(ecr: Any, engine: FakeEngine) -> None:
    base = "123456789012.dkr.ecr.us-east-1.amazonaws.com/base:1"
    assert main(["build", "--base-image", base]) == 0
    (login, given), (build, _), *_ = engine.calls
    assert login == ["login", "--username", "AWS", "--password-stdin", base.partition("/")[0]]
    assert given
    assert f"BASE_IMAGE={base}" in build


def test_push_makes_a_repository_and_gives_a_reference_that_the_launcher_takes(
    ecr: Any, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "--tag", "one"]) == 0
    reference = capsys.readouterr().out.strip()
    (repository,) = ecr.describe_repositories()["repositories"]
    (image,) = ecr.describe_images(repositoryName="lora-runner")["imageDetails"]
    assert repository["imageTagMutability"] == "IMMUTABLE"
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert reference == f"{repository['repositoryUri']}@{image['imageDigest']}"
    (login, password), (tag, _), (push, _) = engine.calls
    registry = repository["repositoryUri"].partition("/")[0]
    assert login == ["login", "--username", "AWS", "--password-stdin", registry]
    assert password
    assert password not in json.dumps([arguments for arguments, _ in engine.calls])
    assert tag == ["tag", "lora-runner:one", f"{repository['repositoryUri']}:one"]
    assert push == ["push", f"{repository['repositoryUri']}:one"]
    assert last_pushed(REGION) == last_pushed(None) == reference
    assert last_pushed("us-east-1") is None
    settings = SageMakerLauncher(name="sagemaker", region=REGION)
    assert image_of(settings) == reference
    assert image_of(settings.model_copy(update={"image": "another"})) == "another"


def test_what_is_pushed_already_is_not_pushed_again(
    ecr: Any, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "--tag", "one"]) == 0
    first = capsys.readouterr().out
    assert main(["push", "--tag", "one"]) == 0
    assert capsys.readouterr().out == first
    assert [arguments[0] for arguments, _ in engine.calls] == ["login", "tag", "push"]

    time.sleep(1.1)  # ECR notes the time in seconds
    assert main(["push", "--tag", "two"]) == 0
    second = capsys.readouterr().out
    assert second != first
    assert main(["ref"]) == 0
    assert capsys.readouterr().out == second


def test_what_goes_wrong_is_said(
    ecr: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["ref"]) == 1
    assert f"the repository lora-runner in {REGION} has no image; python -m runner.image push" in caplog.text
    assert main(["build", "--engine", "docker", "--base-image", "debian"]) == 1
    assert "there is no docker on this machine" in caplog.text
    engine.fails(3)
    assert main(["build", "--base-image", "debian"]) == 1
    assert "podman build ended with code 3; it says why above" in caplog.text
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert main(["push"]) == 1
    assert "AWS region: there is none; name it with --region" in caplog.text
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert main(["push", "--region", REGION]) == 1
    assert "AWS credentials: there are none" in caplog.text


def test_the_tag_is_of_what_goes_in(tmp_path: Path) -> None:
    for name in SOURCES:
        (tmp_path / name).write_text("as it was")
    before = default_tag(tmp_path, "base")
    assert default_tag(tmp_path, "base") == before
    assert default_tag(tmp_path, "another") != before
    (tmp_path / "README.md").write_text("as it is")
    assert default_tag(tmp_path, "base") != before
    assert re.fullmatch(r"\d+\.\d+\.\d+-[0-9a-f]{8}", before)
    assert ROOT / "runner" / "container" / "entry.py" in set(files(ROOT))


def test_the_files_of_the_build_agree_with_it() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    dockerfile = (ROOT / "container" / "Dockerfile").read_text()

    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(SOURCES)
    assert f"ARG BASE_IMAGE={BASE_IMAGE}\n" in dockerfile
    assert 'ENTRYPOINT ["python", "-m", "runner.container"]' in dockerfile


def test_each_dependency_of_the_image_has_a_tested_version() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", (ROOT / "container" / "Dockerfile").read_text(), re.MULTILINE)
    command = [sys.executable, "container/dependencies.py", "requirements", extras]
    wanted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {re.split(r"[<>=; ]", line)[0] for line in wanted}
    tested = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert "torch" in names and names <= tested


def test_the_bases_torch_stays_where_it_will_do(tmp_path: Path) -> None:
    def constraints(python_path: Path) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(python_path)}
        command = [sys.executable, "container/dependencies.py", "constraints"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.startswith(("torch=", "nvidia", "triton"))]

    for version in ("2.10.0+cu130", "1.13.1"):
        about = tmp_path / version / f"torch-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")

    assert constraints(tmp_path / "2.10.0+cu130") == ["torch==2.10.0+cu130"]
    (tested,) = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch="))
    assert tested in constraints(tmp_path / "1.13.1")


def test_what_the_page_has_codebuild_install_is_all_that_an_image_is_built_with() -> None:
    (named,) = re.findall(r"commands: \[pip install -q ([^\]]+)\]", (ROOT / "docs" / "sagemaker.md").read_text())
    look = (
        "import sys; from importlib.metadata import packages_distributions; import runner.image.__main__; "
        "known = packages_distributions(); "
        "print(*{name.lower() for module in list(sys.modules) for name in known.get(module, ())})"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    project = (ROOT / "pyproject.toml").read_text()
    ours = {name.lower() for name in re.findall(r'^    "([A-Za-z0-9_-]+)[><=]', project, re.MULTILINE)}
    assert "pydantic" in ours
    assert set(done.stdout.split()) & ours <= set(named.split()), "and boto3, where AWS is asked"
