"""Whatever bytes a stranger or a sandbox sends: each parser takes linear time and bounded memory, and ends as it says.

Families of bytes that were once dear, and random ones; the same families grow fourfold and are compared.
"""

from __future__ import annotations

import contextlib
import queue
import struct
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.egress import dns
from atoll.egress.requests import MAX_HEAD, Refused, RequestStream
from atoll.egress.sniff import MAX_HELLO, Sniffer, sniff
from atoll.runtime.mcp.transports import Inbox, Lines, MCPUnreachable
from atoll.runtime.repository.microagents import MAX_FILE_BYTES, MicroagentError, load, parse_head, variables
from atoll.runtime.repository.microagents import MAX_HEAD as MAX_HEAD_OF_AGENT
from atoll.runtime.shell.protocol import MARK_MAX, Ended, MarkReader, Output, Started
from atoll.runtime.shell.terminal import render
from support.effort import assert_linear, cpu_seconds, peak_bytes
from support.raising import raised

Family = Callable[[int], bytes]


def family(name: str, make: Family) -> object:
    return pytest.param(make, id=name)


HEADS = [
    family("blanks before nothing", lambda n: b"GET / HTTP/1.1\r\nHost:" + b" " * n + b"\rx\r\n\r\n"),
    family("blanks within a host", lambda n: b"GET / HTTP/1.1\r\nHost: a" + b" " * n + b"b\r\n\r\n"),
    family("blanks and a control character", lambda n: b"GET / HTTP/1.1\r\nHost: a\r\nA:" + b" \t" * n + b"\1\r\n\r\n"),
    family("blanks before a colon", lambda n: b"GET / HTTP/1.1\r\nHost" + b" " * n + b":x\r\n\r\n"),
    family("colons", lambda n: b"GET / HTTP/1.1\r\nHost: " + b":1" * n + b"x\r\n\r\n"),
    family("line feeds", lambda n: b"GET / HTTP/1.1\r\n" + b"\r" * n + b"\n"),
    family("short lines", lambda n: b"GET / HTTP/1.1\r\n" + b"a:\r\n" * n + b"\r\n"),
    family("a long target", lambda n: b"GET http://" + b"/?#@" * n + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
]


def ask(name: str | None) -> dict[str, str]:
    return {}


@pytest.mark.parametrize("make", HEADS)
def test_a_beginning_is_judged_in_linear_time(make: Family) -> None:
    assert cpu_seconds(lambda: sniff(make(MAX_HELLO))) < 1
    assert cpu_seconds(lambda: sniff(make(64 * MAX_HELLO))) < 1, "what lies beyond the limit is not looked at"


@pytest.mark.parametrize("make", HEADS)
def test_a_request_is_judged_in_linear_time(make: Family) -> None:
    def judge(size: int) -> None:
        with contextlib.suppress(Refused):
            RequestStream(ask).feed(make(size))

    assert_linear(judge, MAX_HEAD // 20)


RECORDS = b"\x16\x03\x01\x00\x05\x01\x00\x3f\x00\x00" + b"\x16\x03\x01\x00\x01\x00" * (MAX_HELLO // 6)


@pytest.mark.parametrize("data", [RECORDS, HEADS[0].values[0](MAX_HELLO), b"G" * 16], ids=["records", "head", "word"])  # type: ignore[attr-defined]
def test_a_beginning_that_comes_byte_by_byte_is_read_once(data: bytes) -> None:
    def feed(size: int) -> None:
        sniffer = Sniffer()
        for at in range(min(size, len(data))):
            sniffer.feed(data[at : at + 1])

    assert_linear(feed, MAX_HELLO // 4)


def test_a_head_that_comes_byte_by_byte_is_read_once() -> None:
    def feed(size: int) -> None:
        stream = RequestStream(ask)
        for _ in range(size):
            stream.feed(b"a")

    assert_linear(feed, MAX_HEAD // 4)


# -- DNS: the answer of a name server that a sandbox's friend runs -----------------------------------------------------


def dns_message(body: bytes, count: int) -> bytes:
    return struct.pack(">6H", 1, 0x8180, 1, count, 0, 0) + b"\1a\4test\0" + struct.pack(">2H", dns.TYPE_A, 1) + body


A_RECORD = struct.pack(">HHIH", dns.TYPE_A, 1, 60, 4) + b"\1\2\3\4"
CHAIN = b"".join(b"\1x" + struct.pack(">H", 0xC000 | (12 if i == 0 else 24 + 4 * (i - 1))) for i in range(120))
ANSWERS = [
    family("addresses", lambda n: dns_message((b"\xc0\x0c" + A_RECORD) * (n // 16), n // 16)),
    family(
        "names by a chain of pointers", lambda n: dns_message(CHAIN + (b"\xc1\xf0" + A_RECORD) * (n // 16), n // 16)
    ),
    family("texts", lambda n: dns_message((b"\0" + struct.pack(">HHIH", 16, 1, 60, 0)) * (n // 11), n // 11)),
    family("a long name", lambda n: dns_message(b"\1x" * (n // 2), 65535)),
    family("records that are not there", lambda n: dns_message(b"", 65535)),
]


@pytest.mark.parametrize("make", ANSWERS)
def test_an_answer_is_read_in_linear_time_and_its_tail_is_not_looked_at(make: Family) -> None:
    question = dns.Question(1, "a.test", dns.TYPE_A, 0)

    def read(size: int) -> None:
        message = make(size)
        with contextlib.suppress(dns.BadMessage):
            dns.parse_answer(message, question).cut_to(message)

    assert_linear(read, 16_000)
    assert cpu_seconds(lambda: read(65_000)) < 0.5
    assert peak_bytes(lambda: read(65_000)) < 1_000_000


# -- the runtime's terminal: bytes of any program in the sandbox -------------------------------------------------------

SCREENS = [
    family("inserts", lambda n: b"\x1b[9999@" * (n // 7)),
    family("inserts into a long line", lambda n: b"x" * (n // 2) + b"\r" + b"\x1b[@" * (n // 6)),
    family("deletes from a long line", lambda n: b"x" * (n // 2) + b"\r" + b"\x1b[P" * (n // 6)),
    family("erasing a long line up to its end", lambda n: b"x" * (n // 2) + b"\x1b[1K" * (n // 8)),
    family("blanking a long line", lambda n: b"x" * (n // 2) + b"\r" + b"\x1b[9999X" * (n // 14)),
    family("lines put in", lambda n: b"\x1b[50L" * (n // 5)),
    family("lines put in above others", lambda n: b"\n" * (n // 2) + b"\x1b[H" + b"\x1b[50L" * (n // 10)),
    family("tabs", lambda n: b"\t" * n + b"x"),
    family("tabs and a character", lambda n: b"\tx" * (n // 2)),
    family("far to the right on each line", lambda n: b"\x1b[9999Cx\n" * (n // 10)),
    family("carriage returns", lambda n: b"\r" * n + b"\x07"),
    family("line feeds on a screen", lambda n: b"\x07" + b"\n" * n),
    family("saved and restored", lambda n: b"\x1b7\n\x1b8\x1b[50L" * (n // 10)),
    family("long numbers", lambda n: b"\x1b[" + b"1" * n + b"H"),
    family("many numbers", lambda n: b"\x1b[" + b"1;" * (n // 2) + b"H"),
    family("commands without an end", lambda n: b"\x1b]0;" * (n // 4)),
    family("strings without an end", lambda n: b"\x1bP" * (n // 2)),
    family("sequences without an end", lambda n: b"\x1b[" + b"1 " * (n // 2)),
    family("another screen and back", lambda n: b"\x1b[?47h\x1b[?47l" * (n // 12)),
]


@pytest.mark.parametrize("make", SCREENS)
def test_a_programs_bytes_are_rendered_in_linear_time_and_memory(make: Family) -> None:
    assert_linear(lambda size: render(make(size).decode()), 20_000)
    text = make(80_000).decode()
    assert peak_bytes(lambda: render(text)) < 24_000_000


@given(st.text(alphabet="\x1b[]?0123456789;ABCDEFGHJKLMPX@\r\n\t\bhlsu 78ab", max_size=400))
def test_any_bytes_can_be_rendered(text: str) -> None:
    assert len(render(text)) < 4_100_000
    assert render(text).count("\n") < 400 + 50


# -- micro-agents: files of a repository -------------------------------------------------------------------------------

FILES = [
    family("blanks before no comment", lambda n: b"---\nname: a" + b" " * n + b"b\n---\ntext"),
    family("blanks and hashes", lambda n: b"---\nname: a" + b" #" * n + b"\n---\ntext"),
    family("open brackets", lambda n: b"---\nname: " + b"[" * n + b"\n---\ntext"),
    family("open braces", lambda n: b"---\nname: " + b"{a: " * n + b"\n---\ntext"),
    family("indentation", lambda n: b"---\n" + b"".join(b" " * i + b"a:\n" for i in range(int((2 * n) ** 0.5)))),
    family("lists in lists", lambda n: b"---\n" + b"- " * n + b"\n---\ntext"),
    family("quotes", lambda n: b"---\na: " + b"'\"" * n + b"\n---\ntext"),
    family("tags", lambda n: b"---\na: " + b"!a " * n + b"\n---\ntext"),
    family("anchors", lambda n: b"---\n" + b"? &a " * n + b"\n---\ntext"),
    family("keys", lambda n: b"---\n" + b"? " * n + b"\n---\ntext"),
    family("lines of a list", lambda n: b"---\ntriggers:\n" + b"- a\n" * n + b"---\ntext"),
    family("ends that are none", lambda n: b"---\n" + b"--- x\n" * n),
    family("variables", lambda n: b"${a" * n),
]


@pytest.mark.parametrize("make", FILES)
@pytest.mark.parametrize("limit", [MAX_HEAD_OF_AGENT, MAX_FILE_BYTES])
def test_a_repositorys_micro_agent_is_read_in_bounded_time(make: Family, limit: int) -> None:
    text = make(limit)[: limit - 200].decode() + "\n---\n"

    def read() -> None:
        with contextlib.suppress(MicroagentError):
            load(text, "a.md")
        variables(text)

    assert cpu_seconds(read, 1) < 2
    assert peak_bytes(read) < 30 * MAX_FILE_BYTES


def test_an_alias_in_a_head_cannot_grow() -> None:
    layers = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    with pytest.raises(MicroagentError, match=r"line 2 .* alias"):
        parse_head(f"a0: &a0 [x]\n{layers}triggers: [*a8]")


@given(st.text(alphabet="-?:[]{},#&*!|>'\"% \t\nab0", max_size=300))
def test_any_head_is_read_or_refused(text: str) -> None:
    assert raised(load, f"---\n{text}\n---\nbody", "a.md") in (None, MicroagentError)


# -- the runtime: marks of the shell, MCP servers ----------------------------------------------------------------------

LEAD, END = b"\x1b]7771;token;", b"\x1f;token\x07"
MARKS = [
    family("leads", lambda n: LEAD * (n // 13)),
    family("ends that never end", lambda n: (LEAD + b"end;") * (n // 17)),
    family("one end that never ends", lambda n: LEAD + b"end;" + b"x" * n),
    family("separators", lambda n: LEAD + b"end;" + b"\x1f" * n),
    family("digits", lambda n: LEAD + b"go;" + b"1" * n),
    family("true marks", lambda n: (LEAD + b"end;0\x1f0\x1f1\x1f\x1fu\x1fh\x1fp\x1f/" + END) * (n // 36)),
]


@pytest.mark.parametrize("make", MARKS)
@pytest.mark.parametrize("piece", [100, 65536])
def test_the_shells_marks_are_read_in_linear_time_and_none_is_waited_for_for_ever(make: Family, piece: int) -> None:
    def read(size: int) -> int:
        data, reader, told = make(size), MarkReader("token"), 0
        for at in range(0, len(data), piece):
            told += sum(len(one.data) for one in reader.feed(data[at : at + piece]) if isinstance(one, Output))
        assert len(reader._pending) <= MARK_MAX
        return told

    assert_linear(read, 250_000)


def test_a_mark_follows_one_that_never_ended() -> None:
    events = list(MarkReader("token").feed(LEAD + b"go;" + LEAD + b"go;7\x07x"))
    assert events == [Output(None, LEAD), Output(None, b"go;"), Started(7), Output(7, b"x")]


def test_numbers_too_long_to_be_any_are_no_mark() -> None:
    assert all(isinstance(one, Output) for one in MarkReader("token").feed(LEAD + b"go;" + b"1" * 5000 + b"\x07"))
    ended = list(MarkReader("token").feed(LEAD + b"end;" + b"1" * 5000 + b"\x1f" + b"9" * 5000 + END))
    assert isinstance(ended[0], Ended)
    assert (ended[0].command_id, ended[0].state.exit_code) == (0, -1)


def test_lines_of_a_server_are_cut_in_linear_time_and_bounded() -> None:
    def read(size: int) -> None:
        lines = Lines()
        for _ in range(size):
            list(lines.feed("abc"))

    assert_linear(read, 50_000)
    with pytest.raises(MCPUnreachable, match="100 characters"):
        list(Lines(100).feed("x" * 101))
    lines = Lines()
    assert [*lines.feed("a\r\nb"), *lines.feed("c\n\nd")] == ["a", "bc", ""]


def test_a_server_that_floods_waits_until_somebody_reads() -> None:
    inbox, put = Inbox(1000), []

    def flood() -> None:
        for number in range(20):
            inbox.put({"n": number}, 100)
            put.append(number)
        inbox.put(None)

    thread = threading.Thread(target=flood)
    thread.start()
    thread.join(0.3)
    assert len(put) == 10, "as much as was allowed"
    assert [inbox.get(5) for _ in range(21)] == [*({"n": number} for number in range(20)), None]
    thread.join(5)
    assert not thread.is_alive()
    inbox.close()
    inbox.put({"n": 1}, 5000)
    with pytest.raises(queue.Empty):
        inbox.get(0)
