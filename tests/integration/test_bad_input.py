"""Wrong, broken and hostile input: each gets a clear error in the protocol's own form, and the server goes on.

The SDKs cannot send most of this, so it is sent as bytes. What is asserted of an error is its form and that it names
what was wrong; what is asserted of the server is that the next honest request is answered.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
)
from sdk_support import command_lines, eventually, eventually_async

from support.tiers import one_tier

pytestmark = one_tier("refused by the control plane, the edge or the guest, the same programs in every tier")

ENVD = "49983"
MIB = 1024 * 1024


# --- the control plane ------------------------------------------------------------------------------------------------


@pytest.fixture
def api(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.api_key}, timeout=30) as client:
        yield client


def _assert_error(response: httpx.Response, *statuses: int) -> str:
    """The control plane's error form: JSON with the status repeated and a message. Returns the message."""
    assert response.status_code in statuses, response.text
    body = response.json()
    assert body["code"] == response.status_code
    assert isinstance(body["message"], str)
    assert body["message"]
    assert "Traceback" not in response.text
    return str(body["message"])


def test_an_unknown_template_is_refused_by_name(server: Any) -> None:
    with pytest.raises(SandboxException, match="no-such-template"):
        Sandbox.create("no-such-template")


@pytest.mark.parametrize(
    "sandbox_id",
    ["nosuchsandbox0000000", "UPPER", "with-dash", "a" * 3000, "%2e%2e%2fetc", "%00", "ünï", "a;b", "' OR 1=1 --"],
)
def test_an_unknown_sandbox_is_not_found_whatever_its_id_looks_like(api: httpx.Client, sandbox_id: str) -> None:
    quoted = urllib.parse.quote(sandbox_id, safe="%")
    for method, path, body in (
        ("GET", f"/sandboxes/{quoted}", None),
        ("DELETE", f"/sandboxes/{quoted}", None),
        ("POST", f"/sandboxes/{quoted}/timeout", {"timeout": 10}),
        ("POST", f"/v2/sandboxes/{quoted}/connect", {"timeout": 10}),
        ("POST", f"/sandboxes/{quoted}/refreshes", {"duration": 10}),
        ("GET", f"/sandboxes/{quoted}/metrics", None),
    ):
        _assert_error(api.request(method, path, json=body), 404, 400, 414)


def test_the_sdk_says_not_found_for_an_unknown_sandbox(server: Any) -> None:
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect("nosuchsandbox0000000")
    assert Sandbox.kill("nosuchsandbox0000000") is False


@pytest.mark.parametrize("key", ["", "wrong", "e2b_" + "0" * 40, "x" * 7000])
def test_a_wrong_key_is_refused_everywhere(server: Any, key: str) -> None:
    headers = {"X-API-Key": key} if key else {}
    for method, path in (
        ("POST", "/v2/sandboxes"),
        ("POST", "/sandboxes"),
        ("GET", "/v2/sandboxes"),
        ("GET", "/sandboxes/nosuchsandbox0000000"),
        ("DELETE", "/sandboxes/nosuchsandbox0000000"),
        ("GET", "/templates"),
    ):
        message = _assert_error(httpx.request(method, server.url + path, headers=headers, json={}), 401)
        assert key == "" or key not in message, "the key is repeated in the answer"


def test_the_sdk_says_authentication_for_a_wrong_key(server: Any) -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"templateID": 5}',
        b'{"templateID": null}',
        b'{"timeout": 10}',
        b'{"templateID": "base", "timeout": "soon"}',
        b'{"templateID": "base", "timeout": -1}',
        b'{"templateID": "base", "timeout": 1e400}',
        b'{"templateID": "base", "timeout": 99999999999999999999}',
        b'{"templateID": "base", "metadata": [1]}',
        b'{"templateID": "base", "metadata": {"a": {"b": 1}}}',
        b'{"templateID": "base", "envVars": {"A": 1e400}}',
        b'{"templateID": "base", "envVars": {"A=B": "x"}}',
        b'{"templateID": "base", "envVars": {"A": "nul \\u0000"}}',
        b"[" * 100_000,
    ],
    ids=lambda body: body[:50].decode("latin-1"),
)
def test_a_malformed_create_is_the_callers_mistake_and_makes_nothing(api: httpx.Client, body: bytes) -> None:
    before = api.get("/v2/sandboxes").json()
    response = api.post("/v2/sandboxes", content=body, headers={"Content-Type": "application/json"})
    _assert_error(response, 400, 422)
    assert api.get("/v2/sandboxes").json() == before


def test_an_oversized_create_is_refused(api: httpx.Client) -> None:
    body = json.dumps({"templateID": "base", "metadata": {"k": "x" * (40 * MIB)}})
    try:
        response = api.post("/v2/sandboxes", content=body)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return  # refused before it was read to the end
    _assert_error(response, 400, 413)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-1", "limit=many", "limit=101", "state=flying", "order=sideways", "startedAfter=yesterday"],
)
def test_a_malformed_list_query_is_the_callers_mistake(api: httpx.Client, query: str) -> None:
    _assert_error(api.get(f"/v2/sandboxes?{query}"), 400)


def test_an_unknown_path_or_method_has_the_error_form(api: httpx.Client) -> None:
    _assert_error(api.get("/no/such/path"), 404)
    _assert_error(api.put("/sandboxes"), 405, 404)


def test_what_is_not_offered_says_so(api: httpx.Client) -> None:
    body = {"templateID": "base", "iam": {"tokens": {"a": {"audience": "x", "tokenType": "jwt"}}}}
    message = _assert_error(api.post("/v2/sandboxes", json=body), 400)
    assert "iam" in message.lower()


# --- the guest's protocol ---------------------------------------------------------------------------------------------


class Raw:
    """Requests to the guest's envd that no SDK would send."""

    def __init__(self, server: Any, sandbox: Sandbox) -> None:
        self.server = server
        self.headers = {
            "E2b-Sandbox-Id": sandbox.sandbox_id,
            "E2b-Sandbox-Port": ENVD,
            "X-Access-Token": sandbox._envd_access_token or "",
            "Connect-Protocol-Version": "1",
        }

    def unary(self, method: str, body: bytes, content_type: str = "application/json") -> httpx.Response:
        headers = {**self.headers, "Content-Type": content_type}
        return httpx.post(f"{self.server.url}/{method}", content=body, headers=headers, timeout=30)

    def stream(self, body: bytes, method: str = "process.Process/Start", **more: str) -> httpx.Response:
        headers = {**self.headers, "Content-Type": "application/connect+json", **more}
        return httpx.post(f"{self.server.url}/{method}", content=body, headers=headers, timeout=30)


@pytest.fixture
def raw(server: Any, sandbox: Sandbox) -> Raw:
    return Raw(server, sandbox)


def envelope(message: Any, flags: int = 0) -> bytes:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">BI", flags, len(body)) + body


def _end_error(body: bytes) -> dict[str, Any]:
    """The error in the end-of-stream envelope that a Connect stream must finish with."""
    last: dict[str, Any] | None = None
    while body:
        flags, size = struct.unpack(">BI", body[:5])
        if flags & 2:
            last = json.loads(body[5 : 5 + size])
        body = body[5 + size :]
    assert last is not None, "the stream ended without its last envelope"
    return dict(last.get("error", {}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\x00",
        b'{"process": {"pid": "many"}}',
        b'{"process": {"pid": -5}}',
        b'{"process": 7}',
        b'"x"',
    ],
    ids=repr,
)
def test_a_malformed_unary_message_is_invalid_argument(raw: Raw, sandbox: Sandbox, body: bytes) -> None:
    response = raw.unary("process.Process/SendSignal", body)
    assert response.status_code in (400, 404)
    assert response.json()["code"] in ("invalid_argument", "not_found")
    assert response.json()["message"]
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_bytes_that_are_not_base64_are_invalid_argument(raw: Raw) -> None:
    response = raw.unary("process.Process/SendInput", b'{"process":{"pid":1},"input":{"stdin":"***"}}')
    assert response.status_code == 400
    assert response.json()["code"] == "invalid_argument"


def test_an_unknown_method_or_service_is_unimplemented_or_not_found(raw: Raw) -> None:
    for method in ("process.Process/Explode", "no.Such/Thing", "process.Process/"):
        response = raw.unary(method, b"{}")
        assert response.status_code in (404, 501)


def test_an_unknown_content_type_is_415(raw: Raw) -> None:
    assert raw.unary("process.Process/List", b"{}", content_type="text/plain").status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\x00",
        envelope({"process": {"cmd": "/bin/true"}})[:-3],
        struct.pack(">BI", 0, 0xFFFFFFFF) + b"x",
        envelope(b"not json"),
        envelope({"process": {"cmd": "/bin/true"}}, flags=1),
        envelope({"process": {"cmd": "/bin/true"}}) * 2,
        envelope({"process": {"cmd": ""}}),
        envelope({}),
        envelope({"process": {"cmd": "/bin/bash", "args": "no list"}}),
    ],
    ids=[
        "empty",
        "half a head",
        "cut off",
        "four gigabytes",
        "no json",
        "compressed",
        "twice",
        "no cmd",
        "nothing",
        "args",
    ],
)
def test_a_malformed_stream_request_ends_with_an_error(raw: Raw, sandbox: Sandbox, body: bytes) -> None:
    response = raw.stream(body)
    if response.status_code == 200:
        assert _end_error(response.content)["code"] in (
            "invalid_argument",
            "unimplemented",
            "resource_exhausted",
            "internal",
        )
    else:
        assert 400 <= response.status_code < 500
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_an_oversized_envelope_is_refused_and_not_swallowed(raw: Raw, sandbox: Sandbox) -> None:
    body = envelope({"process": {"cmd": "/bin/true", "envs": {"A": "x" * (80 * MIB)}}})
    try:
        response = raw.stream(body)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        response = None
    if response is not None and response.status_code == 200:
        assert _end_error(response.content)["code"] in ("resource_exhausted", "invalid_argument")
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_a_program_that_does_not_exist_is_a_clear_error(raw: Raw) -> None:
    error = _end_error(raw.stream(envelope({"process": {"cmd": "/no/such/program"}})).content)
    assert error["code"] in ("invalid_argument", "not_found", "internal")
    assert "/no/such/program" in error["message"]


def test_a_command_line_longer_than_the_kernel_takes_is_an_error_not_a_hang(sandbox: Sandbox) -> None:
    with pytest.raises((SandboxException, CommandExitException)):
        sandbox.commands.run("true " + "x" * (3 * MIB), timeout=60)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_a_nul_byte_in_a_command_or_path_is_the_callers_mistake(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException):
        sandbox.commands.run("echo a\x00b")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list("/home/\x00")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.read("/home/\x00")


def test_a_wrong_token_is_refused(raw: Raw) -> None:
    raw.headers["X-Access-Token"] = "wrong"
    response = raw.unary("process.Process/List", b"{}")
    assert response.status_code == 401
    assert httpx.get(f"{raw.server.url}/files?path=/etc/hostname", headers=raw.headers).status_code == 401


def test_a_body_that_is_cut_off_mid_upload_leaves_the_sandbox_well(raw: Raw, sandbox: Sandbox) -> None:
    address = urllib.parse.urlsplit(raw.server.url)
    for _ in range(10):
        with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
            head = "".join(f"{name}: {value}\r\n" for name, value in raw.headers.items())
            sock.sendall(
                f"POST /files?path=cut HTTP/1.1\r\nHost: x\r\n{head}Content-Type: application/octet-stream\r\n"
                f"Content-Length: 1000000\r\n\r\n".encode()
                + b"x" * 5000
            )
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    assert [entry.name for entry in sandbox.files.list("/home/user") if "cut" in entry.name] in ([], ["cut"])


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no boundary here"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut'),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"H: " + b"x" * 200_000),
        ("application/x-www-form-urlencoded", b"a=b"),
    ],
)
def test_a_malformed_upload_is_the_callers_mistake(raw: Raw, content_type: str, body: bytes) -> None:
    response = httpx.post(
        f"{raw.server.url}/files?path=up",
        content=body,
        headers={**raw.headers, "Content-Type": content_type},
        timeout=30,
    )
    assert response.status_code in (400, 415)
    assert response.json()["message"]


def test_what_claims_to_be_gzip_but_is_not_is_the_callers_mistake(raw: Raw) -> None:
    headers = {**raw.headers, "Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
    response = httpx.post(f"{raw.server.url}/files?path=up", content=b"not gzip at all", headers=headers, timeout=30)
    assert response.status_code == 400


# --- the listener -----------------------------------------------------------------------------------------------------


def _talk(server: Any, data: bytes, wait_s: float = 5) -> bytes:
    """Sends bytes, half-closes nothing, returns whatever comes back until the server closes or `wait_s` passed."""
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=wait_s) as sock:
        answer = b""
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionError):
            pass
        return answer


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbroken header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
        b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["tls", "zeros", "half", "version", "header", "long header", "long path", "many headers", "both lengths",
         "two lengths", "negative", "bad chunk", "http2"],
)  # fmt: skip
def test_garbage_on_the_listener_is_refused_and_the_server_goes_on(server: Any, garbage: bytes) -> None:
    answer = _talk(server, garbage)
    if answer:
        status = int(answer.split(b" ", 2)[1])
        assert 400 <= status < 600, answer[:200]
    assert httpx.get(f"{server.url}/health").status_code in (200, 204)


def test_garbage_aimed_at_a_sandbox_is_refused_and_the_sandbox_goes_on(server: Any, sandbox: Sandbox) -> None:
    route = f"E2b-Sandbox-Id: {sandbox.sandbox_id}\r\nE2b-Sandbox-Port: {ENVD}\r\n".encode()
    for tail in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    ):
        answer = _talk(server, b"POST /process.Process/List HTTP/1.1\r\nHost: x\r\n" + route + tail)
        assert not answer or int(answer.split(b" ", 2)[1]) >= 400, answer[:200]
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999999999", "abc", "49983; rm"])
def test_a_senseless_port_header_is_refused(server: Any, sandbox: Sandbox, port: str) -> None:
    """Port 0 above all: inside it is the guest's control server, which is the host's alone."""
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": port}
    response = httpx.get(f"{server.url}/health", headers=headers)
    assert response.status_code in (400, 404, 502), response.text
    assert sandbox.is_running()


@pytest.mark.parametrize("host", ["0-{id}.localhost", "65536-{id}.localhost", "x-{id}.localhost", "-{id}.localhost"])
def test_a_senseless_host_name_reaches_no_sandbox(server: Any, sandbox: Sandbox, host: str) -> None:
    response = httpx.get(f"{server.url}/envs", headers={"Host": host.format(id=sandbox.sandbox_id)})
    assert response.status_code >= 400


@pytest.mark.parametrize("path", ["/init", "/freeze", "/unfreeze", "/upgrade", "/collapse"])
def test_what_belongs_to_the_host_cannot_be_called_from_outside(raw: Raw, path: str) -> None:
    response = httpx.post(f"{raw.server.url}{path}", json={}, headers=raw.headers)
    assert response.status_code == 404


def test_many_silent_connections_do_not_keep_others_out(server: Any, sandbox: Sandbox) -> None:
    address = urllib.parse.urlsplit(server.url)
    idle = [socket.create_connection((address.hostname, address.port)) for _ in range(300)]
    try:
        for sock in idle[:100]:
            sock.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert sandbox.commands.run("echo alive").stdout == "alive\n"
    finally:
        for sock in idle:
            sock.close()


# --- clients that leave -----------------------------------------------------------------------------------------------


def test_a_client_that_disconnects_mid_stream_leaves_its_command_running(raw: Raw, sandbox: Sandbox) -> None:
    body = envelope(
        {"process": {"cmd": "/bin/bash", "args": ["-l", "-c", "echo in; read x; echo got $x"]}, "stdin": True}
    )
    with httpx.stream(
        "POST",
        f"{raw.server.url}/process.Process/Start",
        content=body,
        headers={**raw.headers, "Content-Type": "application/connect+json"},
        timeout=30,
    ) as response:
        first = next(response.iter_raw())
        pid = json.loads(first[5 : 5 + struct.unpack(">I", first[1:5])[0]])["event"]["start"]["pid"]
    assert pid in {process.pid for process in sandbox.commands.list()}
    again = sandbox.commands.connect(pid)
    again.send_stdin("me\n")
    assert again.wait().stdout.endswith("got me\n")


def test_a_client_that_leaves_a_download_costs_nothing(sandbox: Sandbox) -> None:
    sandbox.commands.run("head -c 50000000 /dev/zero > big")
    for _ in range(20):
        with sandbox.files.read("big", format="stream") as stream:
            next(stream)
    open_files = "ls -l /proc/1/fd 2>/dev/null | grep -c /home/user/big || true"
    eventually(lambda: sandbox.commands.run(open_files, user="root").stdout.strip() == "0", what="the file is closed")


async def test_watchers_of_clients_that_left_are_ended(async_sandbox: AsyncSandbox) -> None:
    for _ in range(150):  # more than inotify's default of 128 instances for one user
        handle = await async_sandbox.files.watch_dir("/home/user", on_event=lambda event: None)
        await handle.stop()
    seen: list[Any] = []
    handle = await async_sandbox.files.watch_dir("/home/user", on_event=seen.append)
    await async_sandbox.files.write("note", "x")
    await eventually_async(lambda: seen, what="the last watcher still hears")
    await handle.stop()


# --- programs that want to end more than themselves -----------------------------------------------------------------


def test_killing_pid_one_from_inside_ends_nothing(sandbox: Sandbox) -> None:
    sandbox.commands.run("kill -9 1; kill -TERM 1; sudo kill -9 1; sudo kill -TERM 1; true")
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


@pytest.mark.timeout(300)
def test_a_fork_bomb_is_held_and_ends_with_its_command(sandbox: Sandbox, create: Any) -> None:
    other = create()
    bomb = base64.b64encode(b"b() { b | b & }; b; read x").decode()
    script = f"echo {bomb} | base64 -d > bomb.sh; exec bash bomb.sh"
    handle = sandbox.commands.run(script, background=True, stdin=True, timeout=0)
    time.sleep(2)
    assert other.commands.run("echo unharmed", timeout=120).stdout == "unharmed\n"
    assert handle.kill() is True

    def recovered() -> bool:
        with contextlib.suppress(Exception):
            return not any("bomb.sh" in line for line in command_lines(sandbox))
        return False

    eventually(recovered, what="the sandbox takes commands again and the bomb is gone", within_s=150)
