"""A trained adapter that a setting names: its file, the job that trained it, its hash; found without torch.

A setting may give the folder of its job, a file, or a repository on the Hub.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

from runner.errors import RunnerError, SettingsError
from runner.hub import is_hub_id, reason_of, unreachable
from runner.jobs.job import Job, State, read_job, state_of
from runner.jobs.scales import configs_in
from runner.paths import WEIGHTS_NAME, JobPaths, outputs_dir, path_of
from runner.schema.method import NewTokens
from runner.system.hashes import file_hash
from runner.system.tensor_file import PEFT_CONFIG, Header, config_of_peft, is_of_peft, read_header

NO_SUCH_FILE = "RemoteEntryNotFound"
"""The name of the Hub client's error for a file that a repository does not have."""
MOST_MEANT = 3
FIX = "name a job's folder, or a .safetensors file that diffusers or this runner wrote"


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """An already trained adapter."""

    file: Path
    """Its weights; for textual inversion, those of its first word."""
    job: Job | None
    """The job that trained it, if its folder is here; a merge trains nothing."""
    words: tuple[Path, ...] = ()
    """Files of the words that were trained with it."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that define it: its weights, those of its words, and peft's configuration beside its own files."""
        config = config_of_peft(self.file)
        return tuple(dict.fromkeys((self.file, *self.words, *([] if config is None else [config]))))

    @property
    def digest(self) -> str:
        """SHA-256 of the file, or of all files together."""
        hashes = [file_hash(file) for file in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    @property
    def place(self) -> Path:
        """Where to load it from: the folder of its job if it has words, which are found there, otherwise the file."""
        return self.job.folder if self.job is not None and self.words else self.file


def find_adapter(given: str, *, key: str, words: bool = False) -> AdapterFile:
    """The adapter that a setting names; one on the Hub is downloaded.

    Args:
        given: folder of a job, folder with the file, file, or Hub id.
        key: the setting, for error messages.
        words: whether to include the words that a job has learned, which may be all that it has trained.

    Raises:
        SettingsError: none exists, its job is not completed, it is no safetensors file, or its scales are unknown.
    """
    named = f"{key} = {given!r}"
    path = path_of(given).absolute()
    if is_hub_id(given):
        return AdapterFile(_read(_from_hub(given, named), named), None)
    job = _job_in(path, named)
    # Another folder inside a job's folder, such as a checkpoint's, must not pass for the final result.
    whole = job if job is not None and path in (job.folder, job.paths.lora) else None
    taught = _words_of(whole) if whole is not None and words else ()
    if taught and whole is not None and not whole.paths.weights.is_file():
        return AdapterFile(taught[0], whole, taught)
    file = path if path.is_file() else (path if whole is None else whole.paths.lora) / WEIGHTS_NAME
    if not file.is_file():
        wrong = f"holds no {file.name}" if path.is_dir() else "is not there"
        raise SettingsError(f"{named}: {wrong}{_meant(given)}")
    return AdapterFile(_read(file, named), job if job is not None and job.trains else None, taught)


def _read(file: Path, named: str) -> Path:
    """The file, once its header has been read and checked."""
    configs_in(file, header_of(file, named).metadata)
    return file


def _meant(given: str) -> str:
    """`, did you mean outputs/dev/8d9f4367bc?` for an experiment, a job's id alone, or an export; otherwise the fix."""
    path = path_of(given)
    # Tables show only ids; no folder of results other than `outputs` is searched.
    places = path.glob("*") if path.is_dir() else outputs_dir().glob(f"*/{glob.escape(path.name)}")
    found = [place for place in sorted(places) if JobPaths(place).lora.is_dir() or (place / WEIGHTS_NAME).is_file()]
    here = Path.cwd()
    named = [str(place.relative_to(here) if place.is_relative_to(here) else place) for place in found[:MOST_MEANT]]
    return f", did you mean {' or '.join(named)}?" if named else f"; {FIX}"


def _words_of(job: Job) -> tuple[Path, ...]:
    method = job.experiment.method if job.trains else None
    return tuple(map(job.paths.word, method.tokens)) if isinstance(method, NewTokens) else ()


def job_folder(path: Path) -> Path | None:
    """The folder of the job that a path belongs to: it, its folder of weights, or a file in either; None if no job's.

    A folder without a manifest is no job: other programs also write a config.yaml.
    """
    for folder in (path, path.parent, path.parent.parent):
        if JobPaths(folder).config.is_file() and JobPaths(folder).manifest.is_file():
            return folder
    return None


def _job_in(path: Path, named: str) -> Job | None:
    folder = job_folder(path)
    if folder is None:
        return None
    try:
        job, state = read_job(folder), state_of(folder)
    except RunnerError as error:
        raise SettingsError(f"{named}: {error}") from error
    if state is not State.COMPLETED:
        raise SettingsError(f"{named}: that job is {state.value}, not completed; finish it first")
    return job


def _from_hub(repository: str, named: str) -> Path:
    """The only adapter in a repository on the Hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    known = try_to_load_from_cache(repository, WEIGHTS_NAME)
    if isinstance(known, str):
        return Path(known)
    reason, chosen = unreachable(repository, WEIGHTS_NAME, None), WEIGHTS_NAME
    if reason and not reason.startswith(NO_SUCH_FILE):
        if (alone := _only_fetched(repository)) is not None:
            return alone
        wrong = f"is neither on this machine nor available from the Hub ({reason})"
        raise SettingsError(f"{named}: {wrong}{_meant(repository)}")
    try:
        if reason:
            chosen = _only_one_of(repository, named)
        file = Path(hf_hub_download(repository, chosen))
        if is_of_peft(file):
            with suppress(EntryNotFoundError):
                hf_hub_download(repository, PurePosixPath(chosen).with_name(PEFT_CONFIG).as_posix())
        return file
    except SettingsError:
        raise
    except Exception as error:  # errors of the client's HTTP library as well
        wrong = f"is on the Hub, but cannot be downloaded ({reason_of(error)})"
        raise SettingsError(f"{named}: {wrong}; try again later, or download the file and name it") from error


def _only_one_of(repository: str, named: str) -> str:
    """The name of the only safetensors file in a repository on the Hub."""
    from huggingface_hub import HfApi

    files = [name for name in HfApi().list_repo_files(repository) if name.endswith(".safetensors")]
    if len(files) != 1:
        found = f"holds {', '.join(sorted(files)[:5])}" if files else "holds no .safetensors file"
        raise SettingsError(f"{named}: that repository {found}; download the one that you mean, and name the file")
    return files[0]


def _only_fetched(repository: str) -> Path | None:
    """The adapter that an earlier command downloaded, if it is the only one; for machines without a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    files = list(folder.rglob("*.safetensors"))
    return files[0] if len(files) == 1 else None


def header_of(file: Path, named: str) -> Header:
    """What a safetensors file says about its tensors, without reading them.

    Args:
        named: the setting and its value, for the message if the file cannot be read.

    Raises:
        SettingsError: it is no safetensors file.
    """
    try:
        return read_header(file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{named}: cannot be read ({error}); {FIX}") from error


def is_dora(file: Path, named: str) -> bool:
    """Whether it is a DoRA: an adapter that also has a magnitude for each output of a layer.

    Raises:
        SettingsError: it is no safetensors file.
    """
    return any("lora_magnitude_vector" in key for key in header_of(file, named).tensors)
