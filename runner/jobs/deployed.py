"""What manifests say about endpoints: which jobs have made one that still exists, and how to remove it.

Reads only folders and manifests; AWS is not asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.jobs.job import State, read_manifest, update_manifest
from runner.paths import MANIFEST_NAME
from runner.schema.aws import AwsSettings

log = logging.getLogger(__name__)


def deployments(outputs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, manifest) of every job, in any experiment, with an endpoint that has not been taken back."""
    for file in sorted(outputs.glob(f"*/*/{MANIFEST_NAME}")):
        try:
            manifest = read_manifest(file.parent)
        except RunnerError as error:
            log.warning("%s", error)
            continue
        if endpoint_of(manifest):
            yield file.parent, manifest


def endpoint_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says about its endpoint; empty if there is none."""
    about = manifest.get("endpoint")
    return about if isinstance(about, dict) and about.get("name") else {}


def take_back(outputs: Path, name: str, region: str, *, why: str, but: Path | None = None) -> None:
    """Stop every job from claiming that an endpoint is as the job made it, so that such jobs can be run again.

    Args:
        but: the folder of the job that the endpoint belongs to now.
    """
    for folder, manifest in deployments(outputs):
        about = endpoint_of(manifest)
        if folder != but and (about["name"], about.get("region")) == (name, region):
            update_manifest(folder, state=State.CANCELLED, endpoint=None, error=why)


def undeploy_command(about: Mapping[str, Any]) -> str:
    """The command that removes an endpoint and everything that was uploaded for it, wherever that is stored."""
    usual = {"bucket": None, "prefix": AwsSettings.model_fields["prefix"].default}
    places = {key: about.get(key) for key in ("region", *usual)}
    said = [f"endpoint.{key}={value}" for key, value in places.items() if value and value != usual.get(key)]
    return " ".join([f"python -m runner task=undeploy endpoint.name={about['name']}", *said])
