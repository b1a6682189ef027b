"""The Hugging Face Hub as a place for models and adapters: names of repositories, and whether they are available.

Its client is imported only for requests to the Hub. Data sets are fetched in `runner.data`, each layout in its own way.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.paths import path_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TIMEOUT_S = 10
QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")
"""A URL with its query, which in a signed URL holds the signature."""


def hub_faults(
    key: str,
    value: str,
    file: str,
    revision: str | None,
    *,
    ask: bool,
    layout: str = "diffusers",
    lacks: Callable[[Path], Iterator[str]] = lambda _copy: iter(()),
) -> list[str]:
    """What is wrong with a value that is not a folder on this machine and so should be a Hub id.

    Args:
        file: a file that such a repository has.
        ask: whether it must also be in the local cache or reachable, not only well-formed.
        layout: the library whose layout is expected.
        lacks: what a copy in the local cache lacks, with the fix after a semicolon; it matters only if the rest cannot
            be fetched.
    """
    owner, slash, name = value.partition("/")
    if not (slash and owner and name) or "/" in name or value.startswith((".", "~")):
        parent = path_of(value).parent
        siblings = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        near = difflib.get_close_matches(Path(value).name, siblings, n=1)
        if path_of(value).is_file():
            return [f"{key} = {value!r}: is a file; give a folder in {layout} layout, or a .tar.gz of one"]
        hint = f", did you mean {parent / near[0]}?" if near else "; give a folder or a Hub id (owner/name)"
        return [f"{key} = {value!r}: there is no such folder{hint}"]
    copy = cached(value, file, revision) if ask else None
    missing = [] if copy is None else [reason.partition(";")[0] for reason in lacks(copy.parent)]
    if not ask or (copy and not missing) or not (reason := not_answered(value, file, revision)):
        return []
    if not missing:
        return [f"{key} = {value!r}: {not_to_be_had(reason, layout)}"]
    said = (
        f"the copy in the local cache of the Hub is incomplete ({missing[0]}), and the Hub cannot be reached ({reason})"
    )
    return [f"{key} = {value!r}: {said}; fetch it once where there is a network"]


def is_hub_id(given: str) -> bool:
    """Whether a name has the form of a repository on the Hub, and nothing on this machine has that name."""
    return bool(HUB_ID.fullmatch(given)) and not Path(given).exists()


def cached(repository: str, file: str, revision: str | None) -> Path | None:
    """The path of a Hub repository's file in the local cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def unreachable(repository: str, file: str, revision: str | None) -> str:
    """Why a file of a Hub repository is neither in the local cache nor available from the Hub; empty if it is."""
    return "" if cached(repository, file, revision) else not_answered(repository, file, revision)


def not_answered(repository: str, file: str, revision: str | None) -> str:
    """Why a file of a Hub repository is not available from the Hub; empty if it is."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=TIMEOUT_S)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except Exception as error:  # noqa: BLE001 (which HTTP client the Hub's library uses changes with its version)
        return reason_of(error)
    return ""


def reason_of(error: Exception) -> str:
    """The type of an error of the Hub's client, or a library below it, and its first line, which may be empty."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # It says only that there is no local copy to fall back on; its cause says why one was needed.
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    first = QUERY.sub(r"\1", next(iter(str(error).strip().splitlines()), ""))
    return textwrap.shorten(f"{type(error).__name__}: {first}".removesuffix(": "), 160, placeholder=" ...")


def not_to_be_had(reason: str, layout: str = "diffusers") -> str:
    """The message that there is neither such a folder here nor such a repository on the Hub, and what to do."""
    return (
        f"neither a folder on this machine, nor in the local cache of the Hub, nor reachable on the Hub ({reason}); "
        f"give a folder in {layout} layout, or fetch it once where there is a network"
    )
