"""The adapter that a job starts from (`lora.init_from`): its file, what it is, whether it fits; without torch.

It may be named by the folder of the job that trained it, which then also says what it was trained on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import RunnerError, SettingsError
from runner.families.files import file_hash
from runner.job import Job, State, read_job, state_of
from runner.paths import JobPaths
from runner.schema import LoraSettings

LENGTH_BYTES = 8
DOWN = ".lora_A.weight"
FIX = "name a job's folder, or a .safetensors file that diffusers or this runner wrote"


@dataclasses.dataclass(frozen=True)
class Earlier:
    """An adapter that was trained before."""

    file: Path
    job: Job | None
    """The job that trained it, if its folder is here."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return file_hash(self.file)


def find_earlier(settings: LoraSettings) -> Earlier | None:
    """The adapter that a job starts from; None if it starts anew.

    Raises:
        SettingsError: there is none, or it is of another rank or scale than the settings say.
    """
    if settings.init_from is None:
        return None
    named = f"lora.init_from = {settings.init_from!r}"
    path = Path(settings.init_from).expanduser().absolute()
    job = _job_in(path, named)
    file = path if path.is_file() else (path if job is None else job.paths.lora) / JobPaths(path).weights.name
    if not file.is_file():
        raise SettingsError(
            f"{named}: holds no {file.name}; {FIX}" if path.is_dir() else f"{named}: is not there; {FIX}"
        )
    _check_fits(file, settings, named)
    return Earlier(file, job)


def _job_in(path: Path, named: str) -> Job | None:
    """The job whose folder, or whose folder of weights, this is."""
    folder = next((each for each in (path, path.parent, path.parent.parent) if JobPaths(each).config.is_file()), None)
    if folder is None:
        return None
    try:
        job, state = read_job(folder), state_of(folder)
    except RunnerError as error:
        raise SettingsError(f"{named}: {error}") from error
    if state is not State.COMPLETED:
        raise SettingsError(f"{named}: that job is {state.value}, not completed; finish it first")
    return job


def _check_fits(file: Path, settings: LoraSettings, named: str) -> None:
    header = _header(file, named)
    ranks = {int(about["shape"][0]) for key, about in header.items() if key.endswith(DOWN)}
    if not ranks:
        raise SettingsError(f"{named}: holds no LoRA under peft's names (...{DOWN}); {FIX}")
    if settings.rank_pattern is None and ranks != {settings.rank}:
        found = ", ".join(map(str, sorted(ranks)))
        fix = f"lora.rank={found}" if len(ranks) == 1 else "lora.rank and lora.rank_pattern as in that training"
        raise SettingsError(f"lora.rank = {settings.rank}: {settings.init_from} has rank {found}; set {fix}")
    config = json.loads(header.get("__metadata__", {}).get("lora_adapter_metadata", "{}"))
    alpha = settings.rank if settings.alpha is None else settings.alpha
    _check_same(settings, "alpha", alpha, _said(config, ".lora_alpha", settings.rank))
    _check_same(settings, "rslora", settings.rslora, _said(config, ".use_rslora", False))
    _check_same(settings, "dora", settings.dora, _said(config, ".use_dora", False))


def _said(config: Mapping[str, Any], ending: str, usual: Any) -> Any:
    """What a file's configuration says of its first component, or what readers take where it says nothing."""
    return next((value for key, value in config.items() if key.endswith(ending)), usual)


def _check_same(settings: LoraSettings, key: str, here: Any, there: Any) -> None:
    if here != there:
        shown = str(there).lower() if isinstance(there, bool) else f"{there:g}"
        raise SettingsError(
            f"lora.{key} = {getattr(settings, key)}: {settings.init_from} was trained with {shown}; set "
            f"lora.{key}={shown}"
        )


def _header(file: Path, named: str) -> dict[str, Any]:
    """What a safetensors file says of its tensors, without reading them."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            if length > file.stat().st_size:
                raise ValueError("not a safetensors file")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{named}: cannot be read ({error}); {FIX}") from error
    return header
