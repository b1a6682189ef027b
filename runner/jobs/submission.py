"""Which workers a job was given to: the `submission` of its manifest, written by commands and never by workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Submission:
    """The submission of a job; all fields are empty if it was never given to a cluster."""

    cluster: str = ""
    """The name of the kind of cluster."""
    queue: str = ""
    """The list file that the workers take jobs from; empty for a trial of a search that the cluster itself runs."""
    ids: tuple[str, ...] = ()
    """The workers, by the names their cluster uses; empty while there is no room for any."""
    tuning: str = ""
    """The search, run by the cluster itself, that the job is a trial of."""

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Submission:
        """The submission in a manifest; if somebody edited it by hand, as much as can be understood."""
        known = manifest.get("submission")
        if not isinstance(known, Mapping):
            return cls()
        ids = known.get("ids")
        return cls(
            str(known.get("cluster") or ""),
            str(known.get("queue") or ""),
            tuple(map(str, ids if isinstance(ids, list) else ())),
            str(known.get("tuning") or ""),
        )

    def __bool__(self) -> bool:
        return bool(self.cluster)

    @property
    def data(self) -> dict[str, Any]:
        """The form in which the manifest stores it."""
        place = {"tuning": self.tuning} if self.tuning else {"queue": self.queue}
        return {"cluster": self.cluster, **place, "ids": list(self.ids)}
