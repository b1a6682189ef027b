"""Every file and folder name that the project writes, in one place; knows nothing about their contents."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.errors import FULL, SettingsError, system_error

os.umask(UMASK := os.umask(0o077))
"""The permissions that this process denies to new files. Reading it means setting it, so it is read only once, before
any thread starts."""


def outputs_dir() -> Path:
    """Root of all experiments: `RUNNER_OUTPUTS`, else `outputs` in the current directory."""
    return Path(os.environ.get("RUNNER_OUTPUTS") or "outputs").absolute()


def cache_dir() -> Path:
    """Root of the content-addressed caches: `RUNNER_CACHE`, else the user's cache folder.

    Raises:
        SettingsError: neither exists.
    """
    if chosen := os.environ.get("RUNNER_CACHE"):
        return Path(chosen).absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "lora-runner"
    home = path_of("~")
    if not home.is_absolute():
        raise SettingsError("this user has no home folder for caches; name a folder for them in RUNNER_CACHE")
    return home / ".cache" / "lora-runner"


def path_of(named: str) -> Path:
    """The path that a user names; a `~` whose home is unknown stays as it is, and so names no existing file."""
    return Path(os.path.expanduser(named))  # Path.expanduser would raise for an unknown home


# Names that are also needed without a folder on this machine, for example for files in S3.
CONFIG_NAME, MANIFEST_NAME, METRICS_NAME, LOG_NAME = "config.yaml", "manifest.json", "metrics.jsonl", "log.txt"
LORA_NAME, SAMPLES_NAME, LOCK_NAME = "lora", "samples", ".lock"
WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
"""diffusers' name for the adapter in a folder or a repository."""


class JobPaths:
    """The names inside one job folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.config = self.folder / CONFIG_NAME
        self.manifest = self.folder / MANIFEST_NAME
        self.metrics = self.folder / METRICS_NAME
        self.images = self.folder / "images.json"
        """Details of each image, where they are too long for the manifest."""
        self.log = self.folder / LOG_NAME
        self.lock = self.folder / LOCK_NAME
        self.lora = self.folder / LORA_NAME
        self.weights = self.lora / WEIGHTS_NAME
        """Exists for methods that train a LoRA."""
        self.samples = self.folder / SAMPLES_NAME
        self.prompts = self.samples / "prompts.json"
        self.checkpoints = self.folder / "checkpoints"
        self.sheet = self.folder / "sheet.png"
        """All images of task=generate on one sheet."""
        self.model = self.folder / "model"
        """A base that adapters were merged into, in diffusers layout."""
        self.model_file = self.folder / "model.safetensors"
        """The same model as a single file; the paths below are what it needs beside it."""
        self.model_config = self.folder / "model-config"
        self.model_archive = self.folder / "model.tar.gz"
        self.export = self.folder / "export"
        """Files ready to be shared."""

    def word(self, token: str) -> Path:
        """The file of a new word, named like it: that is how people write it in ComfyUI and A1111."""
        return self.lora / f"{token.strip('<>')}.safetensors"

    def samples_at(self, step: int) -> Path:
        """Folder of the images drawn after `step` optimizer steps."""
        return self.samples / step_name(step)

    def checkpoint_at(self, step: int) -> Path:
        """Folder of the checkpoint taken after `step` optimizer steps."""
        return self.checkpoints / step_name(step)


class ExperimentPaths:
    """The names inside one experiment's folder, next to its jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.report = self.folder / "report.html"
        self.table = self.folder / "sweep.csv"
        self.summary = self.folder / "sweep.json"
        self.multirun = self.folder / "multirun.yaml"
        self.study = self.folder / "study.db"
        self.workspace = self.folder / "wandb-workspace.json"

    def cluster(self, name: str) -> Path:
        """Folder of the queues that workers on a cluster take jobs from, and of their output."""
        return self.folder / name

    def turn(self, cluster: str) -> Path:
        """The lock file of the command that submits to the cluster."""
        return self.cluster(cluster) / "submitting.lock"

    @property
    def turns(self) -> list[Path]:
        """The lock files of all clusters that something was submitted to."""
        return sorted(self.folder.glob("*/submitting.lock"))

    def queue(self, cluster: str, key: str) -> Path:
        """The file of one queue."""
        return self.cluster(cluster) / f"queue-{key}.json"

    def search(self, cluster: str, name: str) -> Path:
        """The note that a cluster was asked to conduct a search by itself, and where that search is."""
        return self.cluster(cluster) / f"{name}.search"

    @property
    def searches(self) -> list[Path]:
        """All such notes."""
        return sorted(self.folder.glob("*/*.search"))

    def worker_log(self, place: str) -> Path:
        """The output of the workers in one place, if it was not shown."""
        return self.folder / f"worker-{place}.log"


def stop_sign(queue: Path) -> Path:
    """The file that marks the workers of a queue as stopped by somebody."""
    return queue.with_suffix(".stopped")


def step_name(step: int) -> str:
    """The folder name of a step; sorting these names as text sorts the steps."""
    return f"step-{step:06d}"


def last_step(folder: Path) -> int:
    """The latest step that has its own folder in this one; 0 if none has."""
    found = (re.fullmatch(r"step-(\d+)", each.name) for each in named_like("step-*", folder))
    return max((int(step[1]) for step in found if step), default=0)


def sample_name(prompt: int, seed: int) -> str:
    """The file name of an image, from the index of its prompt and its seed."""
    return f"p{prompt:02d}-s{seed}.png"


def samples_in(folder: Path) -> Iterator[tuple[int, int, int, Path]]:
    """(step, index of its prompt, seed, file) of every image in a folder of samples, in no particular order."""
    for file in [file for step in named_like("step-*", folder) for file in named_like("p*-s*.png", step)]:
        step, image = re.fullmatch(r"step-(\d+)", file.parent.name), re.fullmatch(r"p(\d+)-s(-?\d+)", file.stem)
        if step and image:
            yield int(step[1]), int(image[1]), int(image[2]), file


def named_like(pattern: str, folder: Path) -> list[Path]:
    """What `folder.glob` finds; nothing if the folder, or one in it, is removed at the same moment."""
    with suppress(FileNotFoundError):  # up to Python 3.12
        return list(folder.glob(pattern))
    return []


LONGEST_BEGINNING = 200
"""Bytes kept of a target's name; file systems allow 255."""


def share(made: Path) -> None:
    """Give a file or folder that was made for its owner alone the permissions of any other new one, by the umask."""
    made.chmod((0o777 if made.is_dir() else 0o666) & ~UMASK)


def _hidden(target: Path) -> str:
    """The beginning of the name of a temporary file beside `target`: hidden, with room for what follows."""
    beginning = os.fsencode(target.name)[:LONGEST_BEGINNING].decode("utf-8", "ignore")
    return f".{beginning}."


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is synced and takes the target's place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=_hidden(target))
    os.close(handle)
    temporary = Path(name)
    try:
        with named_where_full(target):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        share(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`; on success it becomes `target`, which thus appears with all its contents."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=_hidden(target)))
    try:
        with named_where_full(target):
            yield temporary
        for made in (temporary, *temporary.rglob("*")):  # safetensors makes files that only their owner can read
            if not made.is_symlink():
                share(made)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def named_where_full(target: Path) -> Iterator[None]:
    """Turn the error of a full disk into an OSError that names what is being written.

    Python names only files that cannot be opened, and safetensors raises its own error without any name.
    """
    try:
        yield
    except Exception as error:
        code = system_error(error)
        if code not in FULL or getattr(error, "filename", None) is not None:
            raise
        raise OSError(code, os.strerror(code), str(target)) from error


def write_text(target: Path, text: str) -> None:
    """Write `text` so that a reader sees either the old content or the new, never a part of it."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_over(target: Path, text: str) -> bool:
    """Write `text` in place of a small file's content, for a disk that has no room for a second file.

    Blanks make up for what it is shorter. Returns whether all of it was written; otherwise nothing is changed.
    """
    try:
        with target.open("r+b", buffering=0) as stream:
            before = stream.readall()
            content = text.encode().ljust(len(before))
            if os.pwrite(stream.fileno(), content, 0) == len(content):
                os.fsync(stream.fileno())
                return True
            os.pwrite(stream.fileno(), before, 0)
            stream.truncate(len(before))
    except OSError:
        return False
    return False


def files_below(folder: Path, *, hidden: bool = True, _within: frozenset[str] = frozenset()) -> list[Path]:
    """All files in a folder, sorted, following links to folders that are elsewhere.

    Args:
        hidden: whether to include files whose names, or whose folders' names, begin with a dot.
    """
    real = os.path.realpath(folder)
    if real in _within:  # a link to a parent folder would be followed forever
        return []
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if not hidden and entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += files_below(entry, hidden=hidden, _within=_within | {real})
        elif entry.is_file():
            found.append(entry)
    return found
