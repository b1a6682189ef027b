"""The jobs of a sweep are composed as Hydra would compose them one by one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from runner import HOME
from runner.command import entry
from runner.command.compose import Composer, plain
from runner.command.entry import sweep
from runner.errors import SettingsError
from tests.command_line import runner

MASTER = ["recipe=demo", "name=sweep"]
JOBS = [
    ["lora.rank=4"],
    ["lora.rank=8", "optimizer.lr=1e-3"],
    ["lora=attention", "lora.rank=8"],
    ["lora=attention", "lora.rank=16"],
    ["recipe=sd15_naruto", "dataset.path=x"],
    ["optimizer=prodigy", "++optimizer.d_coef=2"],
    ["lora={rank: 3}", "+lora.foo=1"],
    ["resolution=128", "~recipe"],
]


def both_ways(overrides: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("config", MASTER, run_mode=RunMode.MULTIRUN)
    composer = Composer(loader)
    composer.load_sweep_config(master, JOBS[0])  # what one job sets must not show in another
    fast, slow = composer.load_sweep_config(master, overrides), loader.load_sweep_config(master, overrides)
    assert list(fast.hydra.overrides.task) == list(slow.hydra.overrides.task) == overrides
    return plain(fast), plain(slow)


@pytest.mark.parametrize("overrides", JOBS, ids=" ".join)
def test_a_job_of_a_sweep_is_what_hydra_composes(overrides: list[str]) -> None:
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        fast, slow = both_ways(overrides)
    assert fast == slow


def test_a_key_that_is_not_there_is_refused_as_hydra_does() -> None:
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", MASTER, run_mode=RunMode.MULTIRUN)
        with pytest.raises(ConfigCompositionException, match=r"lora\.rnk"):
            Composer(loader).load_sweep_config(master, ["lora.rnk=4"])


def test_equal_overrides_are_composed_once_and_templates_stay_as_they_were() -> None:
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        composer = Composer(loader)
        master = loader.load_configuration("config", MASTER, run_mode=RunMode.MULTIRUN)
        first = composer.load_sweep_config(master, ["lora.rank=4"])
        before = copy.deepcopy(first)
        assert composer.load_sweep_config(master, ["lora.rank=4"]) is first
        other = composer.load_sweep_config(master, ["lora.rank=5"])
    assert (first.lora.rank, other.lora.rank) == (4, 5)
    assert OmegaConf.to_container(first) == OmegaConf.to_container(before)


def test_a_sweep_without_any_job_says_what_fits_no_value() -> None:
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        given = [*MASTER, "lora=glob(x*)", "lora.rank=2,3", "steps=range(4,4)"]
        master = loader.load_configuration("config", given, run_mode=RunMode.MULTIRUN)
        with pytest.raises(SettingsError) as error:
            sweep(loader, master, [])
    head, *lines = str(error.value).splitlines()
    assert head == "The sweep has no jobs, nothing was started:"
    fault = "fits no value; give some, or a pattern that fits"
    assert lines == [f"  lora=glob(x*): {fault}", f"  steps=range(4,4): {fault}"]


@pytest.mark.parametrize(("count", "said"), [(2, ""), (3, "3 jobs: every one is composed and checked")])
def test_who_waits_for_many_jobs_to_be_checked_is_told(
    count: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "MANY_JOBS", 3, raising=False)
    with initialize_config_dir(str(HOME / "conf"), version_base=None):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [*MASTER, "lora.rank=0"], run_mode=RunMode.MULTIRUN)
        with pytest.raises(SettingsError, match="nothing was started"):
            sweep(loader, master, [["lora.rank=0", f"seed={seed}"] for seed in range(count)])
    told = capsys.readouterr()
    assert told.err.startswith(said) and bool(told.err) == bool(said)
    assert told.out == ""


def test_a_reference_is_shown_as_it_was_typed(tmp_path: Path) -> None:
    answer = runner("-m", "lora.alpha=${lora.rank},3", "launcher.dry_run=true", cwd=tmp_path)

    assert answer.code == 0
    assert "  lora.alpha=${lora.rank}  (200 steps" in answer.output and "  lora.alpha=3  (" in answer.output
