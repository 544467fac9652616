"""ZMTP and Jupyter messages as bytes: any cut, any size, any garbage."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.guest.interpreter import jupyter, kernelspecs, zmtp
from atoll.guest.interpreter.variables import code_around
from atoll.guest.interpreter.zmtp import Decoder, SocketType, ZmtpError, encode, handshake
from support.raising import raised

PEER = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
NAMES = st.from_regex(r"X[A-Z]{1,5}", fullmatch=True)
READY = b"\x04\x06\x05READY"


@given(st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=5), max_size=5), st.data())
def test_messages_survive_any_cut(messages: list[list[bytes]], data: st.DataObject) -> None:
    stream = PEER + READY + b"".join(encode(message) for message in messages)
    decoder = Decoder()
    got: list[list[bytes | None]] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        got += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert got == messages
    assert decoder.ready


@given(st.binary(max_size=300))
def test_garbage_raises_our_error_or_nothing(data: bytes) -> None:
    for stream in (data, PEER + data):
        assert raised(Decoder().feed, stream) in (None, ZmtpError)


def test_the_handshake_is_nothing_but_greeting_and_ready() -> None:
    said = handshake(SocketType.DEALER, b"me")
    assert said[:10] == b"\xff" + bytes(8) + b"\x7f"
    assert said[12:32].rstrip(b"\0") == b"NULL"
    assert said[64:66] == bytes([4, len(said) - 66])
    assert said[66:] == b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x02me"


def test_a_peer_that_speaks_otherwise_is_refused() -> None:
    for wrong in (b"HTTP/1.1 200 OK".ljust(64), PEER.replace(b"NULL", b"CURV"), PEER[:10] + b"\x02" + PEER[11:]):
        with pytest.raises(ZmtpError):
            Decoder().feed(wrong)


def test_what_is_too_large_is_thrown_away_and_the_next_message_arrives() -> None:
    decoder = Decoder(max_message=100)
    decoder.feed(PEER + READY)
    big = encode([b"head", b"x" * 5000, b"tail"]) + encode([b"next"])
    got = [message for n in range(0, len(big), 64) for message in decoder.feed(big[n : n + 64])]
    assert got == [[b"head", None, b"tail"], [b"next"]]


def test_an_endless_frame_takes_no_memory() -> None:
    decoder = Decoder(max_message=100)
    decoder.feed(PEER + READY + struct.pack(">BQ", 2, 2**62))
    for _ in range(100):
        assert decoder.feed(b"x" * 10_000) == []
    assert len(decoder._buffer) == 0


def test_endless_frames_of_one_message_are_cut_off() -> None:
    decoder = Decoder()
    decoder.feed(PEER + READY)
    with pytest.raises(ZmtpError, match="frames"):
        decoder.feed(b"\x01\x00" * (zmtp.MAX_FRAMES + 1))


# ------------------------------------------------------------------------------------------------------------ messages


def published(kind: str, content: object, parent: object = None) -> list[bytes | None]:
    header = json.dumps({"msg_type": kind}).encode()
    above = json.dumps({"msg_id": "m"} if parent is None else parent).encode()
    return [b"topic", jupyter.DELIMITER, b"sig", header, above, b"{}", json.dumps(content).encode(), b"buffer"]


def line(kind: str, content: object) -> dict[str, object] | None:
    message = jupyter.parse(published(kind, content))
    assert message is not None
    return jupyter.line_of(message)


def test_requests_are_signed_with_the_kernels_key() -> None:
    message_id, frames = jupyter.Session(b"key").request("execute_request", {"code": "1"})
    assert frames[0] == jupyter.DELIMITER
    assert frames[1].decode() == hmac.new(b"key", b"".join(frames[2:]), hashlib.sha256).hexdigest()
    assert json.loads(frames[2])["msg_id"] == message_id


@given(st.lists(st.one_of(st.none(), st.just(jupyter.DELIMITER), st.binary(max_size=50)), max_size=9))
def test_frames_that_are_no_message_are_none(frames: list[bytes | None]) -> None:
    assert jupyter.parse(frames) is None


@pytest.mark.parametrize("content", [[], 7, None, "text"])
def test_content_that_is_no_object_is_no_message(content: object) -> None:
    assert jupyter.parse(published("stream", content)) is None


def test_deeply_nested_content_is_no_message() -> None:
    frames = published("stream", {})
    frames[6] = b"[" * 200_000
    assert jupyter.parse(frames) is None


def test_every_media_type_has_its_field_and_others_are_extra() -> None:
    data = {
        "text/plain": "t", "text/html": "h", "text/markdown": "m", "image/svg+xml": "s", "image/png": "p",
        "image/jpeg": "j", "application/pdf": "d", "text/latex": "l", "application/json": {"a": 1},
        "application/javascript": "js", "e2b/data": {"a": [1]}, "e2b/chart": {"type": "line"}, "x/y": "z",
    }  # fmt: skip
    assert line("display_data", {"data": data}) == {
        "type": "result", "is_main_result": False, "text": "t", "html": "h", "markdown": "m", "svg": "s", "png": "p",
        "jpeg": "j", "pdf": "d", "latex": "l", "json": {"a": 1}, "javascript": "js", "data": {"a": [1]},
        "chart": {"type": "line"}, "extra": {"x/y": "z"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "told"),
    [("'abc'", "abc"), ('"it\'s"', "it's"), ("'", "'"), ("''", ""), ("'a\"", "'a\""), ("42", "42"), ("", "")],
)
def test_a_string_is_told_without_its_quotes(shown: str, told: str) -> None:
    found = line("execute_result", {"data": {"text/plain": shown}})
    assert found == {"type": "result", "is_main_result": True, "text": told}


def test_an_empty_chart_is_no_chart() -> None:
    found = line("display_data", {"data": {"e2b/chart": {}, "e2b/data": None}})
    assert found == {"type": "result", "is_main_result": False}


def test_the_traceback_is_one_text() -> None:
    found = line("error", {"ename": "E", "evalue": "v", "traceback": ["a", "b"]})
    assert found == {"type": "error", "name": "E", "value": "v", "traceback": "a\nb"}


def test_dropped_output_is_told() -> None:
    frames = published("stream", {})
    frames[6] = None
    message = jupyter.parse(frames)
    assert message is not None
    found = jupyter.line_of(message)
    assert found is not None
    assert (found["type"], "too large" in found["text"]) == ("stderr", True)


def test_messages_that_clients_do_not_see_have_no_line() -> None:
    for kind in ("status", "clear_output", "comm_open", "update_display_data", "iopub_welcome", "made-up"):
        assert line(kind, {}) is None


def test_a_line_is_one_line_of_utf8_whatever_was_printed() -> None:
    encoded = jupyter.encode_line({"type": "stdout", "text": "a\nb\u2028\ud800🦄"})
    assert encoded.count(b"\n") == 1
    assert json.loads(encoded)["text"] == "a\nb\u2028?🦄"


# -------------------------------------------------------------------------------------------------- kernels, variables


@pytest.mark.parametrize(
    ("asked", "language", "kernel"),
    [
        (None, "python", "python3"), ("Python", "python", "python3"), ("js", "javascript", "javascript"),
        ("ts", "typescript", "javascript"), ("r", "r", "ir"), ("bash", "bash", "bash"), ("custom", "custom", "custom"),
    ],
)  # fmt: skip
def test_languages_have_e2bs_names_and_jupyters_kernels(asked: str | None, language: str, kernel: str) -> None:
    assert kernelspecs.language_name(asked) == language
    assert kernelspecs.kernel_name(language) == kernel


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "a\0", "x" * 200])
def test_a_kernels_name_never_leads_out_of_the_folder(name: str) -> None:
    assert kernelspecs.find(name, ("/",)) is None


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z]{1,5}", fullmatch=True),
        st.text(st.characters(codec="ascii", exclude_characters="\0")),
        min_size=1,
    )
)
def test_variables_of_a_bash_cell_are_set_exactly_and_undone(env: dict[str, str]) -> None:
    enter, leave = code_around("bash", env, {})
    names = " ".join(env)
    show = f'for n in {names}; do printf "%s\\0" "${{!n-unset}}"; done'
    first = next(iter(env))
    script = f"unset {names}; export {first}=before\n{enter}\n{show}\n{leave}\n{show}"
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, check=True)
    values = done.stdout.decode().split("\0")[:-1]
    assert values[: len(env)] == list(env.values())
    assert values[len(env) :] == ["before" if name == first else "unset" for name in env]


@given(st.dictionaries(NAMES, st.text(), min_size=1))
def test_variables_of_a_python_cell_are_data_not_code(env: dict[str, str]) -> None:
    seen: list[object] = []

    class Shell:
        class atoll_variables:
            enter = staticmethod(lambda *given: seen.append(given))

    eval(code_around("python3", env, {"P": "1"})[0], {"get_ipython": lambda: Shell})
    assert seen == [(env, {"P": "1"})]


def test_nothing_is_run_where_there_is_nothing_to_set() -> None:
    assert code_around("python3", {}, {}) == ("", "")
    assert code_around("unknown", {"A": "1"}, {}) == ("", "")
