"""What a machine has, according to its files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.system.machine import (
    cores,
    disk_of,
    folder_fault,
    host_memory_gb,
    named_threads,
    standing,
    this_machine,
)


def test_a_container_has_what_its_control_groups_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer, own = tmp_path / "slice", tmp_path / "slice" / "job"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("max\n")
    (outer / "memory.max").write_text("2000000000\n")
    (own / "cpu.max").write_text("150000 100000\n")
    (outer / "cpu.max").write_text("max 100000\n")
    mine = tmp_path / "cgroup"
    mine.write_text("0::/slice/job\n")
    monkeypatch.setattr("runner.system.machine.CONTROL_GROUPS", (mine, tmp_path))
    assert host_memory_gb() == 2.0
    assert cores() == 1
    mine.write_text("12:memory:/elsewhere\n")
    assert (host_memory_gb() or 0) > 2.0


@pytest.mark.parametrize(
    ("facts", "name", "in_software"),
    [
        ("model name\t: EPYC 7\nflags\t\t: fpu avx2 fma\nmodel name\t: another\n", "EPYC 7", ("bf16", "fp16")),
        ("model name\t: Xeon\nflags\t\t: fpu avx2 avx512f amx_bf16\n", "Xeon", ()),
        ("Features\t: fp asimd bf16\n", "", ()),
    ],
    ids=["AVX2", "AVX-512", "another kind"],
)
def test_a_processor_is_known_by_its_name_and_what_it_computes_in_software(
    facts: str, name: str, in_software: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr("runner.system.machine.CPU_FACTS", tmp_path / "cpuinfo")
    (cpu,) = this_machine("cpu").devices
    assert cpu.name.startswith(f"{name}, ") == bool(name)
    assert cpu.in_software == in_software


def test_where_the_system_says_nothing_of_its_processor_nothing_is_known_to_be_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.system.machine.CPU_FACTS", tmp_path / "nowhere")
    assert this_machine("cpu").devices[0].in_software == ()


@pytest.mark.parametrize(("said", "threads"), [("4", 4), ("0", None), ("", None), ("many", None), ("²", None)])
def test_threads_are_a_number_that_can_be_read(said: str, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert named_threads() == threads


def test_below_a_folder_that_may_not_be_entered_is_what_stands_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as another user's home folder, which HOME in a container may name."""
    stat, wanted = os.stat, tmp_path / "outputs" / "dev"

    def refused(path: str | Path, **options: bool) -> os.stat_result:
        if Path(path) in (wanted, wanted.parent):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refused)
    assert standing(wanted) == tmp_path
    assert disk_of(wanted)[0] > 0


def test_a_folder_in_which_safetensors_opens_no_file_cannot_be_used(tmp_path: Path) -> None:
    assert folder_fault(tmp_path / "café") == ""
    assert "is not UTF-8" in folder_fault(tmp_path / "caf\udce9")
