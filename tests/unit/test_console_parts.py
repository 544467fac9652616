"""What of the console needs no server: sessions, the tree of snapshots, how values look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from atoll.console.gate import check_origin
from atoll.console.routes.snapshots import tree
from atoll.console.sessions import LIFETIME_S, MAX_PER_KEY, MAX_SESSIONS, Sessions
from atoll.console.view import size, span
from atoll.control.access.auth import Caller
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
    ],
    ids=["same", "case", "none", "null", "sandbox", "same-site", "no-host"],
)
def test_origins(headers: dict[str, str], allowed: bool) -> None:
    if allowed:
        check_origin(headers)
    else:
        with pytest.raises(Forbidden):
            check_origin(headers)


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
