"""The exceptions that a user may see, and their messages; any other that escapes is a defect of ours.

RunnerError
├── SettingsError (also a ValueError)   a setting is wrong; names the key, the value and the fix
│   ├── DatasetError                    the images or captions are wrong
│   └── ModelError                      the base model is missing or of another kind
├── CheckpointError                     a checkpoint belongs to another configuration, or is damaged
├── ArtifactError                       what was saved is not what was trained
├── DivergedError                       a job's loss or gradient is not finite
├── OutOfMemoryError                    not even one image fits in memory
├── AwsError                            AWS rejected a request, or did not start something
├── Interrupted                         a signal asked to stop; the work is saved
├── Detached                            jobs continue elsewhere without this command
└── JobsFailed                          at least one job did not complete

Exceptions of a single package, such as for its locks, clusters or archives, are declared there.

Defect                                an unforeseen error while jobs ran
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MENDED_BY = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "let files be larger (ulimit -f), or take another disk",
    errno.EROFS: "take a folder that can be written",
    errno.EACCES: "take a folder that can be used",
    errno.EPERM: "take a folder that can be used",
    errno.EIO: "take a disk that works",
}
"""What a user can do if the system does not let a file be read or written."""
SYSTEM_ERROR = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
"""A system error quoted in another message: from `shutil.copytree`, or safetensors, which has no type for it."""


T = TypeVar("T")


class RunnerError(Exception):
    """Base class of all errors that are reported in one line, without a traceback."""


class SettingsError(RunnerError, ValueError):
    """A setting is wrong: the message names the key, the value and the fix."""


class DatasetError(SettingsError):
    """The data set cannot be used as it is; the message lists all its faults."""


class ModelError(SettingsError):
    """The base model cannot be loaded, or is not what the configuration says."""


class CheckpointError(RunnerError):
    """A checkpoint belongs to another configuration or data set, or is damaged."""


class ArtifactError(RunnerError):
    """A saved adapter, read back, differs from the trained one."""


class DivergedError(RunnerError):
    """A job's loss, gradient or weights are not finite numbers."""


class OutOfMemoryError(RunnerError):
    """A single image does not fit in the device's memory."""


class AwsError(RunnerError):
    """AWS rejected a request, or what was started there did not come up."""


class Interrupted(RunnerError):
    """A signal asked to stop; everything up to the named step is saved."""


class Detached(RunnerError):
    """Jobs continue elsewhere, and this command does not wait for them."""


class JobsFailed(RunnerError):
    """At least one job did not complete; the message is the table of jobs."""


class Defect(Exception):
    """Something went wrong while jobs ran that no user can fix; its cause says what."""


class Refusals:
    """Reasons why a command cannot start, collected over several checks and reported together."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def of(self, look: Callable[[], T]) -> T | None:
        """The result of a check, or None if it raises a SettingsError."""
        try:
            return look()
        except SettingsError as error:
            self.texts.append(str(error))
            return None

    def raise_if_any(self) -> None:
        """Raise a SettingsError with all of them, if there are any."""
        under: dict[str, list[str]] = {}
        for text in self.texts:
            head, *lines = text.splitlines()
            under.setdefault(head, []).extend(lines)
        if under:
            raise SettingsError("\n".join(line for head, lines in under.items() for line in (head, *lines)))


def not_started(head: str, faults: Iterable[str]) -> SettingsError:
    """The error that reports all faults at once, one line each.

    Args:
        head: what cannot start because of them, such as "The search is invalid".
    """
    return SettingsError("\n".join([f"{head}, nothing was started:", *(f"  {fault}" for fault in faults)]))


def system_error(error: BaseException) -> int | None:
    """The number of a system error that a user can fix; None if it is anything else."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := SYSTEM_ERROR.search(str(error))):
        code = int(found[1] or found[2])
    return code if code in MENDED_BY else None


def refusal(error: BaseException) -> str | None:
    """What the system does not let be read or written, and what to do about it; None if it is anything else."""
    code = system_error(error)
    if code is None:
        return None
    file = getattr(error, "filename", None)
    where = "" if file is None else f": {os.fsdecode(file)}"
    return f"{os.strerror(code)}{where}; {MENDED_BY[code]}"


def in_words(error: Exception) -> str:
    """Why something failed, in words for its job's folder; unforeseen errors include their type."""
    if isinstance(error, RunnerError):
        return str(error)
    return refusal(error) or f"{type(error).__name__}: {error}"
