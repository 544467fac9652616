"""The console over HTTP: log-in, pages, changes, and what is refused. In a browser: test_console_browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from e2b import Sandbox, Template
from sdk_support import eventually

from atoll.cli import teams
from atoll.config import Settings
from support.tiers import one_tier

pytestmark = one_tier("pages of the control plane: the sandbox's side is the SDK's own protocol")

HOSTILE = "<img src=x onerror=alert(1)>"
HTML = {"Accept": "text/html"}


class Browser:
    """As a browser would: cookies kept, `Origin` sent with forms, the page's CSRF token in them."""

    def __init__(self, server: Any) -> None:
        self.client = httpx.Client(base_url=server.url, headers=HTML, timeout=60)
        self.origin = {"Origin": server.url}
        self.key = server.api_key
        self.csrf = ""

    def log_in(self, key: str | None = None) -> httpx.Response:
        """And the token of the session, from its first page."""
        answer = self.client.post("/console/login", data={"key": key or self.key}, headers=self.origin)
        found = re.search(r'<meta name="csrf" content="([^"]+)"', self.client.get("/console/").text)
        self.csrf = found.group(1) if found else ""
        return answer

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"/console{path}")

    def post(self, path: str, /, **fields: str) -> httpx.Response:
        return self.client.post(f"/console{path}", data={"csrf": self.csrf, **fields}, headers=self.origin)


@pytest.fixture
def browser(server: Any) -> Iterator[Browser]:
    """Logged in."""
    found = Browser(server)
    assert found.log_in().status_code == 303
    assert found.csrf
    yield found
    found.client.close()


@pytest.fixture
def stranger(server: Any) -> Iterator[Browser]:
    """Of another team, logged in."""
    settings = Settings.from_environ({"ATOLL_DATA_DIR": str(server.data_dir)})
    found = Browser(server)
    found.log_in(teams.create(settings, "strangers")["api_key"])
    assert found.csrf
    yield found
    found.client.close()


def test_a_browser_is_led_to_the_log_in_and_back(server: Any) -> None:
    found = Browser(server)
    assert found.client.get("/").headers["location"] == "/console/"
    asked = found.get("/sandboxes")
    assert (asked.status_code, asked.headers["location"]) == (303, "/console/login?next=/console/sandboxes")
    answer = found.client.post(
        "/console/login", data={"key": server.api_key, "next": "/console/sandboxes"}, headers=found.origin
    )
    assert answer.headers["location"] == "/console/sandboxes"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
    assert "SameSite=strict" in cookie
    assert server.api_key not in cookie
    assert found.get("/sandboxes").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "//evil.test/",
        "https://evil.test/",
        "/console/\\evil.test",
        "/console//evil.test",
        "/console/../files",
        "/console/%2e%2e/files",
    ],
)
def test_a_log_in_leads_to_the_console_alone(server: Any, path: str) -> None:
    found = Browser(server)
    answer = found.client.post("/console/login", data={"key": server.api_key, "next": path}, headers=found.origin)
    assert answer.headers["location"] == "/console/"


def test_a_wrong_key_is_refused(server: Any) -> None:
    found = Browser(server)
    answer = found.client.post("/console/login", data={"key": HOSTILE}, headers=found.origin)
    assert answer.status_code == 401
    assert "not known here" in answer.text
    assert "set-cookie" not in answer.headers


def test_every_answer_has_the_policy(browser: Browser) -> None:
    for path in ("/", "/login", "/sandboxes", "/nothing", "/static/console.js"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy, path
        assert headers["x-content-type-options"] == "nosniff"


def test_no_page_has_inline_scripts_or_styles(browser: Browser, sandbox: Sandbox) -> None:
    for path in ("/", "/sandboxes", "/sandboxes/new", f"/sandboxes/{sandbox.sandbox_id}"):
        text = browser.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text), path


def test_without_the_token_nothing_changes(browser: Browser, sandbox: Sandbox) -> None:
    path = f"/console/sandboxes/{sandbox.sandbox_id}/kill"
    for csrf in ("", "x", "é"):
        answer = browser.client.post(path, data={"csrf": csrf}, headers=browser.origin)
        assert answer.status_code == 403
    assert sandbox.is_running()


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "null"}, {"Origin": "http://evil.test"}, {"Sec-Fetch-Site": "same-site"}],
    ids=["none", "null", "another", "same-site"],
)
def test_from_another_origin_nothing_changes(browser: Browser, sandbox: Sandbox, headers: dict[str, str]) -> None:
    sent = {**browser.origin, **headers} if "Sec-Fetch-Site" in headers else headers
    path = f"/console/sandboxes/{sandbox.sandbox_id}/kill"
    answer = browser.client.post(path, data={"csrf": browser.csrf}, headers=sent)
    assert answer.status_code == 403
    assert sandbox.is_running()


def test_a_session_ends_with_the_log_out_and_with_its_key(server: Any, browser: Browser) -> None:
    kept = dict(browser.client.cookies)
    assert browser.post("/logout").headers["location"] == "/console/login"
    browser.client.cookies.update(kept)
    assert browser.get("/").status_code == 303, "the cookie opens nothing any more"

    headers = {"X-API-Key": server.api_key}
    made = httpx.post(f"{server.url}/api-keys", headers=headers, json={"name": "short"}, timeout=30).json()
    other = Browser(server)
    other.log_in(made["key"])
    assert other.get("/").status_code == 200
    httpx.delete(f"{server.url}/api-keys/{made['id']}", headers=headers, timeout=30)
    assert other.get("/").status_code == 303


def test_what_a_sandbox_is_called_is_text(browser: Browser, create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=300, metadata={HOSTILE: HOSTILE})
    for path in ("/", "/sandboxes", f"/sandboxes/{sandbox.sandbox_id}"):
        text = browser.get(path).text
        assert sandbox.sandbox_id in text
        assert HOSTILE not in text


def test_a_sandbox_lives_by_the_console(browser: Browser) -> None:
    made = browser.post(
        "/sandboxes", template="base", timeout="300", internet="yes", on_timeout="kill", cpu="1", metadata="a=b=c\n"
    )
    assert made.status_code == 303, made.text
    sandbox_id = made.headers["location"].rpartition("/")[2]
    try:
        sandbox = Sandbox.connect(sandbox_id)
        info = sandbox.get_info()
        assert (info.cpu_count, info.metadata["a"]) == (1, "b=c")
        assert browser.post(f"/sandboxes/{sandbox_id}/set_timeout", timeout="600").status_code == 303
        assert sandbox.get_info().end_at > info.end_at
        assert browser.post(f"/sandboxes/{sandbox_id}/pause").status_code == 303
        assert "Resume" in browser.get("/sandboxes").text
        assert browser.post(f"/sandboxes/{sandbox_id}/pause").status_code == 409
        assert browser.post(f"/sandboxes/{sandbox_id}/resume").status_code == 303
        sandbox.files.write("note", "kept")
        forked = browser.post(f"/sandboxes/{sandbox_id}/fork")
        fork = Sandbox.connect(forked.headers["location"].rpartition("/")[2])
        try:
            assert fork.files.read("note") == "kept"
        finally:
            fork.kill()
    finally:
        assert browser.post(f"/sandboxes/{sandbox_id}/kill").status_code == 303
    assert browser.get(f"/sandboxes/{sandbox_id}").status_code == 404


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"timeout": "soon"}, "timeout must be a whole number"),
        ({"template": "nothing-such"}, "not found"),
        ({"metadata": "no pair"}, "key=value"),
        ({"template": HOSTILE}, "&lt;img"),
    ],
    ids=["timeout", "template", "metadata", "hostile"],
)
def test_a_wrong_form_says_what_is_wrong(browser: Browser, fields: dict[str, str], text: str) -> None:
    answer = browser.post("/sandboxes", **{"template": "base", "timeout": "300", **fields})
    assert 400 <= answer.status_code < 500
    assert text in answer.text
    assert HOSTILE not in answer.text


def test_a_form_that_is_too_large_is_refused(browser: Browser) -> None:
    answer = browser.post("/sandboxes", metadata="x" * 300_000)
    assert answer.status_code == 400
    assert "larger than" in answer.text


def test_what_is_not_the_consoles_still_needs_a_key(browser: Browser) -> None:
    assert browser.client.get("/sandboxes").status_code == 401, "a cookie is no key"
    assert browser.client.get("/consoles").status_code == 401


def test_another_teams_sandbox_is_not_there(stranger: Browser, sandbox: Sandbox) -> None:
    one = f"/sandboxes/{sandbox.sandbox_id}"
    assert sandbox.sandbox_id not in stranger.get("/sandboxes").text
    for part in ("", "/metrics", "/logs", "/network", "/processes", "/terminals", "/terminals/1/output", "/files"):
        assert stranger.get(one + part).status_code == 404, part
    for part in ("pause", "fork", "kill", "terminals", "processes/1/kill", "files/remove", "files/directory"):
        assert stranger.post(f"{one}/{part}?path=/home/user", name="x").status_code == 404, part
    upload = {**stranger.origin, "X-CSRF-Token": stranger.csrf}
    answer = stranger.client.post(f"/console{one}/files/upload?path=/tmp/x", content=b"x", headers=upload)
    assert answer.status_code == 404
    assert stranger.get("/nodes").status_code == 403
    assert sandbox.is_running()


def test_files_go_both_ways(browser: Browser, sandbox: Sandbox) -> None:
    files = f"/sandboxes/{sandbox.sandbox_id}/files"
    body = bytes(range(256)) * 4096
    upload = {**browser.origin, "X-CSRF-Token": browser.csrf}
    name = "a <b>&.html"
    sent = browser.client.post(
        f"/console{files}/upload", params={"path": f"/home/user/{name}"}, content=body, headers=upload
    )
    assert sent.status_code == 204, sent.text
    assert sandbox.files.read(name, format="bytes") == body
    found = browser.client.get(f"/console{files}/download", params={"path": f"/home/user/{name}"})
    assert found.content == body
    assert found.headers["content-disposition"].startswith("attachment;")
    assert found.headers["content-type"] == "application/octet-stream"
    assert "a &lt;b&gt;&amp;.html" in browser.get(files).text
    assert browser.post(f"{files}/directory?path=/home/user", name="made").status_code == 303
    assert sandbox.files.exists("made")
    sandbox.files.write(f"{name} ", "another")
    remove = re.findall(r'action="/console([^"]+/remove[^"]+)"', browser.get(files).text)
    last = next(one for one in remove if "html" in one and not one.endswith("%20"))
    assert browser.post(last).status_code == 303
    assert not sandbox.files.exists(name)
    assert sandbox.files.exists(f"{name} "), "a name is taken as it is"
    for path in ("", "home"):
        assert browser.post(f"{files}/remove?path={path}").status_code == 400
    for path, status in (("/nothing", 404), ("/home/user", 400), ("", 400)):
        assert browser.client.get(f"/console{files}/download", params={"path": path}).status_code == status, path


def test_text_is_edited_and_all_else_is_offered_as_a_download(browser: Browser, sandbox: Sandbox) -> None:
    edit = f"/sandboxes/{sandbox.sandbox_id}/files/edit?path=/home/user/note"
    sandbox.files.write("note", "</textarea>" + HOSTILE)
    text = browser.get(edit).text
    assert HOSTILE not in text
    assert "&lt;/textarea&gt;" in text
    sandbox.files.write("note", "a\r\nb")
    assert "carriage return" in browser.get(edit).text, "a browser would save it without"
    sandbox.files.write("note", b"\xff\xfe")
    assert "no UTF-8 text" in browser.get(edit).text
    sandbox.files.write("note", b"x" * (2 << 20))
    assert "larger than 1 MiB" in browser.get(edit).text


def read_until(browser: Browser, place: str, text: bytes) -> bytes:
    """What the terminal wrote since it began, once `text` is in it."""
    seen, offset, deadline = b"", 0, time.monotonic() + 60
    while text not in seen:
        assert time.monotonic() < deadline, seen
        answer = browser.get(f"{place}/output?from={offset}")
        assert answer.status_code == 200, answer.text
        seen, offset = seen + answer.content, int(answer.headers["x-next"])
    return seen


def test_a_shell_is_the_sdks_and_survives_the_page(browser: Browser, sandbox: Sandbox) -> None:
    one = f"/sandboxes/{sandbox.sandbox_id}"
    place = browser.post(f"{one}/terminals").headers["location"].removeprefix("/console")
    pid = int(place.rpartition("/")[2])
    assert pid in [one.pid for one in sandbox.commands.list()]
    headers = {**browser.origin, "X-CSRF-Token": browser.csrf}
    sized = browser.client.post(f"/console{place}/size?cols=100&rows=30", headers=headers)
    assert sized.status_code == 204
    browser.client.post(f"/console{place}/keys", content=b"stty size; echo $((6*7))\n", headers=headers)
    first = read_until(browser, place, b"\r\n42\r\n")
    assert b"30 100" in first
    assert read_until(browser, place, b"\r\n42\r\n").startswith(first), "a page that is loaded again shows the same"
    sandbox.pty.send_stdin(pid, b"echo from the $((1+1))nd\n")
    read_until(browser, place, b"from the 2nd")
    assert f"/console{place}" in browser.get(f"{one}/terminals").text
    assert browser.post(f"{one}/processes/{pid}/kill").status_code == 303
    ended = browser.get(f"{place}/output?from=10000000")
    while "x-end" not in ended.headers:
        ended = browser.get(f"{place}/output?from={ended.headers['x-next']}")


def test_what_an_sdk_started_is_looked_at(browser: Browser, sandbox: Sandbox) -> None:
    one = f"/sandboxes/{sandbox.sandbox_id}"
    command = sandbox.commands.run(f"echo '{HOSTILE}'; sleep 300", background=True)
    processes = browser.get(f"{one}/processes").text
    assert "sleep 300" in processes
    assert HOSTILE not in processes
    logs = eventually(
        lambda: text if "onerror" in (text := browser.get(f"{one}/logs").text) else "", what="its output in the log"
    )
    assert HOSTILE not in logs
    assert browser.post(f"{one}/processes/{command.pid}/kill").status_code == 303


@pytest.mark.parametrize("pid", ["0", "x", "-1", "99999999999999", "4000000"])
def test_no_such_terminal(browser: Browser, sandbox: Sandbox, pid: str) -> None:
    answer = browser.get(f"/sandboxes/{sandbox.sandbox_id}/terminals/{pid}/output?from=0")
    assert answer.status_code in (400, 404)


def test_a_paused_sandbox_is_shown_and_not_woken(browser: Browser, create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=300)
    sandbox.pause()
    one = f"/sandboxes/{sandbox.sandbox_id}"
    for part in ("", "/metrics", "/network"):
        assert browser.get(one + part).status_code == 200, part
    for part in ("/terminals", "/files", "/processes"):
        answer = browser.get(one + part)
        assert answer.status_code == 400, part
        assert "resume it first" in answer.text
    assert "state paused" in browser.get(one).text


def test_metrics_of_a_sandbox(browser: Browser, sandbox: Sandbox) -> None:
    found = browser.get(f"/sandboxes/{sandbox.sandbox_id}/metrics").json()
    assert len(found["at"]) == len(found["cpu"]) == len(found["memory"]) > 0
    assert found["most"]["memory"] == 1024 << 20


def test_a_team_keeps_its_keys(server: Any, browser: Browser) -> None:
    made = browser.post("/keys", name=HOSTILE)
    key = re.search(r"e2b_[0-9a-f]{40}", made.text)
    assert key is not None
    assert HOSTILE not in made.text
    assert httpx.get(f"{server.url}/v2/sandboxes", headers={"X-API-Key": key[0]}, timeout=30).status_code == 200
    shown = browser.get("/keys").text
    assert key[0] not in shown
    key_id = re.findall(r"/keys/([^/]+)/revoke", shown)[-1]
    assert browser.post(f"/keys/{key_id}/revoke").status_code == 303
    assert httpx.get(f"{server.url}/v2/sandboxes", headers={"X-API-Key": key[0]}, timeout=30).status_code == 401


def test_a_build_is_followed(browser: Browser) -> None:
    made = Template.build(Template().from_template("base").run_cmd("echo '<b>'built"), "console-build", skip_cache=True)
    assert "console-build" in browser.get("/templates").text
    place = f"/templates/{made.template_id}"
    assert made.build_id in browser.get(place).text
    assert "/log?from=0" in browser.get(f"{place}/builds/{made.build_id}").text
    rows = browser.get(f"{place}/builds/{made.build_id}/log?from=0").text
    assert "&lt;b&gt;built" in rows
    assert "hx-get" not in rows, "it is done: nothing asks for more"
    assert browser.get(f"{place}/builds/{made.build_id}x/log").status_code == 404
    assert browser.post(f"{place}/remove").status_code == 303
    assert browser.get(place).status_code == 404


def test_snapshots_are_a_tree(browser: Browser, create: Callable[..., Sandbox], sandbox: Sandbox) -> None:
    first = sandbox.create_snapshot().snapshot_id.partition(":")[0]
    second = create(first, timeout=300).create_snapshot().snapshot_id.partition(":")[0]
    shown = browser.get("/snapshots").text
    assert re.search(rf"<strong>{first}</strong>(?:(?!</li>).)*<ul>\s*<li><strong>{second}</strong>", shown, re.S)
    for one in (second, first):
        assert browser.post(f"/snapshots/{one}/remove").status_code == 303


def test_the_other_pages(server: Any, browser: Browser) -> None:
    assert "local" in browser.get("/nodes").text
    assert f"E2B_API_URL={server.url}" in browser.get("/connect").text
    assert "base" in browser.get("/sandboxes/new").text


def test_a_cell_is_run(browser: Browser, shared_interpreter: Any) -> None:
    place = f"/sandboxes/{shared_interpreter.sandbox_id}/code"
    assert "interpreter" in browser.get("/connect").text
    answer = browser.post(place, code="print(6*7); '<b>'", language="python")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert ("stdout", "42\n") in [(one["type"], one.get("text")) for one in lines]
    assert browser.post(place, code="1", language="cobol").status_code == 400
