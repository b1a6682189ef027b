"""A stand-in for Secrets Manager."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.train.bench import bench

__all__ = ["bench"]

REGION = "eu-west-1"


class Secrets:
    """The secrets in it, and the variables by which a process finds it."""

    def __init__(self, url: str) -> None:
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._client = boto3.client(
            "secretsmanager",
            region_name=REGION,
            endpoint_url=url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def put(self, text: str) -> str:
        """Store a secret; returns its ARN."""
        return str(self._client.create_secret(Name=f"secret-{uuid.uuid4().hex}", SecretString=text)["ARN"])


@pytest.fixture(scope="module")
def aws_secrets() -> Iterator[Secrets]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield Secrets(f"http://{host}:{port}")
    server.stop()
