"""Attempts of a stranger, who has no key and no token: to hold what the port has, or to make the server work.

They come from an address of their own (127.0.0.2): what a breach takes is an answer to somebody else.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator

from atoll_attacks.attempt import Attempt, Control, Deed, Family, Impossible, Judge
from atoll_attacks.calls import request, server_address
from atoll_attacks.load import costs
from atoll_attacks.outside.naive import NaiveServer
from atoll_attacks.scene import Scene

_FROM = ("127.0.0.2", 0)
_WITHIN_S = 30.0
_HELD, _MANY = 600, 6500
"""The second: more than one address may have."""


def _connect(address: tuple[str, int]) -> socket.socket:
    made = socket.create_connection(address, timeout=5 if address == server_address() else 1, source_address=_FROM)
    made.settimeout(0.2)
    return made


def _held(say: Callable[[int], bytes], count: int) -> Callable[[Scene], str]:
    """Connections that each say a little and stay; while they do, somebody else asks."""

    def act(scene: Scene) -> str:
        address = scene.facts.get("address") or server_address()
        with contextlib.ExitStack() as held, _descriptors(count + 1000):
            made = 0
            for number in range(count):
                try:
                    connection = held.enter_context(_connect(address))
                    connection.sendall(say(number))
                    made += 1
                except OSError:
                    break
            scene.facts["status"] = _ask(address)
        return f"{made} connections held, then {scene.facts['status']}"

    return act


@contextlib.contextmanager
def _descriptors(many: int) -> Iterator[None]:
    """This process may have so many files open, where it may say so."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(many, before[1])), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _ask(address: tuple[str, int]) -> int:
    """The status that somebody else gets; 0 for none."""
    with contextlib.suppress(OSError, ValueError, IndexError), socket.create_connection(address, timeout=2) as asking:
        asking.settimeout(_WITHIN_S if address == server_address() else 1)
        asking.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return int(asking.recv(4096).split()[1])
    return 0


def _refused(scene: Scene) -> str | None:
    status = scene.facts.get("status")
    return None if status in (200, 204) else f"somebody else was answered {status}"


def _flood(make: Callable[[int], bytes], count: int) -> Callable[[Scene], str]:
    """Requests one behind the other on few connections; what comes back is thrown away."""

    def act(scene: Scene) -> str:
        costs()(scene)
        sent = 0
        connection: socket.socket | None = None
        for number in range(count):
            try:
                connection = connection or _connect(server_address())
                connection.sendall(make(number))
                sent += 1
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(1 << 16):
                        raise ConnectionError("it hung up")
            except OSError:
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()
        return f"{sent} requests"

    return act


def _slow(scene: Scene) -> str:
    """One request, a byte at a time, that would never end."""
    said = _held(lambda n: b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{", 200)(scene)
    time.sleep(0.2)
    return said


def _uploads(scene: Scene) -> str:
    """Links for the files of somebody's template, as a stranger would make them."""
    digest, due, forged = "ab" * 32, 99999999999, "0" * 64
    teams = ("default", "..", "%2e%2e", "default%2f..%2f..", ".arriving")
    paths = [f"{team}/{digest}/{due}/{forged}" for team in teams]
    paths += [f"default/..%2f..%2fatoll.db/{due}/{forged}", f"default/{digest}/{due}/", f"default/{digest}", "%00", ""]
    statuses = [request("PUT", f"/templates/uploads/{path}", b"x" * 100)[0] for path in paths]
    scene.facts["taken"] = [path for path, status in zip(paths, statuses, strict=True) if 200 <= status < 300]
    return f"statuses {sorted(set(statuses))}"


def _taken(scene: Scene) -> str | None:
    return f"an upload was taken: {scene.facts['taken'][0]}" if scene.facts["taken"] else None


def _naive(act: Callable[[Scene], str]) -> Control:
    """The same against a server that gives each client its whole attention."""

    def deed(scene: Scene) -> str:
        with NaiveServer() as server:
            scene.facts["address"] = server.address
            return act(scene)

    return Control(Deed(deed))


def _attempt(
    name: str, goal: str, act: Callable[[Scene], str], judge: Judge, control: Control | Impossible | None = None
) -> Attempt:
    return Attempt(name, Family.STRANGERS, goal, Deed(act), judge, control or _naive(act))


def _request(head: str, body: bytes = b"") -> Callable[[int], bytes]:
    return lambda number: head.encode() + body


_OURS = Impossible("it is our own server's work that is measured: without it there is none")
_PATH = "/" + "a/" * 30000
_IDLE = _held(lambda n: b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", _MANY)
_HALF = _held(lambda n: b"GET /health HTTP/1.1\r\nHost: ", _HELD)

ATTEMPTS: tuple[Attempt, ...] = (
    _attempt("idle-connections", "leave nobody else a connection", _IDLE, _refused),
    _attempt("half-heads", "leave nobody else a connection, by heads that never end", _HALF, _refused),
    _attempt("slow-bodies", "leave nobody else a connection, by bodies that never end", _slow, _refused),
    _attempt("forged-upload-links", "put files into somebody's template", _uploads, _taken, _OURS),
    _attempt(
        "signatures",
        "have the server hash long paths for every sandbox",
        _flood(_request(f"GET /files?path={_PATH}&signature=v1_{'A' * 43} HTTP/1.1\r\nHost: x\r\n\r\n"), 150),
        costs(),
        _OURS,
    ),
    _attempt(
        "guessed-keys",
        "have the server look for keys that are none",
        _flood(
            lambda n: f"GET /sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: e2b_{n:032x}\r\n\r\n".encode(),
            300,
        ),
        costs(),
        _OURS,
    ),
    _attempt(
        "endless-heads",
        "fill the server's memory with heads",
        _flood(_request("GET / HTTP/1.1\r\nHost: x\r\n" + "X-A: " + "b" * (4 << 20)), 12),
        costs(),
        _OURS,
    ),
    _attempt(
        "chunk-extensions",
        "have the server read chunks of nothing",
        _flood(
            _request(
                "POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
                (b"1;" + b"e" * 4000 + b"\r\nx\r\n") * 100,
            ),
            20,
        ),
        costs(),
        _OURS,
    ),
    _attempt(
        "blanks",
        "have an expression of the server read blanks for ever",
        _flood(_request("GET /health HTTP/1.1\r\nHost:" + " \t" * 15000 + "\rx\r\n\r\n"), 20),
        costs(),
        _OURS,
    ),
)
