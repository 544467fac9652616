"""Nonsense of every kind at a real server: no 5xx, no hang, no leak.

The REST interface is fuzzed from its own OpenAPI document, with values that fit it and values that do not; the guest's
Connect endpoints with broken envelopes, bodies and paths.
"""

from __future__ import annotations

import json
import socket
import struct
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from e2b import Sandbox
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from sdk_support import eventually

from support.tiers import one_tier

pytestmark = one_tier("refused by the control plane or the guest, the same programs in every tier")

EXAMPLES = 4
ANSWER_WITHIN_S = 30
"""Bounds a hang, on a machine that is busy; measures nothing."""

QUIET = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def unharmed(server: Any) -> Iterator[None]:
    """Afterwards the server is as it was: well, no sandbox more, no descriptor more, nothing broke inside."""
    keys = {"X-API-Key": server.api_key}
    sandboxes = {one["sandboxID"] for one in httpx.get(f"{server.url}/v2/sandboxes", headers=keys).json()}
    descriptors, log_size = server.descriptors(), server.log.stat().st_size
    yield
    assert httpx.get(f"{server.url}/health").status_code == 204
    left = {one["sandboxID"] for one in httpx.get(f"{server.url}/v2/sandboxes", headers=keys).json()} - sandboxes
    for sandbox_id in left:
        httpx.delete(f"{server.url}/sandboxes/{sandbox_id}", headers=keys)
    eventually(lambda: server.descriptors() <= descriptors + 8, what="the descriptors are given back")
    with server.log.open("rb") as log:
        log.seek(log_size)
        assert b"Traceback" not in log.read()


def _in_form(response: httpx.Response | Any, what: object) -> None:
    assert response.status_code < 500, (what, response.status_code, response.text[:500])
    if response.status_code >= 400:
        body = response.json()
        assert body["code"] == response.status_code, what
        assert isinstance(body["message"], str), what
        assert body["message"], what


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_that_the_document_allows_or_forbids_breaks_the_server(
    server: Any, unharmed: None, create: Any, mode: GenerationMode
) -> None:
    sandbox_id = create().sandbox_id
    document = httpx.get(f"{server.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    # To send what really does something, an id that exists stands in for most that do not.
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 50

    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.api_key}, timeout=ANSWER_WITHIN_S) as client:
        known = {"sandbox_id": sandbox_id, "team_id": client.get("/teams").json()[0]["teamID"]}
        for operation in operations:
            if operation.path == "/sandboxes/{sandbox_id}" and operation.method == "delete":
                continue

            @QUIET
            @given(case=operation.as_strategy(generation_mode=mode))
            def attempt(case: Any) -> None:
                for name in known.keys() & case.path_parameters.keys():
                    if len(str(case.path_parameters[name])) % 2:
                        case.path_parameters[name] = known[name]
                sent = case.as_transport_kwargs(base_url=server.url)
                sent.pop("cookies", None)
                sent["headers"] = {
                    name: str(value).encode("utf-8", "replace")
                    for name, value in dict(sent.get("headers") or {}).items()
                    if name.lower() not in ("x-api-key", "authorization", "content-length", "host", "transfer-encoding")
                }
                try:
                    response = client.request(
                        sent.pop("method"), sent.pop("url"), **{k: v for k, v in sent.items() if k in _HTTPX}
                    )
                except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError):
                    return  # our own client will not send it
                _in_form(response, case.as_curl_command())

            attempt()


_HTTPX = frozenset({"headers", "params", "json", "data", "content"})


# Connect

PATHS = [
    "/process.Process/Start",
    "/process.Process/Connect",
    "/process.Process/List",
    "/process.Process/StreamInput",
    "/process.Process/SendInput",
    "/process.Process/SendSignal",
    "/process.Process/Update",
    "/process.Process/CloseStdin",
    "/filesystem.Filesystem/Stat",
    "/filesystem.Filesystem/ListDir",
    "/filesystem.Filesystem/MakeDir",
    "/filesystem.Filesystem/Move",
    "/filesystem.Filesystem/Remove",
    "/filesystem.Filesystem/WatchDir",
    "/filesystem.Filesystem/CreateWatcher",
    "/filesystem.Filesystem/GetWatcherEvents",
    "/filesystem.Filesystem/RemoveWatcher",
]
TYPES = ["application/json", "application/proto", "application/connect+json", "application/connect+proto"]

_leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_NAMES = [
    *("process", "cmd", "args", "envs", "cwd", "pid", "tag", "selector", "pty", "size", "cols", "rows", "stdin"),
    *("input", "path", "depth", "source", "destination", "recursive", "watcherId", "signal", "start", "data", "event"),
]
_name = st.sampled_from(_NAMES)
JSON_BODY = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_name, inner, max_size=4),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())
BODY = JSON_BODY | st.binary(max_size=200)
ENVELOPE = st.builds(
    lambda flags, claimed, body: bytes([flags]) + struct.pack(">I", len(body) if claimed is None else claimed) + body,
    st.integers(0, 255) | st.just(0),
    st.none() | st.integers(0, 2**32 - 1),
    BODY,
)
ANYTHING = BODY | ENVELOPE | st.lists(ENVELOPE, max_size=4).map(b"".join)
TIMEOUTS = st.none() | st.sampled_from(["500", "0", "-1", "x", "9" * 30, "1e3"])


@pytest.mark.timeout(200)
def test_no_broken_message_breaks_the_guest(server: Any, unharmed: None, sandbox: Sandbox) -> None:
    address = urllib.parse.urlsplit(server.url)
    token = sandbox.connection_config.sandbox_headers["X-Access-Token"]
    began = time.monotonic()

    @settings(QUIET, max_examples=250)
    @given(path=st.sampled_from(PATHS), kind=st.sampled_from(TYPES), body=ANYTHING, timeout=TIMEOUTS)
    @example(path=PATHS[8], kind=TYPES[0], body=b"\0\0\x0fD\xb4null", timeout=None)  # taken for UTF-32
    @example(path="/filesystem.Filesystem/Remove", kind=TYPES[0], body=b"{}", timeout=None)  # once removed the home
    @example(path="/filesystem.Filesystem/Move", kind=TYPES[0], body=b'{"destination": "/tmp/x"}', timeout=None)
    def attempt(path: str, kind: str, body: bytes, timeout: str | None) -> None:
        if time.monotonic() - began > 60:
            return
        head = [
            f"POST {path} HTTP/1.1",
            "host: x",
            f"e2b-sandbox-id: {sandbox.sandbox_id}",
            "e2b-sandbox-port: 49983",
            f"x-access-token: {token}",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
            "connect-protocol-version: 1",
            "connection: close",
            *([f"connect-timeout-ms: {timeout}"] if timeout is not None else []),
        ]
        with socket.create_connection((address.hostname, address.port), timeout=ANSWER_WITHIN_S) as sock:
            sock.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
            # A watch or a command that by chance is a good one streams on: its head is answer enough.
            answer = sock.recv(65536)
        status = int(answer.split(b" ", 2)[1])
        in_time = timeout is None or status != 504  # a deadline of no time may pass, or not
        assert status < 500 or status == 501 or not in_time, (path, kind, body, answer)

    attempt()
    # A message that is a good one by chance may have moved or removed the home directory.
    assert sandbox.commands.run("echo well", cwd="/").stdout == "well\n"


@pytest.mark.timeout(120)
def test_no_path_or_query_breaks_the_file_interface(server: Any, unharmed: None, sandbox: Sandbox) -> None:
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox.connection_config.sandbox_headers["X-Access-Token"],
    }
    names = st.text(max_size=30) | st.sampled_from(["/", "~", "..", "/proc/self/mem", "/dev/zero/x", "\0", "a" * 5000])
    with httpx.Client(base_url=server.url, headers=headers, timeout=ANSWER_WITHIN_S) as client:

        @settings(QUIET, max_examples=60)
        @given(
            method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE"]),
            place=st.sampled_from(["/files", "/files/compose", "/envs", "/metrics", "/health", "/nothing"]),
            path=names,
            user=st.sampled_from(["user", "root", "nobody-here", ""]),
            body=st.binary(max_size=100),
            kind=st.sampled_from(["application/octet-stream", "multipart/form-data; boundary=x", "text/plain", "\x7f"]),
        )
        def attempt(method: str, place: str, path: str, user: str, body: bytes, kind: str) -> None:
            try:
                request = client.build_request(
                    method, place, params={"path": path, "username": user}, content=body, headers={"content-type": kind}
                )
            except (UnicodeError, httpx.InvalidURL):
                return
            with client.stream(method, request.url, content=body, headers=request.headers) as response:
                assert response.status_code < 500 or response.status_code == 507, (method, place, path)

        attempt()
    assert sandbox.files.exists("/etc/passwd")
