"""A data set on the Hugging Face Hub: downloads its files, or uses the existing copy, and explains failures in plain
words.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.data.faults import Faults
from runner.data.sources.found import KNOWN_SPLITS
from runner.data.sources.listing import DESCRIPTION_NAME, IMAGE_SUFFIXES, METADATA_NAMES, STATE_NAME, TABLE_SUFFIXES

if TYPE_CHECKING:
    from runner.schema import DatasetSettings


DIGITS = "[0-9]" * 5
"""The digits in the names of shards."""


def download(settings: DatasetSettings, faults: Faults) -> Path:
    """Folder with the files of `settings.path` at `settings.revision`. Raises DatasetError."""
    from huggingface_hub import snapshot_download

    wanted, unwanted = patterns(settings)
    try:
        folder = snapshot_download(
            settings.paths[0],
            repo_type="dataset",
            revision=settings.revision,
            allow_patterns=wanted,
            ignore_patterns=unwanted,
        )
    except Exception as error:  # the client's HTTP library has its own exceptions, which are not OSErrors
        faults.add("hub", explain(settings, error))
        raise faults.error() from error
    if not Path(folder).is_dir():
        faults.add("hub", "the Hub data set has neither images nor parquet or arrow files. Give another.")
        raise faults.error()
    return Path(folder)


def patterns(settings: DatasetSettings) -> tuple[list[str], list[str]]:
    """File name patterns for what may belong to a data set, and for what does not."""
    suffixes = sorted(IMAGE_SUFFIXES | TABLE_SUFFIXES | {".txt"})
    wanted = [f"*{suffix}" for suffix in suffixes] + [f"*{suffix.upper()}" for suffix in suffixes]
    wanted += [f"*{name}" for name in (*METADATA_NAMES, DESCRIPTION_NAME, STATE_NAME)]
    # Shards of other splits are often the larger part; the Hub's own converter fixes their names. The digits are part
    # of the pattern because a star also matches folders: `test-run/train-00000-of-00001.parquet` is no test split. The
    # chosen split may end like another one: `latest` and `hard_test` end like `test`.
    others = sorted(split for split in KNOWN_SPLITS if not settings.split.endswith(split))
    return wanted, [f"*{split}-{DIGITS}-of-{DIGITS}*.parquet" for split in others]


def explain(settings: DatasetSettings, error: Exception) -> str:
    """Why the Hub does not provide the data set, with the fix."""
    from huggingface_hub import errors

    at = f" at dataset.revision={settings.revision!r}" if settings.revision else ""
    local = "give the path of a local copy as dataset.path"
    if isinstance(error, errors.GatedRepoError):
        return f"the Hub asks to accept the data set's terms. Do so on its page and set HF_TOKEN, or {local}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the Hub data set has nothing{at}. Correct dataset.revision or remove it."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such local path, and no such public data set on the Hub. "
            f"Correct the id, set HF_TOKEN if it is private, or {local}."
        )
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"there is no such local path, and the Hub data set{at} can be neither downloaded nor found in the "
        f"local cache ({type(error).__name__}: {reason}). Connect to the network once, or {local}."
    )
