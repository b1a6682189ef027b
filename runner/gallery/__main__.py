"""`python -m runner.gallery DIR [--adapter FILE] [--host HOST] [--port PORT]`: serves the page until Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.job_folders import NAME_ANY, no_folder
from runner.system.listening import LOOPBACK, is_loopback, port, why_not
from runner.system.printable import log_to
from runner.system.quiet import quiet_libraries

USUAL_PORT = 7878


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page; 1 if the port is taken, 2 if there is no such folder or file."""
    parser = argparse.ArgumentParser(prog="python -m runner.gallery", description=__doc__)
    parser.add_argument("folder", type=Path, help="where experiments are: outputs, one experiment, or one job")
    parser.add_argument(
        "--adapter", type=Path, action="append", default=[], metavar="FILE", help="another .safetensors to draw with"
    )
    parser.add_argument(
        "--host", default=LOOPBACK, help="address to listen on (this machine only); any other brings a warning"
    )
    parser.add_argument("--port", type=port, default=USUAL_PORT, help=f"port to listen on ({USUAL_PORT})")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="what draws; auto: a GPU if there is one"
    )
    chosen = parser.parse_args(arguments)
    log_to(sys.stderr, logging.WARNING)
    if reason := _missing(chosen.folder, chosen.adapter) or why_not(chosen.host, chosen.port):
        print(reason, file=sys.stderr)
        return 2
    quiet_libraries()
    try:
        import uvicorn

        from runner.gallery.app import make_app
    except ModuleNotFoundError as error:
        print(f"the gallery needs {error.name}: pip install 'lora-runner[gallery]'", file=sys.stderr)
        return 1
    if not is_loopback(chosen.host):
        print(
            f"warning: with --host {chosen.host}, everybody who reaches this machine sees the pictures and prompts and "
            "may draw; there is no password",
            file=sys.stderr,
        )
    app = make_app(chosen.folder, host=chosen.host, device=chosen.device, files=chosen.adapter)
    server = uvicorn.Server(uvicorn.Config(app, chosen.host, chosen.port, log_level="warning", server_header=False))
    host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    print(f"http://{host}:{chosen.port}/  (Ctrl-C ends it)", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        return 0
    return 0 if server.started else 1


def _missing(folder: Path, adapters: Sequence[Path]) -> str:
    """What is not there; empty if all is."""
    try:
        for file in adapters:
            if not file.is_file():
                return f"--adapter {file}: no such file"
        return "" if folder.is_dir() else no_folder(folder, NAME_ANY)
    except OSError as error:  # a name that is too long
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
