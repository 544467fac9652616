"""Arguments, results and errors as JSON: the types are read off the protocols `NodeClient` and `NodeEvents`."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from atoll.model import errors
from atoll.model.errors import AtollError, InvalidRequest, PlatformError
from atoll.model.seams import NodeStatus


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of a protocol: how its arguments and its result travel."""

    name: str
    arguments: Mapping[str, TypeAdapter[Any]]
    result: TypeAdapter[Any]

    def encode_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Plain JSON values by argument name."""
        return {name: _plain(self.arguments[name], value) for name, value in given.items()}

    def decode_arguments(self, received: Any) -> dict[str, Any]:
        """Raises InvalidRequest for anything that is not this operation's arguments."""
        if not isinstance(received, dict) or received.keys() != self.arguments.keys():
            raise InvalidRequest(f"{self.name}: takes {sorted(self.arguments)}")
        try:
            return {name: self.arguments[name].validate_python(value) for name, value in received.items()}
        except ValidationError as error:
            raise InvalidRequest(f"{self.name}: {error.error_count()} malformed values") from error

    def encode_result(self, value: Any) -> Any:
        return _plain(self.result, value)

    def decode_result(self, received: Any) -> Any:
        """Raises PlatformError for anything that is not this operation's result."""
        try:
            return self.result.validate_python(received)
        except ValidationError as error:
            raise PlatformError(f"the node's answer to {self.name!r} makes no sense") from error


@cache
def operations(protocol: type) -> Mapping[str, Operation]:
    """The asynchronous methods of `protocol` by name."""
    return {
        name: _operation(name, method)
        for name, method in inspect.getmembers(protocol, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }


def _operation(name: str, method: Any) -> Operation:
    hints = typing.get_type_hints(method)
    result = hints.pop("return")
    return Operation(name, {argument: TypeAdapter(kind) for argument, kind in hints.items()}, TypeAdapter(result))


def _plain(adapter: TypeAdapter[Any], value: Any) -> Any:
    return adapter.dump_python(value, mode="json", fallback=_plain_mapping, warnings=False)


def _plain_mapping(value: Any) -> Any:
    if isinstance(value, Mapping):  # MappingProxyType is unknown to pydantic's serializer
        return dict(value)
    raise TypeError(f"{type(value).__name__} does not travel")


STATUS: TypeAdapter[NodeStatus] = TypeAdapter(NodeStatus)
"""Of a node, in its first message and its heartbeats."""

_ERRORS: Mapping[str, type[AtollError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AtollError)
}
"""By name, from our own tree: nothing that a sandbox sent can choose another class."""


def error_to_json(error: AtollError) -> dict[str, Any]:
    """Class, text and plain attributes."""
    fields = {name: value for name, value in vars(error).items() if isinstance(value, str | int | None)}
    return {"type": type(error).__name__, "text": str(error), "fields": fields}


def error_from_json(received: Any) -> AtollError:
    """A class that this version does not know becomes a PlatformError with the same text."""
    if not isinstance(received, dict):
        return PlatformError("the node failed without saying why")
    kind = _ERRORS.get(str(received.get("type")), PlatformError)
    text, fields = str(received.get("text", "")), received.get("fields")
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.message, error.hint = text, ""
    vars(error).update({str(name): value for name, value in fields.items()} if isinstance(fields, dict) else {})
    return error
