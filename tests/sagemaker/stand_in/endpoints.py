"""Endpoints: models, configurations and endpoints as an API; each endpoint is a real process that answers over HTTP.

Each has one instance, whatever was requested; an endpoint is in service once `/ping` answers 200.
"""

from __future__ import annotations

import shutil
import socket
import threading
import time
import traceback
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from .account import Account
from .calls import Call
from .hosts import Host
from .log_streams import LogStream, create_group
from .protocol import ServiceError, page_of
from .s3_files import channel_objects, download
from .server import Reply

POLL_S = 0.05
ADDITIONAL = "additional-model-data-sources"
FAILED_TO_START = (
    "The primary container for production variant {} did not pass the ping health check. Please check CloudWatch logs "
    "for this endpoint."
)


class Endpoint(threading.Thread):
    """One endpoint, from its creation to its removal."""

    def __init__(self, account: Account, name: str, config: dict[str, Any], model: dict[str, Any]) -> None:
        super().__init__(daemon=True, name=f"endpoint {name}")
        self.account, self.endpoint, self.config, self.model = account, name, config, model
        self.status, self.reason = "Creating", ""
        self.before = ""
        """The configuration in use until an update is complete."""
        self.created = datetime.now(UTC)
        self.removed = threading.Event()
        self.port = _free_port()
        self.host: Host | None = None
        self.log: LogStream | None = None
        self.folder = account.platform.settings.root / f"endpoint-{name}"
        self.variant = config["ProductionVariants"][0]

    def run(self) -> None:
        """Start the container, wait for its health check, and keep it until it is removed."""
        try:
            self._start()
            self._wait_for_ping()
            while not self.removed.is_set() and not self.account.platform.closing.is_set():
                time.sleep(POLL_S)
        except Exception as error:  # noqa: BLE001
            if not self.account.platform.closing.is_set():
                self.account.faults.append(traceback.format_exc())
            self.status, self.reason = "Failed", f"InternalServerError: {error}"
        finally:
            if self.host is not None:
                self.host.close()
            if self.log is not None:
                self.log.join()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        platform, container = self.account.platform, self.model["PrimaryContainer"]
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.host = host = Host(platform.settings, "model", self.folder, ["model"])
        host.equip(self.account.instance(self.variant["InstanceType"]))
        sources = [("model", container["ModelDataSource"])]
        for extra in container.get("AdditionalModelDataSources", []):
            sources.append((f"{ADDITIONAL}/{PurePosixPath(extra['ChannelName'])}", extra))
        for place, source in sources:
            objects = channel_objects(platform.s3, source["S3DataSource"])
            assert objects, f"nothing lies at {source['S3DataSource']['S3Uri']}"
            download(platform.s3, objects, host.ml / place)
        assumed = platform.sts.assume_role(RoleArn=self.model["ExecutionRoleArn"], RoleSessionName="SageMaker")
        keys = assumed["Credentials"]
        role = self.model["ExecutionRoleArn"].rpartition("/")[2]
        self.account.permissions.roles_of_keys[keys["AccessKeyId"]] = role
        environment = {
            "AWS_REGION": platform.settings.region,
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys["SessionToken"],
            "AWS_ENDPOINT_URL": platform.url,
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            **container.get("Environment", {}),
        }
        pipe = host.start(self.account.images.find(container["Image"]), ([], ["serve"]), environment)
        group = f"/aws/sagemaker/Endpoints/{self.endpoint}"
        create_group(platform.logs, group)
        stream = f"{self.variant['VariantName']}/i-{self.created:%H%M%S%f}"
        self.log = LogStream(platform.logs, group, stream, pipe, lambda _line: None)

    def _wait_for_ping(self) -> None:
        limit_s = self.variant.get("ContainerStartupHealthCheckTimeoutInSeconds", 480)
        deadline_s = time.monotonic() + limit_s
        while not self.removed.is_set() and not self.account.platform.closing.is_set():
            assert self.host is not None
            if self.host.exit_code is not None or time.monotonic() > deadline_s:
                self.status, self.reason = "Failed", FAILED_TO_START.format(self.variant["VariantName"])
                return
            if self._asked("/ping")[0] == 200:
                self.status = "InService"
                return
            time.sleep(POLL_S)

    def invoke(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
        """Status, body and media type of the container's answer."""
        return self._asked("/invocations", body, headers)

    def _asked(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(), answer.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers.get("Content-Type", "")
        except OSError:
            return 0, b"", ""


class Endpoints:
    """All models, configurations and endpoints of the account."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.models: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, Endpoint] = {}

    @property
    def operations(self) -> dict[str, Any]:
        """The operations that are answered."""
        return {
            "CreateModel": self._create_model,
            "DescribeModel": lambda asked, _: _found(self.models, asked["ModelName"], "model"),
            "DeleteModel": lambda asked, _: _delete(self.models, asked["ModelName"], "model"),
            "ListModels": lambda asked, _: _listed(self.models, asked, "Models", ("ModelName", "ModelArn")),
            "CreateEndpointConfig": self._create_config,
            "DescribeEndpointConfig": lambda asked, _: _found(
                self.configs, asked["EndpointConfigName"], "endpoint configuration"
            ),
            "DeleteEndpointConfig": lambda asked, _: _delete(
                self.configs, asked["EndpointConfigName"], "endpoint configuration"
            ),
            "ListEndpointConfigs": lambda asked, _: _listed(
                self.configs, asked, "EndpointConfigs", ("EndpointConfigName", "EndpointConfigArn")
            ),
            "CreateEndpoint": self._create,
            "UpdateEndpoint": self._update,
            "DescribeEndpoint": self._describe,
            "DeleteEndpoint": self._delete,
        }

    def close(self) -> None:
        """End what still runs."""
        for endpoint in self.endpoints.values():
            endpoint.removed.set()
            endpoint.join()

    def invoke(self, call: Call, environ: dict[str, Any]) -> Reply:
        """The runtime's operation, which is not JSON."""
        name = call.path.split("/")[2]
        endpoint = self.endpoints.get(name)
        if endpoint is None or endpoint.status != "InService":
            raise ServiceError("ValidationError", f"Endpoint {name} of account not found.")
        headers = {"Content-Type": environ.get("CONTENT_TYPE", ""), "Accept": environ.get("HTTP_ACCEPT", "")}
        status, body, kind = endpoint.invoke(environ["wsgi.input"].read(), headers)
        if status != 200:
            said = body.decode(errors="replace")
            message = (
                f"Received {'client' if status < 500 else 'server'} error ({status}) from main with message {said!r}"
            )
            raise ServiceError("ModelError", message, 424, OriginalStatusCode=status, OriginalMessage=said)
        return Reply(body, kind, [("x-Amzn-Invoked-Production-Variant", endpoint.variant["VariantName"])])

    def _create_model(self, asked: dict[str, Any], _call: Call) -> dict[str, Any]:
        name, container = asked["ModelName"], asked["PrimaryContainer"]
        self.account.require_role(asked["ExecutionRoleArn"])
        self.account.require_image(container["Image"], asked["ExecutionRoleArn"])
        return {"ModelArn": self._keep(self.models, "model", name, asked, "ModelArn")}

    def _create_config(self, asked: dict[str, Any], _call: Call) -> dict[str, Any]:
        for variant in asked["ProductionVariants"]:
            _found(self.models, variant["ModelName"], "model")
            self.account.instance(variant["InstanceType"])
        name = asked["EndpointConfigName"]
        return {"EndpointConfigArn": self._keep(self.configs, "endpoint-config", name, asked, "EndpointConfigArn")}

    def _keep(self, kept: dict[str, Any], kind: str, name: str, asked: dict[str, Any], key: str) -> str:
        if name in kept:
            raise ServiceError("ValidationException", f'Cannot create already existing {kind} "{name}".')
        arn = self.account.arn(kind, name)
        content = {each: value for each, value in asked.items() if each != "Tags"}
        kept[name] = content | {key: arn, "CreationTime": datetime.now(UTC)}
        self.account.tags[arn] = list(asked.get("Tags", []))
        return arn

    def _create(self, asked: dict[str, Any], _call: Call) -> dict[str, Any]:
        name = asked["EndpointName"]
        if name in self.endpoints:
            raise ServiceError("ValidationException", f'Cannot create already existing endpoint "{name}".')
        self._begin(name, asked["EndpointConfigName"])
        arn = self.account.arn("endpoint", name)
        self.account.tags[arn] = list(asked.get("Tags", []))
        return {"EndpointArn": arn}

    def _update(self, asked: dict[str, Any], _call: Call) -> dict[str, Any]:
        old = self._endpoint(asked["EndpointName"])
        if old.status not in ("InService", "Failed"):
            message = f'Cannot update in-progress endpoint "{old.endpoint}".'
            raise ServiceError("ValidationException", message)
        variant = _found(self.configs, asked["EndpointConfigName"], "endpoint configuration")["ProductionVariants"][0]
        if variant["InstanceType"] != old.variant["InstanceType"] and self._grows(old):
            message = "The variant must be deregistered from Auto Scaling before its instance type may change."
            raise ServiceError("ValidationException", message)
        old.removed.set()
        old.join()
        self._begin(old.endpoint, asked["EndpointConfigName"], before=old.config["EndpointConfigName"])
        return {"EndpointArn": self.account.arn("endpoint", old.endpoint)}

    def _grows(self, endpoint: Endpoint) -> bool:
        scaling = self.account.platform.client("application-autoscaling")
        resource = f"endpoint/{endpoint.endpoint}/variant/{endpoint.variant['VariantName']}"
        found = scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[resource])
        return bool(found["ScalableTargets"])

    def _begin(self, name: str, config_name: str, *, before: str = "") -> Endpoint:
        config = _found(self.configs, config_name, "endpoint configuration")
        model = _found(self.models, config["ProductionVariants"][0]["ModelName"], "model")
        endpoint = self.endpoints[name] = Endpoint(self.account, name, config, model)
        if before:
            endpoint.status, endpoint.before = "Updating", before
        endpoint.start()
        return endpoint

    def _endpoint(self, name: str) -> Endpoint:
        found: Endpoint = _found(self.endpoints, name, "endpoint")
        return found

    def _describe(self, asked: dict[str, Any], _call: Call) -> dict[str, Any]:
        endpoint = self._endpoint(asked["EndpointName"])
        status, config = endpoint.status, endpoint.config["EndpointConfigName"]
        pending = {"PendingDeploymentSummary": {"EndpointConfigName": config}} if status == "Updating" else {}
        return pending | {
            "EndpointName": endpoint.endpoint,
            "EndpointArn": self.account.arn("endpoint", endpoint.endpoint),
            "EndpointConfigName": endpoint.before if status == "Updating" else config,
            "EndpointStatus": status,
            "FailureReason": endpoint.reason or None,
            "CreationTime": endpoint.created,
            "LastModifiedTime": endpoint.created,
        }

    def _delete(self, asked: dict[str, Any], _call: Call) -> dict[str, Any]:
        endpoint = self._endpoint(asked["EndpointName"])
        endpoint.removed.set()
        endpoint.join()
        del self.endpoints[endpoint.endpoint]
        return {}


def _found(kept: dict[str, Any], name: str, kind: str) -> Any:
    if name not in kept:
        raise ServiceError("ValidationException", f'Could not find {kind} "{name}".')
    return kept[name]


def _delete(kept: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    _found(kept, name, kind)
    del kept[name]
    return {}


def _listed(kept: dict[str, Any], asked: dict[str, Any], field: str, keys: tuple[str, ...]) -> dict[str, Any]:
    names = [name for name in sorted(kept) if asked.get("NameContains", "") in name]
    shown, token = page_of(names, asked)
    items = [{key: kept[name][key] for key in (*keys, "CreationTime")} for name in shown]
    return {field: items, "NextToken": token}


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
