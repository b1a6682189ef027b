"""The jobs that workers choose from: a list of folders, shared by several workers, that may grow while they work.

A worker claims a job through its folder's lock and its state, so no job is trained twice, however many workers share
the list. Knows nothing about how jobs are trained.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from runner.errors import RunnerError, SettingsError
from runner.jobs.job import Job, State, read_job, read_manifest, state_of, update_manifest
from runner.jobs.lock import LockedError, lock
from runner.paths import write_text

log = logging.getLogger(__name__)


class Queue:
    """Folders of jobs, in the order in which to take them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._resumes = False

    def write(
        self,
        folders: Sequence[Path],
        *,
        is_open: bool,
        open_for_s: float | None = None,
        resumes: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the list of jobs; a reader sees either the old list or the new one.

        Args:
            open_for_s: seconds after which an open list closes unless it is written again; None for never.
            resumes: whether the next worker may take a job that a signal interrupted.
            about: whatever else the writer wants to store here.
        """
        content = {"folders": [str(folder) for folder in folders], "open": is_open, "resumes": resumes}
        if is_open and open_for_s is not None:
            content["open_until"] = time.time() + open_for_s
        write_text(self.file, json.dumps(content | {"about": dict(about or {})}))

    def read(self) -> tuple[list[Path], bool]:
        """The folders, and whether more may follow."""
        content = json.loads(self.file.read_text(encoding="utf-8"))
        self._resumes = bool(content.get("resumes"))
        is_open = bool(content["open"]) and time.time() < content.get("open_until", math.inf)
        return [Path(folder) for folder in content["folders"]], is_open

    def here(self, folder: Path) -> Path:
        """The folder in this list of a job that is in `folder` on another machine: it has the same experiment and id.

        Raises:
            RunnerError: the list has no such job.
        """
        folders = [each.absolute() for each in self.read()[0]]
        if folder in folders:
            return folder
        for each in folders:
            if each.parts[-2:] == folder.parts[-2:]:
                return each
        raise RunnerError(f"{folder} is not among the jobs of this machine")

    def about(self) -> dict[str, Any]:
        """What else was stored; empty if there is no such file."""
        try:
            return dict(json.loads(self.file.read_text(encoding="utf-8"))["about"])
        except (OSError, ValueError, KeyError):
            return {}

    def tell(self, **about: Any) -> None:
        """Store more beside the jobs, replacing what has the same name; the jobs stay as they are."""
        content = json.loads(self.file.read_text(encoding="utf-8"))
        write_text(self.file, json.dumps(content | {"about": {**content["about"], **about}}))

    def takes(self, state: State) -> bool:
        """Whether to take a job in this state: unstarted, or interrupted in a list that resumes; never a failed one."""
        return state in (State.PENDING, State.SUBMITTED) or (state is State.INTERRUPTED and self._resumes)


class FixedQueue(Queue):
    """The folders given on a command line, whose jobs may be in any state but completed."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)

    def read(self) -> tuple[list[Path], bool]:
        """The folders; no more follow."""
        return self.folders, False

    def takes(self, state: State) -> bool:
        """Every job that is not completed is trained, from its newest checkpoint."""
        return state is not State.COMPLETED


class Claims:
    """The jobs that one process works on, each locked against all other processes until it is released.

    Args:
        attached: what else to hold open while a job is worked on, such as its log file.
    """

    def __init__(self, queue: Queue, attached: Callable[[Job], AbstractContextManager[object]]) -> None:
        self.queue, self._attached = queue, attached
        self._seen: set[Path] = set()
        self._said: set[Path] = set()
        self._held: dict[Path, ExitStack] = {}
        self.held: list[Job] = []

    def take(self, count: int) -> list[Job]:
        """Up to `count` jobs that nobody else holds, in the order of the queue.

        Raises:
            LockedError: a folder of a fixed queue is held by another process.
            RunnerError: a folder of a fixed queue holds no job that can be read.
        """
        taken: list[Job] = []
        folders, _ = self.queue.read()
        for folder in folders:
            if len(taken) == count:
                break
            if folder not in self._seen and (job := self._claim(folder)):
                taken.append(job)
        self.held += taken
        return taken

    def _claim(self, folder: Path) -> Job | None:
        try:
            if not self.queue.takes(state_of(folder)):
                return None
            if not folder.is_dir():  # locking it would create it again
                raise SettingsError(f"{folder} holds no job that can be read: it was removed")
        except SettingsError as error:  # a damaged manifest, or none
            if isinstance(self.queue, FixedQueue):
                raise
            if folder not in self._said:
                self._said.add(folder)
                log.warning("%s: left out", error)
            return None
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(folder))
            except LockedError:
                if isinstance(self.queue, FixedQueue):
                    raise
                return None
            self._seen.add(folder)
            # Another worker may have done it between the check and the lock.
            if not self.queue.takes(state_of(folder)):
                return None
            job = self._read(folder)
            if job is None:
                return None
            stack.enter_context(self._attached(job))
            self._held[job.folder] = stack.pop_all()
            return job
        raise AssertionError("unreachable")

    def _read(self, folder: Path) -> Job | None:
        """The job in a folder; None if its files are gone or damaged, which affects no other job of a list."""
        try:
            return read_job(folder)
        except RunnerError as error:
            if isinstance(self.queue, FixedQueue):
                raise
            log.error("%s", error)
            if read_manifest(folder):  # whoever removed all of it wants nothing there
                update_manifest(folder, state=State.FAILED, error=str(error))
            return None

    def release(self, job: Job) -> None:
        """Release a finished job."""
        self.held = [each for each in self.held if each.folder != job.folder]
        self._held.pop(job.folder).close()

    def release_all(self) -> None:
        """Release every job."""
        for job in list(self.held):
            self.release(job)

    @property
    def more_may_come(self) -> bool:
        """Whether it makes sense to wait for more jobs."""
        try:
            return self.queue.read()[1]
        except (OSError, ValueError) as error:
            raise RunnerError(f"the list of jobs is gone: {error}") from error
