"""Files and folders appear whole, with the permissions that the user's umask gives to new ones."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner import paths
from runner.errors import SettingsError


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_new_files_have_the_rights_that_the_umask_gives(
    umask: int, file_mode: int, folder_mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "UMASK", umask)
    paths.write_text(tmp_path / "config.yaml", "{}")
    paths.share(tmp_path)
    assert (tmp_path / "config.yaml").stat().st_mode & 0o777 == file_mode
    assert tmp_path.stat().st_mode & 0o777 == folder_mode
    with paths.atomic_folder(tmp_path / "model") as temporary:
        (temporary / "unet").mkdir(0o700)
        save_file({"weight": torch.zeros(1)}, temporary / "unet" / "model.safetensors")  # readable only by its owner
        (temporary / "link").symlink_to(tmp_path / "elsewhere")
    assert (tmp_path / "model" / "unet").stat().st_mode & 0o777 == folder_mode
    assert (tmp_path / "model" / "unet" / "model.safetensors").stat().st_mode & 0o777 == file_mode


def test_a_name_as_long_as_it_may_be_is_written_whole(tmp_path: Path) -> None:
    """Like the names of pictures that are named after their prompts."""
    name = "é" * 125 + ".txt"
    paths.write_text(tmp_path / name, "a house")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with paths.atomic_folder(tmp_path / f"{'é' * 125}.dir"):
        pass


def test_the_umask_is_the_users(tmp_path: Path) -> None:
    (plain := tmp_path / "plain").touch()
    paths.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode
    os.umask(before := os.umask(0o022))
    assert before == paths.UMASK


def test_caches_of_a_user_without_a_home_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "RUNNER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="RUNNER_CACHE"):
        paths.cache_dir()
