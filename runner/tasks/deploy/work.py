"""Uploads what is served, creates the endpoint, and waits until it answers."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from runner.aws.account import Account, refusals_said
from runner.aws.endpoints import Endpoints, Wanted
from runner.aws.image import image_of
from runner.aws.names import Places
from runner.aws.prices import Prices
from runner.aws.sent import send_folder
from runner.aws.storage import Storage
from runner.jobs.adapter_file import AdapterFile
from runner.jobs.deployed import take_back, undeploy_command
from runner.jobs.job import now, update_manifest
from runner.parcel import HUB_SECRET
from runner.paths import JobPaths, write_text
from runner.schema.serving import SERVE_FILE
from runner.schema.tasks.deploy import Deploy
from runner.system.hashes import folder_hash
from runner.tasks.adapters import find_adapters
from runner.tasks.deploy.check import SECTION
from runner.tasks.deploy.contents import base_folder, key_of, served_files, served_names, serving_of

log = logging.getLogger(__name__)

PASSED_VARIABLES = ("HF_ENDPOINT",)


def work(settings: Deploy, paths: JobPaths, _place: object, *, stop: Callable[[], bool]) -> dict[str, Any]:
    """See `runner.tasks`.

    Raises:
        AwsError: AWS refuses something, or the endpoint does not come up.
        Interrupted: a signal asked to stop; the endpoint continues to start.
    """
    with refusals_said():
        return _deploy(settings, paths, stop)


def _deploy(settings: Deploy, paths: JobPaths, stop: Callable[[], bool]) -> dict[str, Any]:
    chosen = settings.endpoint
    account = Account(chosen, section=SECTION)
    account.make_bucket()
    adapters = find_adapters(settings)
    names = served_names(settings, adapters)
    name = chosen.name or settings.name
    wanted = _upload(settings, account, name, names, adapters)
    endpoints = Endpoints(account)
    price = Prices(account, component="Hosting").per_hour(chosen.instance)
    about = {
        "name": name,
        "region": account.region,
        "bucket": chosen.bucket,
        "prefix": chosen.prefix,
        "instance": chosen.instance,
        "instances": chosen.instances,
        "usd_per_hour": None if price is None else round(price.usd * chosen.instances, 4),
        "max_instances": chosen.max_instances,
        "adapters": names,
        "files": wanted.adapters.uri,
        "made": now(),
    }
    # Recorded before the endpoint exists: whatever happens next, somebody must be able to find what costs money.
    update_manifest(paths.folder, endpoint=about)
    outputs, why = paths.folder.parent.parent, f"its endpoint was given to {paths.folder.name} at {now()}"
    take_back(outputs, name, account.region, why=why, but=paths.folder)
    endpoints.make(wanted, chosen, experiment=settings.name)
    if chosen.wait:
        endpoints.wait(wanted, poll_s=chosen.poll_s, stop=stop)
    endpoints.scale(name, chosen)
    example = request_example(about)
    write_text(paths.folder / "request.txt", example)
    for line in example.splitlines():
        log.info("%s", line)
    return {"endpoint": about}


def _upload(settings: Deploy, account: Account, name: str, names: list[str], adapters: list[AdapterFile]) -> Wanted:
    """Upload what the containers read; files that are already there are not sent again."""
    chosen = settings.endpoint
    storage, places = Storage(account.s3, chosen.kms_key), Places(account.bucket, chosen.prefix)
    image, serving = image_of(chosen), serving_of(settings, names)
    assert image is not None, "checked before"
    key = key_of(settings, image, serving, [adapter.digest for adapter in adapters])
    folder, base = base_folder(settings), None
    if folder is not None:
        base = places.model(folder_hash(folder))
        send_folder(folder, base, storage, what="the base model")
    place = places.endpoint(name) / f"{key}/"
    storage.upload(served_files(names, adapters), place)
    storage.write(place / SERVE_FILE, serving.model_dump_json(indent=2).encode())
    return Wanted(name, key, image, account.role_arn, place, base, _environment(chosen.hub_secret, account.region))


def _environment(hub_secret: str | None, region: str) -> dict[str, str]:
    passed = {name: value for name in PASSED_VARIABLES if (value := os.environ.get(name))}
    return passed | {"AWS_REGION": region} | ({HUB_SECRET: hub_secret} if hub_secret else {})


def request_example(about: Mapping[str, Any]) -> str:
    """A request to the endpoint that can be copied, and the command that removes the endpoint."""
    body = {"prompt": "a photo of a dog", "seed": 0, "adapters": dict.fromkeys(about["adapters"][:2], 1.0)}
    return (
        "A request:\n"
        f"  aws sagemaker-runtime invoke-endpoint --region {about['region']} --endpoint-name {about['name']} \\\n"
        "    --content-type application/json --accept image/png --cli-binary-format raw-in-base64-out \\\n"
        f"    --body {shlex.quote(json.dumps(body))} image.png\n"
        f"To end it, and what it costs: {undeploy_command(about)}\n"
    )
