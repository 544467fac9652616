"""The decision per request, and the table behind it."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pytest

from atoll.edge.answers import Answer
from atoll.edge.head import Headers, RequestHead, read_request
from atoll.edge.routes import PREFLIGHT, TO_CONTROL, Decision, LiveRoutes, ToSandbox, decide, host_for
from atoll.edge.signed import find_signed, signature_of
from atoll.model.seams import Route
from support.effort import cpu_seconds


async def unreachable(port: int) -> socket.socket:
    raise AssertionError("a decision dials nothing")


def table(*ids: str, **more: Any) -> LiveRoutes:
    routes = LiveRoutes()
    for sandbox_id in ids:
        routes.add(Route(sandbox_id, unreachable, **more))
    return routes


def ask(
    routes: LiveRoutes, *fields: tuple[bytes, bytes], target: bytes = b"/", method: bytes = b"GET", host: bytes = b"h"
) -> Decision:
    headers: Headers = [(b"host", host), *fields]
    return decide(read_request(method, target, "1.1", headers, keep_alive=True), routes, frozenset({"localhost"}))


def named(sandbox_id: bytes, port: bytes = b"8000") -> tuple[tuple[bytes, bytes], ...]:
    return (b"e2b-sandbox-id", sandbox_id), (b"e2b-sandbox-port", port)


def test_without_a_sandbox_it_is_for_control() -> None:
    assert ask(table("abcd"), target=b"/sandboxes") is TO_CONTROL


def test_the_header_wins_over_the_host() -> None:
    decision = ask(table("abcd", "efgh"), *named(b"abcd"), host=b"1-efgh.localhost")
    assert isinstance(decision, ToSandbox)
    assert (decision.route.sandbox_id, decision.port) == ("abcd", 8000)


def test_a_removed_route_is_not_found() -> None:
    routes = table("abcd")
    routes.remove("abcd")
    routes.remove("abcd")
    decision = ask(routes, *named(b"abcd"))
    assert isinstance(decision, Answer)
    assert (decision.status, decision.message) == (502, "The sandbox was not found")


@pytest.mark.parametrize("fields", [named(b"AB"), named(b"abcd", b"x"), named(b"abcd", b"0")])
def test_malformed_routing_headers_are_the_callers_fault(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    decision = ask(table("abcd"), *fields)
    assert isinstance(decision, Answer)
    assert decision.status == 400


@pytest.mark.parametrize(
    "path", [b"/init", b"//init", b"/INIT", b"/%69nit", b"/./init", b"/init/", b"/init?x", b"/x/../init"]
)
def test_internal_paths_of_the_guest_do_not_exist_outside(path: bytes) -> None:
    decision = ask(table("abcd"), *named(b"abcd", b"49983"), target=path, method=b"POST")
    assert isinstance(decision, Answer)
    assert decision.status == 404


def test_user_programs_may_have_such_paths() -> None:
    assert isinstance(ask(table("abcd"), *named(b"abcd"), target=b"/init"), ToSandbox)


@pytest.mark.parametrize(
    ("port", "token", "status"),
    [(b"8000", None, 403), (b"8000", b"no", 403), (b"8000", b"yes", 0), (b"49999", None, 403), (b"49983", None, 0)],
)
def test_the_traffic_token_guards_all_ports_but_envds(port: bytes, token: bytes | None, status: int) -> None:
    fields = named(b"abcd", port) + (((b"e2b-traffic-access-token", token),) if token else ())
    decision = ask(table("abcd", traffic_access_token="yes"), *fields)
    assert (decision.status if isinstance(decision, Answer) else 0) == status


def test_a_preflight_is_answered_for_guests_and_passed_to_programs() -> None:
    preflight = (b"origin", b"http://p"), (b"access-control-request-method", b"POST")
    routes = table("abcd")
    assert ask(routes, *preflight, method=b"OPTIONS", host=b"49983-abcd.localhost") is PREFLIGHT
    assert isinstance(ask(routes, *preflight, method=b"OPTIONS", host=b"8000-abcd.localhost"), ToSandbox)
    wanted = (b"access-control-request-headers", b"Content-Type, E2b-Sandbox-Id")
    assert ask(routes, *preflight, wanted, method=b"OPTIONS") is PREFLIGHT
    assert ask(routes, *preflight, method=b"OPTIONS") is TO_CONTROL


@pytest.mark.parametrize("operation", [("GET", "read"), ("POST", "write")])
def test_a_signed_url_belongs_to_the_sandbox_whose_token_signed_it(operation: tuple[str, str]) -> None:
    routes = table("aaaa", envd_access_token="one")
    routes.add(Route("bbbb", unreachable, envd_access_token="two"))
    routes.add(Route("cccc", unreachable))
    method, word = operation
    signature = signature_of("/f", word, "user", "two", "99")
    query = f"/files?path=/f&username=user&signature={signature}&signature_expiration=99"
    decision = ask(routes, target=query.encode(), method=method.encode())
    assert isinstance(decision, ToSandbox)
    assert (decision.route.sandbox_id, decision.port) == ("bbbb", 49983)
    other = "DELETE" if method == "GET" else "PUT"
    assert ask(routes, target=query.encode(), method=other.encode()) is TO_CONTROL
    assert ask(routes, target=query.replace("/f&", "/g&").encode(), method=method.encode()) is TO_CONTROL


@pytest.mark.parametrize(
    "query", [b"signature=", b"signature=v1_x", b"signature=%ff%fe&path=%00", b"signature=" + b"&a=b" * 99]
)
def test_nonsense_for_a_signature_is_nobodys(query: bytes) -> None:
    assert ask(table("abcd", envd_access_token="t"), target=b"/files?" + query) is TO_CONTROL


def test_a_masked_host_hides_the_real_one_from_programs_only() -> None:
    route = Route("abcd", unreachable, mask_request_host="localhost:${PORT}")
    head = read_request(b"GET", b"/", "1.1", [(b"host", b"8000-abcd.localhost")], keep_alive=True)
    assert host_for(head, route, 8000) == b"localhost:8000"
    assert host_for(head, route, 49983) == b"8000-abcd.localhost"


def test_tokens_do_not_show_in_a_routes_repr() -> None:
    assert "s3cret" not in repr(Route("abcd", unreachable, envd_access_token="s3cret", traffic_access_token="s3cret"))


@pytest.mark.parametrize("target", [b"/sandboxes/abcd/connect", b"/v2/sandboxes/abcd/connect"])
def test_an_old_sdks_connect_is_for_control_though_it_names_the_sandbox(target: bytes) -> None:
    assert ask(table("abcd"), *named(b"abcd", b"49983"), target=target, method=b"POST") is TO_CONTROL
    assert isinstance(ask(table("abcd"), *named(b"abcd", b"8000"), target=target, method=b"POST"), ToSandbox)


def _signed_head(path: str, signature: str, **more: str) -> RequestHead:
    query = urlencode({"path": path, "signature": signature, **more}).encode()
    return RequestHead(b"GET", b"/files?" + query, True, True, [])


def test_a_signed_url_finds_its_sandbox_and_costs_a_stranger_little() -> None:
    routes = LiveRoutes()
    for number in range(1000):
        routes.add(Route(f"sandbox{number}", unreachable, envd_access_token=f"token{number}"))
    signature = signature_of("/home/user/x y", "read", "user", "token777", "99")
    found = find_signed(_signed_head("/home/user/x y", signature, username="user", signature_expiration="99"), routes)
    assert found is not None
    assert found.sandbox_id == "sandbox777"
    for wrong in ("v1_", "v1_" + "A" * 42, "v1_" + "A" * 44, "v2_" + "A" * 43, "v1_" + "-" * 43, "v1_" + "A" * 43):
        assert find_signed(_signed_head("/x", wrong), routes) is None
    long = "x" * 5000
    assert find_signed(_signed_head(long, signature_of(long, "read", "", "token1", None)), routes) is None
    heads = [_signed_head(path, "v1_" + "A" * 43) for path in ("x" * 4096, "x")]
    long_path, short_path = (cpu_seconds(partial(find_signed, head, routes), 5) for head in heads)
    assert long_path < 3 * short_path, "a long path is hashed once, not once per sandbox"
