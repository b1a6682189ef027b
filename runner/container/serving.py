"""Runs the container as an endpoint: as an unprivileged user, with the model where SageMaker has put it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from runner.container.secret_values import fetch
from runner.container.tree import Tree
from runner.container.user import leave_root
from runner.errors import RunnerError
from runner.parcel import HUB_SECRET
from runner.serve.__main__ import FOLDER, main
from runner.system.printable import log_to

log = logging.getLogger(__name__)

EVERYWHERE = "0.0.0.0"
"""Requests reach a container from outside."""


def serve(arguments: Sequence[str]) -> int:
    """Serve until a signal asks to stop; returns the container's exit code."""
    log_to(sys.stdout, logging.INFO)
    tree = Tree.here()
    # An endpoint writes nothing, and reads only the model.
    tree.data, tree.written = tree.model, ()
    leave_root(tree)
    if secret := os.environ.get(HUB_SECRET):
        try:
            os.environ.update(fetch({"HF_TOKEN": secret}, os.environ.get("AWS_REGION")))
        except RunnerError as error:
            log.error("%s", error)
            return 1
    os.environ.setdefault(FOLDER, str(tree.model))
    return main(["--host", EVERYWHERE, *arguments])
