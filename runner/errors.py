"""The exceptions that a user may see, and their words; everything else that escapes is a defect of ours.

RunnerError
├── SettingsError (also a ValueError)   a setting is wrong; names the key, the value and the fix
│   ├── DatasetError                    the images or captions are
│   └── ModelError                      the base model is missing or of another kind
├── CheckpointError                     a checkpoint belongs to another configuration, or is damaged
├── ArtifactError                       what was saved is not what was trained
├── DivergedError                       a job's loss or gradient is not finite
├── OutOfMemoryError                    not even one image fits into memory
├── AwsError                            AWS has refused something, or did not start it
├── Interrupted                         a signal asked to stop; the work is saved
├── Detached                            jobs go on elsewhere without this command
└── JobsFailed                          at least one job did not complete

Those of one room, such as of its locks, clusters or archives, are declared there.

Defect                                what nobody has foreseen, while jobs ran
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
"""What a user can do where the system does not let a file be read or written."""
SYSTEM_ERROR = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
"""One in the words of others: of `shutil.copytree`, or of safetensors, which has no type for it."""


T = TypeVar("T")


class RunnerError(Exception):
    """Base of all errors that are reported in one line, without a traceback."""


class SettingsError(RunnerError, ValueError):
    """A setting is wrong: the message names the key, the value and the fix."""


class DatasetError(SettingsError):
    """The data set cannot be used as it is; all its faults are in the message."""


class ModelError(SettingsError):
    """The base model cannot be loaded, or is not what the configuration says."""


class CheckpointError(RunnerError):
    """A checkpoint belongs to another configuration or data set, or is damaged."""


class ArtifactError(RunnerError):
    """A saved adapter, read back, differs from the trained one."""


class DivergedError(RunnerError):
    """A job's loss, gradient or weights are not finite numbers."""


class OutOfMemoryError(RunnerError):
    """A single image does not fit into the device's memory."""


class AwsError(RunnerError):
    """AWS has refused something, or what was started there did not come up."""


class Interrupted(RunnerError):
    """A signal asked to stop; everything up to the named step is saved."""


class Detached(RunnerError):
    """Jobs go on elsewhere, and this command does not wait for them."""


class JobsFailed(RunnerError):
    """At least one job did not complete; the message is the table of them."""


class Defect(Exception):
    """Something went wrong while jobs ran that no user can mend; its cause says what."""


class Refusals:
    """What keeps a command from starting, gathered over several looks at it, so that it is told together."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def of(self, look: Callable[[], T]) -> T | None:
        """What a look gives, or None where it raises a SettingsError."""
        try:
            return look()
        except SettingsError as error:
            self.texts.append(str(error))
            return None

    def raise_if_any(self) -> None:
        """Raises SettingsError with all of them."""
        if self.texts:
            raise SettingsError("\n".join(self.texts))


def not_started(head: str, faults: Iterable[str]) -> SettingsError:
    """The error that says all faults at once, a line for each.

    Args:
        head: what they keep from starting, such as "The search is invalid".
    """
    return SettingsError("\n".join([f"{head}, nothing was started:", *(f"  {fault}" for fault in faults)]))


def system_error(error: BaseException) -> int | None:
    """The number of what the system refuses, of those that a user can mend; None where it is something else."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := SYSTEM_ERROR.search(str(error))):
        code = int(found[1] or found[2])
    return code if code in MENDED_BY else None


def refusal(error: BaseException) -> str | None:
    """What the system does not let be read or written, and what to do about that; None where it is something else."""
    code = system_error(error)
    if code is None:
        return None
    file = getattr(error, "filename", None)
    where = "" if file is None else f": {os.fsdecode(file)}"
    return f"{os.strerror(code)}{where}; {MENDED_BY[code]}"


def in_words(error: Exception) -> str:
    """Why something failed, as its job's folder says it: what nobody has foreseen with its type."""
    if isinstance(error, RunnerError):
        return str(error)
    return refusal(error) or f"{type(error).__name__}: {error}"
