"""AWS's JSON services as botocore describes them: limits of requests, members of answers, errors.

Takes a request as a dict and reports what AWS would refuse in it, in AWS's words; takes an answer containing dates and
returns what is sent. Knows no operation by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StructureShape

# Python's `re` has no Unicode properties; these replace them inside a character class.
PROPERTIES = {r"\p{L}": r"\w", r"\p{N}": r"\d", r"\p{Z}": r"\s", r"\p{Alnum}": r"a-zA-Z0-9"}


class ServiceError(Exception):
    """What a service answers instead of a result."""

    def __init__(self, code: str, message: str, status: int = 400, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.members = code, message, status, members


@functools.cache
def service_model(name: str) -> ServiceModel:
    """Botocore's description of a service, by the name of its client."""
    return botocore.session.get_session().get_service_model(name)


def check_request(client: str, operation: str, parameters: dict[str, Any]) -> None:
    """Refuse what violates a limit of the service's model, all violations at once.

    Raises:
        ServiceError: with AWS's count and wording.
    """
    shape = service_model(client).operation_model(operation).input_shape
    found = list(_breaches(shape, parameters, "")) if shape is not None else []
    if found:
        errors = "error" if len(found) == 1 else "errors"
        raise ServiceError("ValidationException", f"{len(found)} validation {errors} detected: {'; '.join(found)}")


def _breaches(shape: Shape, value: Any, path: str) -> Iterator[str]:
    if isinstance(shape, StructureShape):
        for name in shape.required_members:
            if value.get(name) is None:
                yield _breach(None, _join(path, name), "Member must not be null")
        for name, content in value.items():
            if name not in shape.members:
                raise ServiceError("SerializationException", f"{_join(path, name)} is no member of {shape.name}")
            if content is not None:
                yield from _breaches(shape.members[name], content, _join(path, name))
        return
    yield from (_breach(value, path, text) for text in _limits(shape, value))
    if isinstance(shape, ListShape):
        for number, content in enumerate(value, 1):
            yield from _breaches(shape.member, content, f"{path}.{number}.member")
    elif isinstance(shape, MapShape):
        for side, part, contents in (("key", shape.key, value), ("value", shape.value, value.values())):
            broken = sorted({text for content in contents for text in _limits(part, content)})
            if broken:
                yield _breach(value, path, f"Map {side} must satisfy constraint: [{', '.join(broken)}]")


def _limits(shape: Shape, value: Any) -> Iterator[str]:
    """What the shape does not allow about a single value."""
    lowest, highest = shape.metadata.get("min"), shape.metadata.get("max")
    sized = isinstance(value, (str, list, dict))
    size = len(value) if sized else value
    what = "Member must have length" if sized else "Member must have value"
    if highest is not None and size > highest:
        yield f"{what} less than or equal to {highest}"
    if lowest is not None and size < lowest:
        yield f"{what} greater than or equal to {lowest}"
    pattern = shape.metadata.get("pattern")
    if pattern and not _matches(pattern, str(value)):
        yield f"Member must satisfy regular expression pattern: {pattern}"
    allowed = shape.metadata.get("enum")
    if allowed and value not in allowed:
        yield f"Member must satisfy enum value set: [{', '.join(allowed)}]"


@functools.cache
def _matches(pattern: str, text: str) -> bool:
    for java, python in PROPERTIES.items():
        pattern = pattern.replace(java, python)
    try:
        return re.fullmatch(pattern, text) is not None
    except re.error:
        return True  # a few patterns are not valid in Python; what they refuse is accepted here


def _join(path: str, name: str) -> str:
    name = name[:1].lower() + name[1:]
    return f"{path}.{name}" if path else name


def _breach(value: Any, path: str, text: str) -> str:
    shown = "null" if value is None else f"'{value}'"
    return f"Value {shown} at '{path}' failed to satisfy constraint: {text}"


def answer_of(client: str, operation: str, result: dict[str, Any]) -> dict[str, Any]:
    """A result as it is sent: no unset members, dates as seconds; a member that AWS does not have is our bug."""
    shape = service_model(client).operation_model(operation).output_shape
    if shape is None:
        assert not result, f"{operation} answers nothing"
        return {}
    travels: dict[str, Any] = _travels(shape, result)
    return travels


def _travels(shape: Shape, value: Any) -> Any:
    if isinstance(value, datetime):
        return round(value.timestamp(), 3)
    if isinstance(shape, StructureShape):
        unknown = set(value) - set(shape.members)
        assert not unknown, f"{shape.name} has no {sorted(unknown)}"
        return {name: _travels(shape.members[name], content) for name, content in value.items() if content is not None}
    if isinstance(shape, ListShape):
        return [_travels(shape.member, content) for content in value]
    return value


def page_of(items: list[Any], parameters: dict[str, Any], default: int = 10) -> tuple[list[Any], str | None]:
    """The items on one page of a list, and the token of the next page."""
    token = parameters.get("NextToken", "")
    if token and not token.isdigit():
        raise ServiceError("ValidationException", "The NextToken is invalid.")
    first, count = int(token or 0), int(parameters.get("MaxResults", default))
    following = first + count
    return items[first:following], str(following) if following < len(items) else None
