"""The repository keeps its own rules: sizes of files and functions, links, what the README says about the tree."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ROOT

LONGEST_FILE_LINES = 400
LONGEST_FUNCTION_LINES = 80
LARGEST_FILE_BYTES = 15_000_000


def tracked(pattern: str) -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_room_has_grown_too_large() -> None:
    files = tracked("*.py")
    assert len(files) > 50

    long_files = [str(file) for file in files if len(file.read_text().splitlines()) > LONGEST_FILE_LINES]
    assert long_files == []


def test_functions_fit_on_a_screen() -> None:
    long_functions = [
        f"{file.name}:{node.lineno} {node.name}"
        for file in tracked("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION_LINES
    ]
    assert long_functions == []


def test_every_setting_is_documented() -> None:
    from runner.schema.defaults import variants_of
    from runner.schema.experiment import GROUPS, SECTIONS, Experiment

    models = [Experiment, *(model for group in GROUPS for model in variants_of(group).values())]
    bare = [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if field.description is None and name not in SECTIONS
    ]
    assert bare == []


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for page in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []


def test_the_readme_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    rooms = {
        path.relative_to(ROOT).parts[1] for path in tracked("runner/*.py") if len(path.relative_to(ROOT).parts) > 2
    }
    top = {path.relative_to(ROOT).parts[0] for path in tracked("*") if len(path.relative_to(ROOT).parts) > 1}

    assert sorted(name for name in rooms | top - {".ci"} if f"{name}/" not in readme) == []


def test_no_file_is_too_large_for_the_repository() -> None:
    assert [file.name for file in tracked("*") if file.stat().st_size > LARGEST_FILE_BYTES] == []


@pytest.fixture(scope="module")
def wheel_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, installed without its dependencies into its own folder."""
    built, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return site


def test_the_wheel_works_from_another_folder(wheel_site: Path, tmp_path: Path) -> None:
    command = [str(wheel_site / "bin" / "runner"), "recipe=demo", "launcher.dry_run=true"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel_site)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "1 job to run" in done.stdout
    assert (wheel_site / "runner" / "conf" / "config.yaml").is_file()
    assert (wheel_site / "runner" / "report" / "templates").is_dir()
