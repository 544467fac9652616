"""The message codecs against parties that we did not write: the descriptors that the published SDK carries, and
Google's protobuf runtime. Random messages go through both encodings in both directions."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from e2b.envd.filesystem import filesystem_pb
from e2b.envd.process import process_pb
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp as GoogleTimestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.wire.envd import filesystem, process
from atoll.wire.envd.messages import DecodeError, Message, Timestamp
from support.raising import raised

_RENAMED = {
    "process.PTY.Size": process.PTYSize,
    "process.ProcessEvent.StartEvent": process.StartEvent,
    "process.ProcessEvent.DataEvent": process.DataEvent,
    "process.ProcessEvent.EndEvent": process.EndEvent,
    "process.ProcessEvent.KeepAlive": process.KeepAlive,
    "process.StreamInputRequest.StartEvent": process.StreamInputStart,
    "process.StreamInputRequest.DataEvent": process.StreamInputData,
    "process.StreamInputRequest.KeepAlive": process.KeepAlive,
    "filesystem.WatchDirResponse.StartEvent": filesystem.WatchStart,
    "filesystem.WatchDirResponse.KeepAlive": filesystem.WatchKeepAlive,
}


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    timestamp = descriptor_pb2.FileDescriptorProto()
    GoogleTimestamp.DESCRIPTOR.file.CopyToProto(timestamp)
    pool.Add(timestamp)
    for module in (process_pb, filesystem_pb):
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(module.desc().proto.to_binary()))
    return pool


_POOL = _pool()


def _all_descriptors() -> list[Any]:
    found: list[Any] = []

    def walk(descriptor: Any) -> None:
        if not descriptor.GetOptions().map_entry:
            found.append(descriptor)
        for inner in descriptor.nested_types:
            walk(inner)

    for name in ("process/process.proto", "filesystem/filesystem.proto"):
        for descriptor in _POOL.FindFileByName(name).message_types_by_name.values():
            walk(descriptor)
    return found


DESCRIPTORS = _all_descriptors()


def ours(descriptor: Any) -> type[Message]:
    if descriptor.full_name in _RENAMED:
        return _RENAMED[descriptor.full_name]
    if descriptor.full_name == "google.protobuf.Timestamp":
        return Timestamp
    module = process if descriptor.full_name.startswith("process.") else filesystem
    found: type[Message] = getattr(module, descriptor.name)
    return found


def google(descriptor: Any) -> Any:
    return message_factory.GetMessageClass(descriptor)


@pytest.mark.parametrize("descriptor", DESCRIPTORS, ids=lambda each: each.full_name)
def test_every_message_of_the_sdk_has_our_fields_with_the_same_numbers(descriptor: Any) -> None:
    plan = {field.number: field for field in ours(descriptor)._plan.fields}
    for theirs in descriptor.fields:
        field = plan[theirs.number]
        assert (field.name, field.json_name) == (theirs.name, theirs.json_name)
        is_map = theirs.message_type is not None and theirs.message_type.GetOptions().map_entry
        value_type = theirs.message_type.fields_by_name["value"] if is_map else theirs
        names = {value: name[5:].lower() for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
        assert field.value.kind == names[value_type.type]
        shape = "map" if is_map else "list" if theirs.is_repeated else "optional" if theirs.has_presence else "plain"
        assert field.shape == shape
        real_oneof = theirs.containing_oneof
        if real_oneof is not None and not real_oneof.name.startswith("_"):
            assert field.oneof == real_oneof.name
        else:
            assert field.oneof is None


def _text() -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8"), max_size=12)


def _value(field: Any) -> st.SearchStrategy[Any]:
    ranges = {
        FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
        FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
        FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
        FieldDescriptor.TYPE_SINT32: (-(1 << 31), (1 << 31) - 1),
    }
    if field.type in ranges:
        return st.integers(*ranges[field.type])
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=20)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        known = [value.number for value in field.enum_type.values]
        return st.sampled_from(known) | st.integers(0, 1000)
    return messages(field.message_type)


def _field(field: Any) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(_text(), _value(field.message_type.fields_by_name["value"]), max_size=3)
    if field.is_repeated:
        return st.lists(_value(field), max_size=3)
    return _value(field)


@st.composite
def messages(draw: st.DrawFn, descriptor: Any) -> Message:
    if descriptor.full_name == "google.protobuf.Timestamp":
        return Timestamp(draw(st.integers(-62135596800, 253402300799)), draw(st.integers(0, 999_999_999)))
    cls = ours(descriptor)
    values: dict[str, Any] = {}
    taken: set[str] = set()
    for field in descriptor.fields:
        oneof = field.containing_oneof.name if field.containing_oneof is not None else ""
        if oneof in taken or not draw(st.booleans()):
            continue
        if oneof:
            taken.add(oneof)
        value = draw(_field(field))
        if field.type == FieldDescriptor.TYPE_ENUM:
            value = cls._plan._by_json[field.name].value._open_enum(value)
        values[field.name] = value
    return cls(**values)


_ANY = st.sampled_from(DESCRIPTORS).flatmap(lambda descriptor: st.tuples(st.just(descriptor), messages(descriptor)))


@given(_ANY)
@settings(max_examples=400, deadline=None)
def test_binary_is_what_googles_runtime_reads_and_writes(case: tuple[Any, Message]) -> None:
    descriptor, message = case
    theirs = google(descriptor).FromString(message.to_binary())
    assert type(message).from_binary(theirs.SerializeToString()) == message
    assert type(message).from_binary(message.to_binary()) == message


@given(_ANY)
@settings(max_examples=400, deadline=None)
def test_json_is_what_googles_runtime_reads_and_writes(case: tuple[Any, Message]) -> None:
    descriptor, message = case
    theirs = google(descriptor).FromString(message.to_binary())
    assert json_format.Parse(message.to_json(), google(descriptor)()) == theirs
    assert json_format.MessageToDict(theirs) == json.loads(message.to_json())
    snake = json_format.MessageToJson(theirs, preserving_proto_field_name=True)
    assert type(message).from_json(snake.encode()) == message


@given(st.sampled_from(DESCRIPTORS), st.binary(max_size=60))
@settings(max_examples=600, deadline=None)
def test_random_bytes_are_decoded_or_refused_as_googles_runtime_does(descriptor: Any, data: bytes) -> None:
    try:
        message = ours(descriptor).from_binary(data)
    except DecodeError:
        return
    # What we accept must mean the same to them (they may be stricter about what lies in unknown fields).
    try:
        theirs = google(descriptor).FromString(data)
    except Exception:
        return
    assert ours(descriptor).from_binary(theirs.SerializeToString()) == message


@given(_ANY, st.data())
@settings(max_examples=200, deadline=None)
def test_a_truncated_message_is_never_taken_for_another_error(case: tuple[Any, Message], data: st.DataObject) -> None:
    _, message = case
    binary = message.to_binary()
    cut = binary[: data.draw(st.integers(0, len(binary)))]
    assert raised(type(message).from_binary, cut) in (None, DecodeError)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(DESCRIPTORS), st.data())
@settings(max_examples=400, deadline=None)
def test_random_json_is_decoded_or_refused_with_decode_error(descriptor: Any, data: st.DataObject) -> None:
    names = [field.json_name for field in descriptor.fields] or ["x"]
    value = data.draw(st.dictionaries(st.sampled_from(names), _JSON, max_size=3))
    try:
        message = ours(descriptor).from_json(json.dumps(value).encode())
    except DecodeError:
        return
    assert ours(descriptor).from_json(message.to_json()) == message


def test_a_message_field_that_occurs_twice_is_merged() -> None:
    first = process.StartRequest(process=process.ProcessConfig(cmd="a", args=["1"])).to_binary()
    second = process.StartRequest(process=process.ProcessConfig(cmd="b", args=["2"])).to_binary()
    merged = process.StartRequest.from_binary(first + second)
    assert merged.process == process.ProcessConfig(cmd="b", args=["1", "2"])


def test_the_last_member_of_a_oneof_wins_in_binary() -> None:
    data = process.DataEvent(stdout=b"x").to_binary() + process.DataEvent(pty=b"y").to_binary()
    assert process.DataEvent.from_binary(data) == process.DataEvent(pty=b"y")


def test_unknown_fields_and_groups_are_skipped() -> None:
    known = process.StartEvent(pid=7).to_binary()
    unknown = b"\x7a\x01x" + b"\x80\x01\x05" + b"\x8b\x01\x08\x01\x8c\x01"  # field 15 bytes, 16 varint, group 17
    assert process.StartEvent.from_binary(unknown + known) == process.StartEvent(pid=7)
    assert process.StartEvent.from_json(b'{"pid":7,"new":{"deep":[1]}}') == process.StartEvent(pid=7)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b'"x"', b"{", b"\xff", b'{"pid":-1}', b'{"pid":1.5}', b'{"pid":true}', b'{"pid":4294967296}'],
)
def test_json_that_is_no_such_message_is_refused(text: bytes) -> None:
    with pytest.raises(DecodeError):
        process.StartEvent.from_json(text)


def test_deeply_nested_json_is_refused_and_does_not_crash() -> None:
    with pytest.raises(DecodeError):
        process.StartRequest.from_json(b"[" * 100_000)


@pytest.mark.parametrize("text", ["aGk=", "aGk"])
def test_base64_is_accepted_padded_or_not(text: str) -> None:
    assert process.ProcessInput.from_value({"stdin": text}).stdin == b"hi"


def test_base64_of_the_url_alphabet_is_accepted() -> None:
    assert process.ProcessInput.from_value({"stdin": "-_-_"}).stdin == b"\xfb\xff\xbf"


def test_int64_is_a_string_and_timestamps_are_rfc3339() -> None:
    entry = filesystem.EntryInfo(name="x", size=1 << 40, modified_time=Timestamp.from_ns(1_700_000_000_123_000_000))
    assert json.loads(entry.to_json()) == {
        "name": "x",
        "size": "1099511627776",
        "modifiedTime": "2023-11-14T22:13:20.123Z",
    }


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("0001-01-01T00:00:00Z", -62135596800),
        ("9999-12-31T23:59:59Z", 253402300799),
    ],
)
def test_timestamps_with_offsets_and_at_the_ends(text: str, seconds: int) -> None:
    assert Timestamp.parse(text).seconds == seconds


@pytest.mark.parametrize("text", ["", "1970-01-01", "1970-13-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "x"])
def test_a_malformed_timestamp_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        Timestamp.parse(text)


def test_a_file_name_that_is_not_utf8_leaves_as_valid_json() -> None:
    entry = filesystem.EntryInfo(name="caf\udce9")
    assert json.loads(entry.to_json().decode("utf-8"))["name"] == "caf?"
    filesystem.EntryInfo.from_binary(entry.to_binary())


def test_all_our_messages_are_frozen_values() -> None:
    for module in (process, filesystem):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Message) and value is not Message:
                assert dataclasses.is_dataclass(value)
                assert value.__dataclass_params__.frozen  # type: ignore[attr-defined]
