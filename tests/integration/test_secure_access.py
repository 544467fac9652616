"""Who may reach into a sandbox: its token on every path of the guest, the traffic token on ports; the masked Host."""

from __future__ import annotations

import urllib.parse
from functools import cache
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from e2b_code_interpreter import Sandbox as Interpreter
from sdk_support import eventually

ENVD = 49983
INTERPRETER = 49999

RPC = [
    *(f"/process.Process/{name}" for name in ("List", "SendInput", "SendSignal", "Update", "CloseStdin")),
    *(f"/process.Process/{name}" for name in ("Start", "Connect", "StreamInput")),
    *(f"/filesystem.Filesystem/{name}" for name in ("Stat", "ListDir", "MakeDir", "Move", "Remove", "WatchDir")),
    *(f"/filesystem.Filesystem/{name}" for name in ("CreateWatcher", "GetWatcherEvents", "RemoveWatcher")),
]
PLAIN = [
    ("GET", "/metrics"),
    ("GET", "/envs"),
    ("GET", "/files?path=/etc/hostname"),
    ("POST", "/files?path=/home/user/x"),
    ("POST", "/files/compose"),
    ("GET", "/no/such/path"),
]
WRONG_TOKENS: list[dict[str, str]] = [{}, {"X-Access-Token": "wrong"}, {"X-Access-Token": ""}]


@cache
def _client() -> httpx.Client:
    """One for all: making one costs more than a request."""
    return httpx.Client()


def _ask(server: Any, sandbox_id: str, port: int, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port), **more.pop("headers", {})}
    return _client().request(method, f"{server.url}{path}", headers=headers, timeout=60, **more)


@pytest.mark.parametrize("headers", WRONG_TOKENS, ids=["none", "wrong", "empty"])
def test_without_its_token_no_path_of_a_guest_opens(server: Any, sandbox: Sandbox, headers: dict[str, str]) -> None:
    for method, path in PLAIN:
        response = _ask(server, sandbox.sandbox_id, ENVD, method, path, headers=headers)
        assert response.status_code == 401, (path, response.text)
    for path in RPC:
        for kind in ("application/json", "application/proto", "application/connect+json", "application/connect+proto"):
            content_type = {"Content-Type": kind}
            response = _ask(
                server, sandbox.sandbox_id, ENVD, "POST", path, headers=headers | content_type, content=b"{}"
            )
            refused = response.status_code == 401 or "unauthenticated" in response.text
            assert refused, (path, kind, response.status_code, response.text)
    # Control: the token opens, and health is nobody's secret.
    token = {"X-Access-Token": sandbox.connection_config.sandbox_headers["X-Access-Token"]}
    assert _ask(server, sandbox.sandbox_id, ENVD, "GET", "/envs", headers=token).status_code == 200
    assert _ask(server, sandbox.sandbox_id, ENVD, "GET", "/health").status_code == 204


def test_without_its_token_no_code_is_run(server: Any, shared_interpreter: Interpreter) -> None:
    sandbox_id = shared_interpreter.sandbox_id
    for headers in WRONG_TOKENS:
        response = _ask(server, sandbox_id, INTERPRETER, "POST", "/execute", headers=headers, json={"code": "1+1"})
        assert response.status_code in (401, 403), response.text
    assert shared_interpreter.run_code("1+1").text == "2"


def test_one_sandboxs_token_does_not_open_another(server: Any, create: Any) -> None:
    one, two = create(), create()
    token = {"X-Access-Token": one.connection_config.sandbox_headers["X-Access-Token"]}
    assert _ask(server, two.sandbox_id, ENVD, "GET", "/envs", headers=token).status_code == 401
    # A signature finds the sandbox whose token made it, and no other.
    one.files.write("secret", "of one")
    url = one.download_url("secret")
    assert httpx.get(url).text == "of one"
    assert _ask(server, two.sandbox_id, ENVD, "GET", f"/files?{urllib.parse.urlsplit(url).query}").status_code == 401


def test_the_hosts_own_port_of_a_guest_is_reached_by_nobody(server: Any, sandbox: Sandbox) -> None:
    token = {"X-Access-Token": sandbox.connection_config.sandbox_headers["X-Access-Token"]}
    for path in ("/logs", "/init", "/health"):
        assert _ask(server, sandbox.sandbox_id, 0, "GET", path, headers=token).status_code >= 400
    assert _ask(server, sandbox.sandbox_id, ENVD, "GET", "/logs", headers=token).status_code == 404


def test_ports_that_are_not_public_want_the_traffic_token(server: Any, create: Any) -> None:
    sandbox = create(network={"allow_public_traffic": False})
    token = sandbox.traffic_access_token
    assert token
    sandbox.commands.run("mkdir site && echo inside > site/index.html")
    sandbox.commands.run("python3 -m http.server 8000 --directory site", background=True, timeout=0)
    good = {"e2b-traffic-access-token": token}

    def answer(headers: dict[str, str]) -> httpx.Response:
        return _ask(server, sandbox.sandbox_id, 8000, "GET", "/", headers=headers)

    eventually(lambda: answer(good).status_code == 200, what="the page is served")
    assert answer(good).text == "inside\n"
    for headers in ({}, {"e2b-traffic-access-token": "wrong"}, {"X-Access-Token": token}):
        assert answer(headers).status_code == 403
    host = httpx.get(server.url, headers={"Host": sandbox.get_host(8000)})
    assert host.status_code == 403
    # The guest has a token of its own: the SDK goes on working.
    assert sandbox.commands.run("echo works").stdout == "works\n"


def test_programs_inside_see_the_host_that_their_owner_chose(server: Any, create: Any) -> None:
    sandbox = create(network={"mask_request_host": "app.internal:${PORT}"})
    program = (
        "import http.server\n"
        "class Tell(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        data = self.headers['Host'].encode()\n"
        "        self.send_response(200); self.send_header('Content-Length', str(len(data))); self.end_headers()\n"
        "        self.wfile.write(data)\n"
        "http.server.HTTPServer(('127.0.0.1', 8001), Tell).serve_forever()\n"
    )
    sandbox.files.write("tell.py", program)
    sandbox.commands.run("python3 tell.py", background=True, timeout=0)
    response = eventually(
        lambda: r if (r := _ask(server, sandbox.sandbox_id, 8001, "GET", "/")).status_code == 200 else None,
        what="the program answers",
    )
    assert response.text == "app.internal:8001"
