"""Whether Weights & Biases can be used from here, and how long to wait for it.

Takes settings, answers yes or no. It never prompts at the terminal and never logs in.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Literal, TypeVar, cast, get_args

RunMode = Literal["online", "offline", "disabled"]

Result = TypeVar("Result")

PROBE_TIMEOUT_S = 5.0
"""How long the check for a server may take."""

ASK_AGAIN_S = 60.0
"""How long a server that did not answer is left alone; otherwise the jobs of a pack would wait one after the other."""

_silent: dict[str, tuple[float, str]] = {}
"""Server -> when it did not answer, by the monotonic clock, and why."""


def silent_because(url: str) -> str | None:
    """Why the server at `url` recently did not answer; None if it did, or was not asked."""
    noted_s, reason = _silent.get(url, (-math.inf, None))
    return reason if time.monotonic() - noted_s < ASK_AGAIN_S else None


def choose_mode(wanted: str) -> RunMode:
    """The mode to run in; `auto` means WANDB_MODE if set, else online if there is an API key, else offline.

    Args:
        wanted: auto, online, offline or disabled (the setting `logger.mode`).

    Raises:
        ValueError: for any other word, in the setting or in WANDB_MODE.
        wandb.errors.AuthenticationError: if the API key is malformed.
    """
    if wanted == "auto":
        named = os.environ.get("WANDB_MODE", "").lower()
        wanted = {"dryrun": "offline", "run": "online"}.get(named, named)
        if not wanted:
            return "online" if has_credentials() else "offline"
    if wanted in get_args(RunMode):
        return cast("RunMode", wanted)
    raise ValueError(f"logger.mode (or WANDB_MODE) is {wanted!r}: it must be one of auto, online, offline, disabled")


def server_url() -> str:
    """The server that wandb would talk to: WANDB_BASE_URL, its settings files, or the public one."""
    import wandb

    # Otherwise wandb would merge SageMaker's values into its settings when they are first read.
    return str(wandb.setup(settings=wandb.Settings(sagemaker_disable=True, silent=True)).settings.base_url)


def has_credentials() -> bool:
    """Whether wandb has an API key for its server (environment, netrc, settings), looked up as wandb itself does.

    Raises:
        wandb.errors.AuthenticationError: if the key is malformed.
    """
    from wandb.sdk.lib import wbauth

    found = wbauth.authenticate_session(
        host=server_url(), source="runner", prompt=False, verify=False, update_session=False
    )
    return found is not None


def unreachable_because(url: str, timeout_s: float) -> str | None:
    """Why the server at `url` does not answer a query, or None if it does (with any answer, even an error).

    Checked before calling wandb, because a run that wandb failed to open keeps its id taken in this process.
    """
    reason = silent_because(url)
    if reason is None and (reason := _asked(url, timeout_s)) is not None:
        _silent[url] = time.monotonic(), reason
    return reason


def _asked(url: str, timeout_s: float) -> str | None:
    query = json.dumps({"query": "query Probe { __typename }"}).encode()
    request = urllib.request.Request(f"{url}/graphql", query, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        # A certificate that only wandb is set up to trust still means that the server exists.
        return None if isinstance(error.reason, ssl.SSLError) else f"{url}: {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: not a web server
        return f"{url}: {str(error).strip() or type(error).__name__}"


def within(timeout_s: float, call: Callable[[], Result], *, if_late: Callable[[Result], None] | None = None) -> Result:
    """What `call` returns or raises, waiting no longer than `timeout_s`.

    After a timeout, the call continues in a daemon thread, because a thread cannot be stopped.

    Args:
        if_late: called with the value if it arrives after the timeout, to clean up.

    Raises:
        TimeoutError: if the time runs out first.
    """
    result: Future[Result] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread whole, whatever it is
            result.set_exception(error)

    threading.Thread(target=work, name="wandb-call", daemon=True).start()
    wait([result], timeout=timeout_s)
    if result.done():
        return result.result()
    if if_late is not None:
        clean_up = if_late
        result.add_done_callback(lambda done: None if done.exception() else clean_up(done.result()))
    raise TimeoutError(f"no answer within {timeout_s:g} s")
