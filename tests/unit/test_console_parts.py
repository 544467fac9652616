"""What of the console needs no server: sessions, the tree of snapshots, how values look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from atoll.console.gate import ConsoleGate, check_origin, cookie_of
from atoll.console.routes.snapshots import tree
from atoll.console.sessions import LIFETIME_S, MAX_PER_KEY, MAX_SESSIONS, Sessions
from atoll.console.view import size, span, unless_left
from atoll.control.access.auth import Authenticator, Caller
from atoll.control.access.gate import Answered
from atoll.control.access.rates import BURST, CallRates
from atoll.control.sandboxes.snapshots import SnapshotOrigin
from atoll.model.errors import Forbidden


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_ends_by_itself() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    token = sessions.begin(Caller("team", "key"))
    clock.now = LIFETIME_S - 1
    found = sessions.find(token)
    assert found is not None
    assert found.caller.team_id == "team"
    assert found.csrf not in (token, "")
    assert "key" not in repr(found)
    clock.now = LIFETIME_S
    assert sessions.find(token) is None


def test_an_ended_session_and_a_strangers_token_are_none() -> None:
    sessions = Sessions(Clock())
    token = sessions.begin(Caller("team", "key"))
    assert sessions.find("x") is None
    sessions.end(token)
    sessions.end(token)
    assert sessions.find(token) is None


def test_a_key_has_so_many_sessions_and_the_server_too() -> None:
    sessions = Sessions(Clock())
    other = sessions.begin(Caller("team", "other"))
    tokens = [sessions.begin(Caller("team", "key")) for _ in range(MAX_PER_KEY + 3)]
    assert [sessions.find(one) is not None for one in tokens] == [False] * 3 + [True] * MAX_PER_KEY
    assert sessions.find(other) is not None
    for number in range(MAX_SESSIONS - MAX_PER_KEY):
        sessions.begin(Caller("team", f"key{number}"))
    assert sessions.find(other) is None, "the oldest"
    assert sessions.find(tokens[-1]) is not None


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "a:3000", "origin": "http://a:3000"}, True),
        ({"host": "a", "origin": "https://A", "sec-fetch-site": "same-origin"}, True),
        ({"host": "a:3000"}, False),
        ({"host": "a:3000", "origin": "null"}, False),
        ({"host": "a:3000", "origin": "http://1-b.a:3000"}, False),
        ({"host": "a:3000", "origin": "http://a:3000", "sec-fetch-site": "same-site"}, False),
        ({"origin": "http://"}, False),
        ({"host": "[", "origin": "http://["}, False),
    ],
    ids=["same", "case", "none", "null", "sandbox", "same-site", "no-host", "no-url"],
)
def test_origins(headers: dict[str, str], allowed: bool) -> None:
    if allowed:
        check_origin(headers)
    else:
        with pytest.raises(Forbidden):
            check_origin(headers)


class NoKeys:
    async def team_of(self, digest: str) -> str | None:
        return None

    async def used(self, digest: str, at: datetime) -> None:
        pass


class Gated:
    """A gate in front of an application that says yes, with a session of the key "key"."""

    def __init__(self) -> None:
        self.answered: list[Answered] = []
        sessions = Sessions(Clock())
        self.cookie = f"atoll-console={sessions.begin(Caller('team', 'key'))}"
        found = sessions.find(self.cookie.partition("=")[2])
        assert found is not None
        self.csrf = found.csrf

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("yes")(scope, receive, send)

        def failed(_request: Request, error: BaseException) -> Response:
            return PlainTextResponse(type(error).__name__, 499)

        self.gate = ConsoleGate(app, sessions, Authenticator(["key"], NoKeys()), failed, self.answered.append)

    async def ask(
        self, method: str, path: str, receive: Callable[[], Any] | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status (0: no answer) and body."""
        sent: list[Any] = []

        async def nothing() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        fields = {"host": "here", "origin": "http://here", "cookie": self.cookie, "x_csrf_token": self.csrf, **headers}
        scope = {
            "type": "http", "method": method, "scheme": "http", "path": path, "query_string": b"\xff",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()],
        }  # fmt: skip
        await self.gate(scope, receive or nothing, send)
        return (sent[0]["status"], b"".join(one.get("body", b"") for one in sent)) if sent else (0, b"")


async def test_a_strangers_words_are_no_labels() -> None:
    gated = Gated()
    for host in ("here", "[", "evil/console/static/?"):
        assert await gated.ask("BREW", "/console/x", cookie="", host=host, origin=f"http://{host}") != (200, b"yes")
    assert [(one.method, one.route) for one in gated.answered] == [("other", "other")] * 3


async def test_cookies_of_other_applications_are_passed_over() -> None:
    others = 'a={"b":1}; c:d=e; f="\\'
    assert cookie_of(Headers({"cookie": f"{others}; atoll-console=token"}), "http") == "token"
    assert cookie_of(Headers({"cookie": others}), "http") == ""


async def test_what_leaves_a_trace_is_rated_here_too() -> None:
    gated = Gated()
    gated.gate._rates = CallRates(Clock())
    answers = [await gated.ask("POST", "/console/sandboxes/i/set_timeout") for _ in range(int(BURST) + 1)]
    assert set(answers[:-1]) == {(200, b"yes")}
    assert answers[-1] == (499, b"RateExceeded")
    assert await gated.ask("POST", "/console/sandboxes/i/kill") == (200, b"yes")


async def test_a_client_that_leaves_within_its_form_is_no_error() -> None:
    async def left() -> Any:
        return {"type": "http.disconnect"}

    form = "application/x-www-form-urlencoded"
    gated = Gated()
    assert await gated.ask("POST", "/console/login", left, content_type=form) == (0, b"")


async def test_work_that_nobody_waits_for_ends() -> None:
    ended = asyncio.Event()

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def done() -> int:
        return 7

    messages = iter([{"type": "http.request"}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def never() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(ClientDisconnect):
        await unless_left(receive, stuck())
    assert ended.is_set()
    assert await unless_left(never, done()) == 7


def origin(name: str, made_of: str | None, second: int) -> SnapshotOrigin:
    return SnapshotOrigin(
        name, name, f"of-{name}", datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=second), made_of, ""
    )


def shape(found: list[SnapshotOrigin]) -> str:
    """`a(b(c)d)e`."""
    return "".join(line.snapshot.name + ("(" if line.has_more else "") + ")" * line.ends for line in tree(found))


def test_the_tree_of_snapshots() -> None:
    found = [
        origin("e", "base", 9),
        origin("d", "a", 4),
        origin("c", "b", 3),
        origin("b", "a", 2),
        origin("a", None, 1),
    ]
    assert shape(found) == "a(b(c)d)e"
    assert shape(found[:3]) == "c" + "d" + "e", "their parents are gone"
    assert shape([]) == ""
    chain = [origin(str(number), str(number - 1), number) for number in range(3000)]
    assert shape(chain).endswith("2999" + ")" * 2999)
    assert shape([origin("x", "x", 1)]) == "x"
    assert shape([origin("x", "y", 1), origin("y", "x", 2)]) == "x(y)"


def test_how_values_look() -> None:
    assert [span(s) for s in (-5, 59, 61, 3700, 90000)] == ["0 s", "59 s", "1 min 01 s", "1 h 01 min", "1 d 01 h"]
    assert [size(s) for s in (None, 0, 1023, 1536, 200 * 1024, 3 << 30)] == [
        "unknown", "0 B", "1023 B", "1.5 KiB", "200 KiB", "3.0 GiB",
    ]  # fmt: skip
