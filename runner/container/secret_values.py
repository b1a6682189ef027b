"""Keys and tokens from Secrets Manager: fetched with the container's role, and passed only to the workers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from runner.errors import RunnerError


def fetch(secrets: Mapping[str, str], region: str | None) -> dict[str, str]:
    """Variable -> value of its secret; variables that the environment already has are skipped.

    Args:
        secrets: variable -> ARN or name of the secret, which is plain text or JSON with the variable as a key.
        region: where they are stored; None for the session's own.

    Raises:
        RunnerError: a secret cannot be fetched, is empty, or lacks the key.
    """
    wanted = {name: arn for name, arn in secrets.items() if not os.environ.get(name)}
    if not wanted:
        return {}
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    found = {}
    for name, arn in wanted.items():
        try:
            client = boto3.client("secretsmanager", region_name=region)
            answer = client.get_secret_value(SecretId=arn)
        except (BotoCoreError, ClientError) as error:
            raise RunnerError(
                f"{name}: the secret {arn} cannot be had ({error}); the execution role needs "
                "secretsmanager:GetSecretValue on it"
            ) from error
        found[name] = _value(name, arn, answer.get("SecretString"))
    return found


def _value(name: str, arn: str, text: str | None) -> str:
    if not text:
        raise RunnerError(f"{name}: the secret {arn} holds no text")
    try:
        content = json.loads(text)
    except ValueError:
        return text.strip()
    if not isinstance(content, dict):
        return text.strip()
    value = content.get(name)
    if not isinstance(value, str) or not value:
        raise RunnerError(f"{name}: the secret {arn} is JSON without the key {name}")
    return value


@contextmanager
def lent(values: Mapping[str, str]) -> Iterator[None]:
    """Inside the context, set environment variables for processes started there to inherit; then restore them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
