"""`python -m runner.serve [--model-dir DIR] [--host HOST] [--port PORT]`: the endpoint of a SageMaker container."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runner.errors import RunnerError
from runner.system.listening import LOOPBACK, Guard, port, why_not
from runner.system.printable import log_to
from runner.system.quiet import quiet_libraries

log = logging.getLogger(__name__)

PORT, FOLDER = "SAGEMAKER_BIND_TO_PORT", "SM_MODEL_DIR"
"""Environment variables of SageMaker."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal asks to stop; 1 if the model cannot be served, 2 if nothing can listen there."""
    parser = argparse.ArgumentParser(prog="python -m runner.serve", description=__doc__)
    parser.add_argument(
        "--model-dir",
        type=Path,
        default=Path(os.environ.get(FOLDER) or "/opt/ml/model"),
        help=f"folder with serve.json and adapters/ ({FOLDER}, else /opt/ml/model)",
    )
    parser.add_argument(
        "--host", default=LOOPBACK, help="address to listen on; in a container all (0.0.0.0), as SageMaker needs"
    )
    # argparse parses a default that is text like typed input, and rejects it with the same message.
    parser.add_argument(
        "--port", type=port, default=os.environ.get(PORT) or "8080", help=f"port to listen on ({PORT}, else 8080)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="what draws; auto: a GPU if there is one"
    )
    chosen = parser.parse_args(arguments)
    log_to(sys.stdout, logging.INFO)
    if taken := why_not(chosen.host, chosen.port):
        log.error("%s", taken)
        return 2
    quiet_libraries()
    import uvicorn

    from runner.serve.app import make_app
    from runner.serve.service import Broken, Service

    reasons: list[BaseException] = []

    def failed(error: BaseException) -> None:
        reasons.append(error)
        server.should_exit = True

    try:
        service = Service(chosen.model_dir, chosen.device)
    except RunnerError as error:
        log.error("%s", error)
        return 1
    # Whatever is in front of a container addresses it by names that are unknown here.
    app = make_app(service, guard=Guard(chosen.host, any_name=True), failed=failed)
    server = uvicorn.Server(uvicorn.Config(app, chosen.host, chosen.port, log_level="warning"))
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        server.run()
    for reason in reasons:
        trace = None if isinstance(reason, RunnerError) else reason
        log.error("%s%s", "" if isinstance(reason, Broken) else "the model cannot be loaded: ", reason, exc_info=trace)
    return 1 if reasons or not server.started else 0


if __name__ == "__main__":
    sys.exit(main())
