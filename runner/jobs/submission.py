"""Which workers a job was given to, as its manifest says it: `submission`, written by commands and never by workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Submission:
    """All empty for a job that was never given to a cluster."""

    cluster: str = ""
    """The name of the kind of cluster."""
    queue: str = ""
    """The file of the list that the workers take jobs from; a trial of a search by the cluster itself is in none."""
    ids: tuple[str, ...] = ()
    """The workers, by the names that their cluster knows; none while there is no room for any."""
    tuning: str = ""
    """The search by the cluster itself that the job is a trial of."""

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Submission:
        """What a manifest says; of one that somebody has changed by hand, what can be understood."""
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
        """What the manifest is to say."""
        place = {"tuning": self.tuning} if self.tuning else {"queue": self.queue}
        return {"cluster": self.cluster, **place, "ids": list(self.ids)}
