"""Messages described once, as dataclasses; the binary protobuf and the ProtoJSON encodings follow from it.

    @message
    @dataclass(frozen=True, slots=True)
    class ProcessInfo(Message):
        config: Annotated[ProcessConfig | None, F(1)] = None      # message: None is unset
        pid: Annotated[int, F(2, UINT32)] = 0                      # implicit presence: the default is not sent
        tag: Annotated[str | None, F(3)] = None                    # `optional` in proto3: None is unset
        args: Annotated[list[str], F(4)] = field(default_factory=list)
        envs: Annotated[dict[str, str], F(5)] = field(default_factory=dict)
        data: Annotated[bytes | None, F(6, oneof="output")] = None

str, bytes, bool, enums, messages, lists and maps (string keys) follow from the annotation; an int names its kind. Every
plan is made at import: nothing is imported, compiled or looked up by name while messages are encoded.

Formats: protobuf.dev "Encoding" and "ProtoJSON Format". Unknown fields are skipped, as Connect servers do; enums are
open (an unknown number stays an int). Decoding raises DecodeError and nothing else, whatever the bytes.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
import struct
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from json.encoder import encode_basestring as _quote
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

INT32 = "int32"
INT64 = "int64"
UINT32 = "uint32"
UINT64 = "uint64"
SINT32 = "sint32"
_STRING = "string"
_BYTES = "bytes"
_BOOL = "bool"
_ENUM = "enum"
_MESSAGE = "message"

_RANGES = {
    INT32: (-(1 << 31), (1 << 31) - 1),
    SINT32: (-(1 << 31), (1 << 31) - 1),
    INT64: (-(1 << 63), (1 << 63) - 1),
    UINT32: (0, (1 << 32) - 1),
    UINT64: (0, (1 << 64) - 1),
    _ENUM: (-(1 << 31), (1 << 31) - 1),
}
_VARINT, _FIXED64, _DELIMITED, _GROUP, _END_GROUP, _FIXED32 = 0, 1, 2, 3, 4, 5
_MAX_GROUP_DEPTH = 32
_MAX_FIELD = (1 << 29) - 1


class DecodeError(ValueError):
    """The bytes or the JSON are not a message of this type; the text says where."""


@dataclass(frozen=True, slots=True)
class F:
    """Field number, integer kind (ints only) and oneof group."""

    number: int
    kind: str | None = None
    oneof: str | None = None


class Message:
    """Base of all messages: encodings as methods."""

    __slots__ = ()
    _plan: ClassVar[_Plan]

    def to_binary(self) -> bytes:
        """Protobuf binary, fields in the order of the description."""
        out = bytearray()
        self._plan.write(self, out)
        return bytes(out)

    @classmethod
    def from_binary(cls, data: bytes) -> Self:
        """Raises DecodeError."""
        return cast(Self, cls._plan.read(data))

    def to_json(self) -> bytes:
        """ProtoJSON in UTF-8, without spaces."""
        out: list[bytes] = []
        self._plan.write_json(self, out)
        return b"".join(out)

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """From what `json.loads` made of ProtoJSON. Raises DecodeError."""
        return cast(Self, cls._plan.from_value(value))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises DecodeError."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"malformed JSON: {error}") from error
        return cls.from_value(value)


_M = TypeVar("_M", bound=type[Message])


# -- binary primitives ----------------------------------------------------------------------------------------------


def _put_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    _put_varint(out, value)
    return bytes(out)


def _get_varint(data: bytes, at: int) -> tuple[int, int]:
    result = 0
    shift = 0
    while True:
        try:
            byte = data[at]
        except IndexError:
            raise DecodeError("truncated varint") from None
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift >= 70:
            raise DecodeError("varint is longer than ten bytes")


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


_FROM_VARINT: dict[str, Callable[[int], Any]] = {
    INT32: lambda value: _signed(value, 32),
    INT64: lambda value: _signed(value, 64),
    UINT32: lambda value: value & 0xFFFFFFFF,
    UINT64: lambda value: value,
    SINT32: lambda value: ((value & 0xFFFFFFFF) >> 1) ^ -(value & 1),
    _BOOL: bool,
    _ENUM: lambda value: _signed(value, 32),
}


def _to_varint(kind: str, value: int) -> int:
    if kind == SINT32:
        return ((value << 1) ^ (value >> 31)) & 0xFFFFFFFF
    return value & 0xFFFFFFFFFFFFFFFF


def _skip(data: bytes, at: int, wire_type: int, number: int, depth: int) -> int:
    """The position behind an unknown field."""
    if wire_type == _VARINT:
        return _get_varint(data, at)[1]
    if wire_type == _DELIMITED:
        length, at = _get_varint(data, at)
        at += length
    elif wire_type == _FIXED64:
        at += 8
    elif wire_type == _FIXED32:
        at += 4
    elif wire_type == _GROUP:
        return _skip_group(data, at, number, depth + 1)
    else:
        raise DecodeError(f"field {number} has the unknown wire type {wire_type}")
    if at > len(data):
        raise DecodeError(f"field {number} is truncated")
    return at


def _skip_group(data: bytes, at: int, number: int, depth: int) -> int:
    if depth > _MAX_GROUP_DEPTH:
        raise DecodeError("groups are nested too deeply")
    while True:
        tag, at = _get_varint(data, at)
        if tag & 7 == _END_GROUP:
            if tag >> 3 != number:
                raise DecodeError("a group is closed by another's end")
            return at
        at = _skip(data, at, tag & 7, tag >> 3, depth)


# -- one value ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Value:
    """How one value (of a field, a list, a map) is written and read."""

    kind: str
    enum: type[IntEnum] | None = None
    message: type[Message] | None = None

    @property
    def wire_type(self) -> int:
        return _DELIMITED if self.kind in (_STRING, _BYTES, _MESSAGE) else _VARINT

    @property
    def default(self) -> Any:
        if self.kind == _STRING:
            return ""
        if self.kind == _BYTES:
            return b""
        if self.kind == _BOOL:
            return False
        if self.enum is not None:
            return self.enum(0)
        return None if self.message is not None else 0

    def write(self, value: Any, out: bytearray) -> None:
        kind = self.kind
        if kind == _STRING:
            payload = value.encode("utf-8", "replace")
        elif kind == _BYTES:
            payload = value
        elif kind == _MESSAGE:
            inner = bytearray()
            value._plan.write(value, inner)
            payload = inner
        else:
            _put_varint(out, _to_varint(kind, int(value)))
            return
        _put_varint(out, len(payload))
        out += payload

    def from_payload(self, payload: bytes, where: str) -> Any:
        if self.kind == _STRING:
            try:
                return payload.decode("utf-8")
            except UnicodeDecodeError:
                raise DecodeError(f"{where} is not valid UTF-8") from None
        if self.message is not None:
            return self.message._plan.read(payload)
        return payload

    def from_varint(self, number: int) -> Any:
        value = _FROM_VARINT[self.kind](number)
        return self._open_enum(value) if self.enum is not None else value

    def _open_enum(self, number: int) -> int:
        assert self.enum is not None
        try:
            return self.enum(number)
        except ValueError:
            return number

    def write_json(self, value: Any, out: list[bytes]) -> None:
        kind = self.kind
        if kind == _BYTES:
            # Written around `json`: base64 needs no escaping, and output of programs is what we send most.
            out += (b'"', binascii.b2a_base64(value, newline=False), b'"')
        elif kind == _STRING:
            out.append(_json_text(value))
        elif kind == _MESSAGE:
            value._plan.write_json(value, out)
        elif kind in (INT64, UINT64):
            out.append(b'"%d"' % value)
        elif kind == _BOOL:
            out.append(b"true" if value else b"false")
        elif kind == _ENUM and isinstance(value, IntEnum):
            out.append(b'"%s"' % value.name.encode())
        else:
            out.append(b"%d" % value)

    def from_value(self, value: Any, where: str) -> Any:
        kind = self.kind
        if kind == _STRING:
            return _json_string(value, where)
        if kind == _BYTES:
            return _json_bytes(value, where)
        if kind == _BOOL:
            if value is True or value is False:
                return value
            raise DecodeError(f"{where} must be true or false")
        if self.message is not None:
            return self.message._plan.from_value(value, where)
        if self.enum is not None and isinstance(value, str):
            try:
                return self.enum[value]
            except KeyError:
                raise DecodeError(f"{where}: no such value {value[:64]!r}") from None
        number = _json_int(value, kind, where)
        return self._open_enum(number) if self.enum is not None else number


def _json_string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DecodeError(f"{where} must be a string")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise DecodeError(f"{where} holds a lone surrogate") from None
    return value


def _json_bytes(value: Any, where: str) -> bytes:
    """Base64 of either alphabet, padded or not."""
    if not isinstance(value, str):
        raise DecodeError(f"{where} must be a base64 string")
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except (ValueError, binascii.Error):
        pass
    text = value.rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise DecodeError(f"{where} is not base64") from None


_URL_SAFE = {ord("-"): "+", ord("_"): "/"}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,19})")


def _json_int(value: Any, kind: str, where: str) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DecodeError(f"{where} must be an integer")
    low, high = _RANGES[kind]
    if not low <= value <= high:
        raise DecodeError(f"{where} is out of range")
    return value


# -- one field ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    json_name: str
    number: int
    value: _Value
    shape: str  # "plain" (default not sent), "optional", "list", "map"
    oneof: str | None
    tag: bytes
    json_key: bytes
    default: Any


_MAP_KEY = _Value(_STRING)


class _Plan:
    """All that encoding and decoding of one message type needs."""

    __slots__ = ("_by_json", "_by_number", "_cls", "_fields", "_oneofs")

    def __init__(self, cls: type[Any], fields: list[_Field]) -> None:
        self._cls = cls
        self._fields = fields
        self._by_number = {field.number: field for field in fields}
        self._by_json = {name: field for field in fields for name in (field.name, field.json_name)}
        self._oneofs: dict[str, list[str]] = {}
        for field in fields:
            if field.oneof is not None:
                self._oneofs.setdefault(field.oneof, []).append(field.name)

    @property
    def fields(self) -> list[_Field]:
        return self._fields

    # binary

    def write(self, message: Any, out: bytearray) -> None:
        for field in self._fields:
            value = getattr(message, field.name)
            shape = field.shape
            if shape == "optional":
                if value is not None:
                    out += field.tag
                    field.value.write(value, out)
            elif shape == "plain":
                if value != field.default:
                    out += field.tag
                    field.value.write(value, out)
            elif not value:
                continue
            elif shape == "map":
                self._write_map(field, value, out)
            else:
                self._write_list(field, value, out)

    def _write_list(self, field: _Field, values: list[Any], out: bytearray) -> None:
        if field.value.wire_type == _DELIMITED:
            for value in values:
                out += field.tag
                field.value.write(value, out)
            return
        packed = bytearray()
        for value in values:
            field.value.write(value, packed)
        out += field.tag
        _put_varint(out, len(packed))
        out += packed

    def _write_map(self, field: _Field, entries: dict[str, Any], out: bytearray) -> None:
        value_tag = _varint_bytes(2 << 3 | field.value.wire_type)
        for key, value in entries.items():
            entry = bytearray(b"\x0a")
            _MAP_KEY.write(key, entry)
            entry += value_tag
            field.value.write(value, entry)
            out += field.tag
            _put_varint(out, len(entry))
            out += entry

    def read(self, data: bytes) -> Any:
        values: dict[str, Any] = {}
        # A message field that occurs twice is merged, which is the same as reading both payloads one after the other.
        payloads: dict[str, bytes] = {}
        at = 0
        end = len(data)
        while at < end:
            tag, at = _get_varint(data, at)
            number, wire_type = tag >> 3, tag & 7
            if not 0 < number <= _MAX_FIELD:
                raise DecodeError(f"{number} is no field number")
            field = self._by_number.get(number)
            if field is None or not _fits(field, wire_type):
                at = _skip(data, at, wire_type, number, 0)
                continue
            if field.oneof is not None:
                for other in self._oneofs[field.oneof]:
                    if other != field.name:
                        values.pop(other, None)
                        payloads.pop(other, None)
            if wire_type == _VARINT:
                raw, at = _get_varint(data, at)
                value = field.value.from_varint(raw)
                if field.shape == "list":
                    values.setdefault(field.name, []).append(value)
                else:
                    values[field.name] = value
                continue
            length, at = _get_varint(data, at)
            payload = data[at : at + length]
            if len(payload) != length:
                raise DecodeError(f"{self._cls.__name__}.{field.json_name} is truncated")
            at += length
            self._take(field, payload, values, payloads)
        for name, payload in payloads.items():
            values[name] = self._by_json[name].value.from_payload(payload, name)
        return self._cls(**values)

    def _take(self, field: _Field, payload: bytes, values: dict[str, Any], payloads: dict[str, bytes]) -> None:
        where = f"{self._cls.__name__}.{field.json_name}"
        if field.shape == "map":
            key, value = _read_map_entry(field, payload, where)
            values.setdefault(field.name, {})[key] = value
        elif field.shape == "list":
            if field.value.wire_type == _VARINT:
                values.setdefault(field.name, []).extend(_read_packed(field, payload))
            else:
                values.setdefault(field.name, []).append(field.value.from_payload(payload, where))
        elif field.value.message is not None:
            earlier = payloads.get(field.name)
            if earlier is not None:
                # Each part must be a message by itself; together they could complete one another.
                field.value.from_payload(payload, where)
            payloads[field.name] = payload if earlier is None else earlier + payload
        else:
            values[field.name] = field.value.from_payload(payload, where)

    # JSON

    def write_json(self, message: Any, out: list[bytes]) -> None:
        before = b"{"
        for field in self._fields:
            value = getattr(message, field.name)
            shape = field.shape
            if (value is None) if shape == "optional" else (value == field.default) if shape == "plain" else not value:
                continue
            out += (before, field.json_key)
            before = b","
            if shape == "map":
                _write_json_map(field, value, out)
            elif shape == "list":
                _write_json_list(field, value, out)
            else:
                field.value.write_json(value, out)
        out.append(b"{}" if before == b"{" else b"}")

    def from_value(self, value: Any, where: str = "") -> Any:
        if not isinstance(value, dict):
            raise DecodeError(f"{where or self._cls.__name__} must be an object")
        values: dict[str, Any] = {}
        for key, item in value.items():
            field = self._by_json.get(key)
            if field is None or item is None:
                continue
            place = f"{where}.{key}" if where else key
            if field.name in values:
                raise DecodeError(f"{place} is given twice")
            if field.shape == "list":
                values[field.name] = _json_list(field, item, place)
            elif field.shape == "map":
                values[field.name] = _json_map(field, item, place)
            else:
                values[field.name] = field.value.from_value(item, place)
        for group, names in self._oneofs.items():
            if sum(name in values for name in names) > 1:
                raise DecodeError(f"{where or self._cls.__name__}: more than one member of {group!r} is given")
        return self._cls(**values)


def _fits(field: _Field, wire_type: int) -> bool:
    if field.shape == "map":
        return wire_type == _DELIMITED
    if wire_type == field.value.wire_type:
        return True
    return field.shape == "list" and wire_type == _DELIMITED  # packed


def _read_packed(field: _Field, payload: bytes) -> list[Any]:
    values = []
    at = 0
    while at < len(payload):
        raw, at = _get_varint(payload, at)
        values.append(field.value.from_varint(raw))
    return values


def _read_map_entry(field: _Field, payload: bytes, where: str) -> tuple[str, Any]:
    key = ""
    value = field.value.default
    if field.value.message is not None:
        value = field.value.message._plan.read(b"")
    at = 0
    while at < len(payload):
        tag, at = _get_varint(payload, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _DELIMITED and (number == 1 or (number == 2 and field.value.wire_type == _DELIMITED)):
            length, at = _get_varint(payload, at)
            item = payload[at : at + length]
            if len(item) != length:
                raise DecodeError(f"{where} is truncated")
            at += length
            if number == 1:
                key = _MAP_KEY.from_payload(item, where)
            else:
                value = field.value.from_payload(item, where)
        elif wire_type == _VARINT and number == 2 and field.value.wire_type == _VARINT:
            raw, at = _get_varint(payload, at)
            value = field.value.from_varint(raw)
        else:
            if number == 0:
                raise DecodeError(f"{where}: 0 is no field number")
            at = _skip(payload, at, wire_type, number, 0)
    return key, value


def _json_text(text: str) -> bytes:
    # A lone surrogate (a file name that is not UTF-8) may not leave us: JSON on this wire is UTF-8.
    return _quote(text).encode("utf-8", "replace")


def _write_json_list(field: _Field, values: list[Any], out: list[bytes]) -> None:
    before = b"["
    for value in values:
        out.append(before)
        before = b","
        field.value.write_json(value, out)
    out.append(b"]")


def _write_json_map(field: _Field, entries: dict[str, Any], out: list[bytes]) -> None:
    before = b"{"
    for key, value in entries.items():
        out += (before, _json_text(key), b":")
        before = b","
        field.value.write_json(value, out)
    out.append(b"}")


def _json_list(field: _Field, value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DecodeError(f"{where} must be an array")
    return [field.value.from_value(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _json_map(field: _Field, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError(f"{where} must be an object")
    return {
        _json_string(key, where): field.value.from_value(item, f"{where}[{key[:64]!r}]") for key, item in value.items()
    }


# -- reading the description ----------------------------------------------------------------------------------------


def camel_case(name: str) -> str:
    """`exit_code` → `exitCode`."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def message(cls: _M) -> _M:
    """Class decorator: reads the description (once, at import) and attaches the plan."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [_describe(entry.name, hints[entry.name]) for entry in dataclasses.fields(cast(Any, cls))]
    numbers = [field.number for field in fields]
    if len(set(numbers)) != len(numbers):
        raise TypeError(f"{cls.__name__}: a field number occurs twice")
    cls._plan = _Plan(cls, fields)
    return cls


def _describe(name: str, hint: Any) -> _Field:
    if typing.get_origin(hint) is not Annotated:
        raise TypeError(f"{name}: give it a number, Annotated[type, F(number)]")
    inner, spec = typing.get_args(hint)
    origin = typing.get_origin(inner)
    shape = "plain"
    if origin is list:
        shape, (inner,) = "list", typing.get_args(inner)
    elif origin is dict:
        shape, (_, inner) = "map", typing.get_args(inner)
    elif type(None) in typing.get_args(inner):
        shape = "optional"
    value = _value_of(name, inner, spec)
    wire_type = _DELIMITED if shape in ("list", "map") else value.wire_type
    default = {"plain": value.default}.get(shape)
    tag = _varint_bytes(spec.number << 3 | wire_type)
    json_name = camel_case(name)
    return _Field(name, json_name, spec.number, value, shape, spec.oneof, tag, b'"%s":' % json_name.encode(), default)


def _value_of(name: str, hint: Any, spec: F) -> _Value:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    members = tuple(member for member in members if member is not type(None))
    for member in members:  # an enum is annotated `Enum | int`: it is open
        if issubclass(member, IntEnum):
            return _Value(_ENUM, enum=member)
    (member,) = members
    if issubclass(member, Message):
        return _Value(_MESSAGE, message=member)
    if member is int:
        if spec.kind is None:
            raise TypeError(f"{name}: an int needs its kind, F(number, INT64)")
        return _Value(spec.kind)
    return _Value({str: _STRING, bytes: _BYTES, bool: _BOOL}[member])


# -- google.protobuf.Timestamp --------------------------------------------------------------------------------------

_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d{2}):(\d{2}))", re.ASCII
)
_MIN_SECONDS, _MAX_SECONDS = -62135596800, 253402300799


@message
@dataclass(frozen=True, slots=True)
class Timestamp(Message):
    """google.protobuf.Timestamp: in JSON an RFC 3339 string. Years 1 to 9999."""

    seconds: Annotated[int, F(1, INT64)] = 0
    nanos: Annotated[int, F(2, INT32)] = 0

    @staticmethod
    def from_ns(nanoseconds: int) -> Timestamp:
        """From nanoseconds since the epoch (`st_mtime_ns`), clamped to the years that the format has."""
        seconds, nanos = divmod(nanoseconds, 1_000_000_000)
        if seconds < _MIN_SECONDS:
            return Timestamp(_MIN_SECONDS, 0)
        if seconds > _MAX_SECONDS:
            return Timestamp(_MAX_SECONDS, 999_999_999)
        return Timestamp(seconds, nanos)

    @property
    def ns(self) -> int:
        return self.seconds * 1_000_000_000 + self.nanos

    def rfc3339(self) -> str:
        """`2026-01-02T03:04:05.123456789Z`; the fraction has 0, 3, 6 or 9 digits."""
        moment = datetime.fromtimestamp(min(max(self.seconds, _MIN_SECONDS), _MAX_SECONDS), UTC)
        text = moment.strftime("%Y").rjust(4, "0") + moment.strftime("-%m-%dT%H:%M:%S")
        if self.nanos:
            fraction = f"{self.nanos:09d}"
            while fraction.endswith("000"):
                fraction = fraction[:-3]
            text += "." + fraction
        return text + "Z"

    @staticmethod
    def parse(text: str) -> Timestamp:
        """Raises DecodeError."""
        found = _RFC3339.fullmatch(text)
        if found is None:
            raise DecodeError(f"not an RFC 3339 time: {text[:64]!r}")
        day, clock, fraction, sign, hours, minutes = found.groups()
        try:
            moment = datetime.strptime(f"{day}T{clock}+0000", "%Y-%m-%dT%H:%M:%S%z")
        except ValueError:
            raise DecodeError(f"not an RFC 3339 time: {text[:64]!r}") from None
        seconds = int(moment.timestamp())
        if sign:
            offset = int(hours) * 3600 + int(minutes) * 60
            seconds += offset if sign == "-" else -offset
        if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:
            raise DecodeError(f"time is out of range: {text[:64]!r}")
        return Timestamp(seconds, int((fraction or "0").ljust(9, "0")))


class _TimestampPlan(_Plan):
    __slots__ = ()

    def write_json(self, message: Any, out: list[bytes]) -> None:
        out.append(b'"%s"' % cast(Timestamp, message).rfc3339().encode())

    def from_value(self, value: Any, where: str = "") -> Any:
        if not isinstance(value, str):
            raise DecodeError(f"{where or 'timestamp'} must be an RFC 3339 string")
        return Timestamp.parse(value)


Timestamp._plan = _TimestampPlan(Timestamp, Timestamp._plan.fields)

# `struct` and `datetime.strptime` load their helpers on first use; in the guest there is no second chance.
struct.calcsize(">BI")
datetime.strptime("2000-01-01T00:00:00+0000", "%Y-%m-%dT%H:%M:%S%z")
