"""Shared by all tests: separate folders for results and caches, a clean environment, and small models."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Contended OpenMP threads are many times slower than one; the tests run in several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell makes its background processes ignore Ctrl-C, and nohup makes them ignore the end of their terminal; the
# commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# What is loaded while tests are collected stays: scanning it for garbage takes a fifth of the time.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """If several processes run the tests, all of them fork commands from one process that this one starts."""
    if getattr(config.option, "numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        from tests.forked_command import serve

        serve()


def pytest_collection_finish() -> None:
    """Every training collects garbage, and would scan half a million objects that the libraries have made."""
    gc.freeze()  # existing garbage stays too; looking for it takes longer than it is worth
    gc.enable()


SECRET_PREFIXES = ("WANDB", "AWS", "HF_TOKEN", "HUGGING_FACE", "RUNNER_")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, cache or result of the person who runs the tests, or of another test, is seen or touched."""
    before = set(os.environ)
    for name in list(os.environ):
        if name.startswith(SECRET_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RUNNER_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    log = logging.getLogger()
    handlers, level = list(log.handlers), log.level
    yield
    # A command under test has its log written to what stood for the terminal; a later test would write to that too.
    for handler in set(log.handlers).difference(handlers):
        if not type(handler).__module__.startswith("_pytest."):
            log.removeHandler(handler)
            log.setLevel(level)
    # Variables that a worker sets for its libraries would stay, and later commands would not start like this process.
    for name in set(os.environ) - before:
        del os.environ[name]


MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Makes folders that are filled once for all processes that run tests, and then only read."""
    from runner.system.exclusive import alone

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, sign = root / name, root / f"{name}.made"
        with alone(root / f"{name}.lock", doing=f"making {name}"):
            if not sign.exists():
                fill(folder)
                sign.touch()
        return folder

    return make


def _saved(build: Callable[[], object], folder: Path) -> Path:
    pipeline = build()
    pipeline.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small SDXL-shaped model with random weights, in diffusers layout."""
    from runner.embedded.miniature import build_sdxl

    return _saved(build_sdxl, tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="session")
def sd15_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small SD1.5-shaped model with random weights."""
    from tests.families.miniatures import build_sd15

    return _saved(build_sd15, tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small SD3-shaped model with random weights."""
    from tests.families.miniatures import build_sd3

    return _saved(build_sd3, tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture(scope="session")
def sd35_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small SD3.5-shaped model with random weights, saved without T5."""
    from tests.families.miniatures import build_sd35

    return _saved(build_sd35, tmp_path_factory.mktemp("models") / "sd35")


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small FLUX.1-shaped model with random weights."""
    from tests.families.miniatures import build_flux

    return _saved(build_flux, tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="session")
def sd21_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small SD2.1-shaped model with random weights, which predicts velocity."""
    from tests.families.miniatures import build_sd21

    return _saved(build_sd21, tmp_path_factory.mktemp("models") / "sd21")
