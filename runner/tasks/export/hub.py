"""The Hub: checks, before any work, whether this account may write there; and the push. `HF_ENDPOINT` sets its address.

The token is read from the environment, or from where `hf auth login` has put it; it is never written.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunnerError
from runner.paths import files_below
from runner.schema.tasks.export import HubSettings
from runner.system.values import as_typed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

NO_TOKEN = "there is no token for the Hub; set HF_TOKEN in the environment, or run: hf auth login"
UNAUTHORIZED, FORBIDDEN = 401, 403


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What is on the Hub now."""

    repo_id: str
    url: str
    commit: str


def hub_faults(settings: HubSettings) -> list[str]:
    """Why a push would fail, as far as this can be known in advance; asks the Hub whose token it is."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    repo_id = str(settings.repo_id)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        return [f"hub.repo_id = {repo_id!r}: {str(error).rstrip('.')}; give owner/name"]
    owner, slash, _ = repo_id.partition("/")
    if not slash:
        return [f"hub.repo_id = {repo_id!r}: does not say whose it is; give owner/name"]
    if not get_token():
        return [f"hub.push = true: {NO_TOKEN}"]
    try:
        account = _api().whoami()
    except Exception as error:  # noqa: BLE001 (which HTTP client the Hub's library uses changes with its version)
        return [f"hub.push = true: {_reason(error)}"]
    if (reason := _no_write(account)) is not None:
        return [f"hub.push = true: {reason}"]
    own = {str(account.get("name")), *(str(each.get("name")) for each in account.get("orgs", ()))}
    if owner not in own:
        name, owners = account.get("name"), " or ".join(sorted(own))
        return [f"hub.repo_id = {repo_id!r}: the token belongs to {name}, who is not {owner}; take {owners} as owner"]
    return _seen_otherwise(settings)


def _seen_otherwise(settings: HubSettings) -> list[str]:
    """A fault if an existing repository's visibility is not the one asked for: a push does not change it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = bool(_api().model_info(str(settings.repo_id)).private)
    except RepositoryNotFoundError:
        return []
    except Exception as error:  # noqa: BLE001 (as above)
        return [f"hub.repo_id = {settings.repo_id!r}: {_reason(error)}"]
    if private == settings.private:
        return []
    there = "private" if private else "public"
    fix = f"set hub.private={as_typed(private)}, or take another repository"
    return [
        f"hub.private = {as_typed(settings.private)}: {settings.repo_id} is there already, and it is {there}; {fix}"
    ]


def _no_write(account: dict[str, Any]) -> str | None:
    """Why a token may not write anything; None if it may, or if its rights are too fine-grained to tell."""
    role = (account.get("auth") or {}).get("accessToken", {}).get("role")
    return "the token may only read; make one that may write" if role == "read" else None


def push(folder: Path, settings: HubSettings, *, message: str) -> Pushed:
    """Push a folder to the repository, which is created if needed, and check that every file arrived.

    Hidden files are not sent: they include those that a killed process left half written.

    Raises:
        RunnerError: the Hub refuses the push, cannot be reached, or has other files than were sent.
    """
    api, repo_id = _api(), str(settings.repo_id)
    try:
        url = api.create_repo(repo_id, private=settings.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, ignore_patterns=[".*", "*/.*"]
        )
        stored = {each.rfilename: each.size for each in api.model_info(repo_id, files_metadata=True).siblings or ()}
    except Exception as error:
        # It may come from any library and layer; users only need the reason.
        raise RunnerError(f"hub.repo_id = {repo_id!r}: {_reason(error)}") from error
    for file in files_below(folder, hidden=False):
        name = file.relative_to(folder).as_posix()
        if stored.get(name) != file.stat().st_size:
            raise RunnerError(f"hub.repo_id = {repo_id!r}: the Hub does not have {name} as it was sent; run it again")
    return Pushed(repo_id, str(url), commit.oid)


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _reason(error: Exception) -> str:
    """What happened, in words; in the Hub's own where it gives any."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    own = getattr(error, "server_message", None) or str(error).strip()
    said = (own.splitlines() or [type(error).__name__])[-1][:200]
    if status == UNAUTHORIZED:
        return "the Hub does not know the token (401); make a new one, and set HF_TOKEN"
    if status == FORBIDDEN:
        return f"the token may not write there (403: {said}); give it the right to, or take another repository"
    if status is not None:
        return f"the Hub answers with {status}: {said}"
    if (cause := error.__cause__) is not None:
        # A file was not sent. Its error's own message is left out: it holds the signed address that it was sent to.
        refused = getattr(getattr(cause, "response", None), "status_code", None)
        said += f" {type(cause).__name__}" + (f" {refused}" if refused is not None else "")
    return f"the Hub cannot be reached or used ({type(error).__name__}: {said})"
