"""What arrives: a request as service, operation, parameters and sender; and refusals in that service's format."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from .protocol import ServiceError

RECORDED_BODY_BYTES = 1 << 20

S3_ACTIONS = {
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "HeadBucket": "ListBucket",
    "HeadObject": "GetObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "CopyObject": "PutObject",
    "DeleteObjects": "DeleteObject",
    "ListBuckets": "ListAllMyBuckets",
}
"""Operations whose permission has another name."""


@dataclasses.dataclass
class Call:
    """One request and its answer."""

    service: str
    """The service's name in AWS's signature: sagemaker, s3, logs, iam, ..."""
    operation: str
    parameters: dict[str, Any]
    """The JSON, or the form; for S3 the bucket and the key."""
    path: str
    """Including what follows the question mark."""
    body: bytes
    """At most the first MiB."""
    access_key: str
    region: str
    expected_owner: str = ""
    """The account that must own the bucket, or S3 refuses."""
    caller: str = ""
    """The role that a job's container acts as; empty for the person who submits."""
    status: int = 0
    error: str = ""
    """The code of AWS's error, if the stand-in raised one."""

    @property
    def action(self) -> str:
        """The permission that the call requires."""
        name = S3_ACTIONS.get(self.operation, self.operation) if self.service == "s3" else self.operation
        return f"{self.service}:{name}"


def read_call(environ: dict[str, Any], body: bytes) -> Call:
    """Parse a WSGI request into a call."""
    query = environ.get("QUERY_STRING", "")
    asked = parse_qs(query, keep_blank_values=True)
    scope = re.search(r"Credential=([^/,]+)/\d+/([^/]+)/([^/]+)/aws4_request", environ.get("HTTP_AUTHORIZATION", ""))
    if scope is None and "X-Amz-Credential" in asked:
        scope = re.match(r"([^/]+)/\d+/([^/]+)/([^/]+)/", asked["X-Amz-Credential"][0])
    key, region, service = scope.groups() if scope else ("", "us-east-1", "s3")
    path = environ.get("PATH_INFO", "/")
    kind, target = environ.get("CONTENT_TYPE", ""), environ.get("HTTP_X_AMZ_TARGET", "")
    parameters: dict[str, Any]
    if target:
        operation, parameters = target.rpartition(".")[2], json.loads(body or b"{}")
    elif kind.startswith("application/x-www-form-urlencoded") and service != "s3":
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        operation, parameters = form.pop("Action", ""), form
    elif service == "s3":
        operation, parameters = _object_operation(environ, path, asked)
    else:
        operation, parameters = environ["REQUEST_METHOD"], {}
    whole = f"{path}?{query}" if query else path
    owner = environ.get("HTTP_X_AMZ_EXPECTED_BUCKET_OWNER", "")
    return Call(service, operation, parameters, whole, body[:RECORDED_BODY_BYTES], key, region, owner)


def _object_operation(environ: dict[str, Any], path: str, asked: dict[str, list[str]]) -> tuple[str, dict[str, Any]]:
    """S3 requests do not name the operation: method, key and query determine it."""
    bucket, _, key = path.lstrip("/").partition("/")
    method, named = environ["REQUEST_METHOD"], {"Bucket": bucket, "Key": key}
    if not bucket:
        return "ListBuckets", {}
    if not key:
        if method == "GET":
            listing = "ListObjectsV2" if "list-type" in asked else "ListObjects"
            words = [word for word in asked if re.fullmatch("[a-zA-Z]+", word) and not asked[word][0]]
            return (f"GetBucket{words[0].title()}" if words and "prefix" not in asked else listing), {
                "Bucket": bucket,
                "Prefix": asked.get("prefix", [""])[0],
            }
        names = {"PUT": "CreateBucket", "HEAD": "HeadBucket", "DELETE": "DeleteBucket", "POST": "DeleteObjects"}
        return names.get(method, method), {"Bucket": bucket}
    if method == "POST":
        return ("CreateMultipartUpload" if "uploads" in asked else "CompleteMultipartUpload"), named
    if method == "PUT" and "partNumber" in asked:
        return "UploadPart", named
    if method == "PUT" and "HTTP_X_AMZ_COPY_SOURCE" in environ:
        return "CopyObject", named
    names = {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}
    return names.get(method, method), named


def error_body(call: Call, error: ServiceError) -> tuple[str, bytes]:
    """Media type and body of an error, in the format of the requested service."""
    code, message = escape(error.code), escape(error.message)
    if call.service in ("iam", "sts"):
        kind = f"<Type>Sender</Type><Code>{code}</Code><Message>{message}</Message>"
        text = f"<ErrorResponse><Error>{kind}</Error><RequestId>0</RequestId></ErrorResponse>"
    elif call.service == "ec2":
        text = f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"
    elif call.service == "s3":
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    else:
        # Runtime services write `Message`, the JSON ones `message`; clients read either.
        told = {"__type": error.code, "message": error.message, "Message": error.message, **error.members}
        return "application/x-amz-json-1.1", json.dumps(told).encode()
    return "text/xml", b'<?xml version="1.0" encoding="UTF-8"?>' + text.encode()
