"""The server of an ordinary user: real sandboxes without root, and what is lost is said."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import CommandExitException, PtySize, Sandbox, SandboxException, ServiceBusyException
from sdk_support import eventually

from atoll_attacks import Family, Range, attempts
from support.host import requires, skip_without
from support.ordinary_user import UID, OrdinaryUser, ordinary_user
from support.server import ServerProcess
from support.tiers import one_tier

pytestmark = [
    requires("root", "program:setpriv", "program:unshare"),
    pytest.mark.timeout(240),
]

# As in tests/security/test_posture.py.
CAPABILITIES = 0x000405FB


@pytest.fixture(scope="module", params=["one id", "subordinate ids"])
def user(request: pytest.FixtureRequest) -> Iterator[OrdinaryUser]:
    wide = request.param == "subordinate ids"
    if wide:
        skip_without("program:newuidmap")
    with ordinary_user(subordinate_ids=wide) as made:
        more = ["--map-auto"] if wide else []
        tried = made.run("unshare", "--user", "--map-root-user", *more, "--mount", "--pid", "--fork", "true")
        if tried.returncode != 0:
            pytest.skip(f"an ordinary user of this machine can make no namespaces: {tried.stderr.strip()}")
        yield made


@pytest.fixture(scope="module")
def templates(user: OrdinaryUser, templates_dir: Path) -> Path:
    """The user's own copy of the smallest template."""
    user.take(templates_dir / "base", "templates/base")
    os.chown(user.place / "templates", UID, UID)
    return user.place / "templates"


def test_a_missing_template_is_built_or_it_is_said_what_the_user_lacks(user: OrdinaryUser) -> None:
    server = ServerProcess.start(
        user.place / "first", templates_dir=user.place / "fresh", options=["--end-sandboxes"], wrap=user.wrap
    )
    options = {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url, "retries": 0}
    try:
        if not user.has_subordinate_ids:
            with pytest.raises(SandboxException, match=r"'base' is missing and cannot be built.* subordinate ids"):
                Sandbox.create(**options)
            return
        for _ in range(10):
            try:
                made = Sandbox.create(**options)
                break
            except ServiceBusyException:
                continue
        assert made.commands.run("id -un").stdout == "user\n"
    finally:
        assert server.stop() == 0, server.log_tail()


@pytest.fixture(scope="module")
def rootless(user: OrdinaryUser, templates: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(
        user.place / "data", templates_dir=templates, options=["--end-sandboxes"], wrap=user.wrap
    )
    yield running
    assert running.stop() == 0, running.log_tail()


@pytest.fixture
def create(rootless: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sandbox]]:
    for name, value in rootless.environ.items():
        monkeypatch.setenv(name, value)
    made: list[Sandbox] = []

    def one(**more: Any) -> Sandbox:
        made.append(Sandbox.create(timeout=120, **more))
        return made[-1]

    yield one
    for sandbox in made:
        sandbox.kill()


def test_commands_and_files(create: Any, user: OrdinaryUser) -> None:
    sandbox = create()
    ran = sandbox.commands.run("cd /home/user && echo $HOME && id -u && echo oops >&2", envs={"X": "1"})
    assert ran.stdout.split() == ["/home/user", "1000" if user.has_subordinate_ids else "0"]
    assert ran.stderr == "oops\n"
    assert sandbox.commands.run("id -u", user="root").stdout == "0\n"
    sandbox.files.write("deep/er/note.txt", "grüße")
    assert sandbox.files.read("deep/er/note.txt") == "grüße"
    sandbox.files.write("/usr/local/bin/tool", "#!/bin/sh\necho tool\n", user="root")
    assert sandbox.commands.run("chmod +x /usr/local/bin/tool && tool", user="root").stdout == "tool\n"
    moved = sandbox.commands.run("mv /usr/share/doc /usr/share/moved && ls -d /usr/share/moved", user="root")
    assert moved.exit_code == 0
    with pytest.raises(CommandExitException):
        sandbox.commands.run("exit 3")
    assert create().commands.run("ls -d /usr/share/doc").exit_code == 0, "the template is as it was"


def test_the_users_of_a_sandbox_are_apart_where_there_are_ids_for_them(create: Any, user: OrdinaryUser) -> None:
    sandbox = create()
    tried = "touch /root/mine 2>/dev/null && echo mine || echo refused; chown daemon note 2>/dev/null && echo given"
    sandbox.files.write("note", "")
    if not user.has_subordinate_ids:
        assert sandbox.commands.run(f"{tried} || true").stdout == "mine\n"
        return
    assert sandbox.commands.run(f"{tried} || true").stdout == "refused\n"
    assert sandbox.commands.run("sudo chown daemon note && stat -c %U note && sudo id -u").stdout == "daemon\n0\n"


_ASKED = ("absolute", "dots", "link-to", "proc-", "write-")


def test_no_file_of_the_guest_or_of_the_host_is_reached_by_the_file_api(
    rootless: ServerProcess, user: OrdinaryUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack suite's attempts: here the guest's owner is a user of the sandbox, whose /proc would open to it."""
    if user.has_subordinate_ids:
        pytest.skip("the same as with one id, which is the harder one")
    for name, value in rootless.environ.items():
        monkeypatch.setenv(name, value)
    chosen = [one for one in attempts() if one.family is Family.FILES and one.name.startswith(_ASKED)]
    assert len(chosen) > 15
    with Range(data_dir=user.place / "data") as place:
        outcomes = place.attack_all(chosen)
    assert {name: outcome.breach for name, (outcome, _) in outcomes.items() if outcome.breach is not None} == {}
    assert "403" in outcomes["proc-environ"][0].said, "it was asked"


def test_a_terminal(create: Any) -> None:
    sandbox = create()
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(terminal.pid, b"tty; exit 7\n")
    seen = bytearray()
    with pytest.raises(CommandExitException) as ended:
        terminal.wait(on_pty=seen.extend)
    assert ended.value.exit_code == 7
    assert b"/dev/pts/" in seen


def test_a_port_of_its_own_is_reached(create: Any, rootless: ServerProcess) -> None:
    sandbox = create()
    sandbox.commands.run("mkdir w && echo here > w/index.html && cd w && python3 -m http.server 8000", background=True)
    host = sandbox.get_host(8000)

    def answer() -> str | None:
        response = httpx.get(rootless.url, headers={"host": host}, timeout=10)
        return response.text if response.status_code == 200 else None

    assert eventually(answer, what="the server inside answers") == "here\n"


def test_the_way_out_is_the_gateways(create: Any) -> None:
    sandbox = create()
    tried = sandbox.commands.run(
        "python3 -c 'import socket; socket.create_connection((\"169.254.169.254\", 80), 5).recv(1)' 2>&1 || true"
    )
    assert "ConnectionReset" in tried.stdout or "ConnectionRefused" in tried.stdout


def test_the_wall_as_the_host_sees_it(create: Any, user: OrdinaryUser) -> None:
    sandbox = create()
    record = json.loads((user.place / "data" / "sandboxes" / sandbox.sandbox_id / "state.json").read_text())
    guest = int(record["handle"]["pid"])
    with open(f"/proc/{guest}/status") as source:
        status = source.read()
    assert re.search(rf"^Uid:\t{UID}\t{UID}\t{UID}\t{UID}$", status, re.M), "it is its owner on the host, and no root"
    for seen in (status, sandbox.commands.run("cat /proc/self/status", user="root").stdout):
        sets = {name: int(value, 16) for name, value in re.findall(r"^Cap(\w+):\s+(\w+)$", seen, re.M)}
        assert sets == {"Inh": 0, "Prm": CAPABILITIES, "Eff": CAPABILITIES, "Bnd": CAPABILITIES, "Amb": 0}
        assert re.search(r"^Seccomp:\s+2$", seen, re.M)
    names = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
    assert not {os.readlink(f"/proc/{guest}/ns/{name}") for name in names} & {
        os.readlink(f"/proc/self/ns/{name}") for name in names
    }
    tries = sandbox.commands.run(
        "mount -t tmpfs x /mnt; cat /proc/1/environ; ls /proc/1/root; unshare -U true; kill -9 1; echo end",
        user="root",
    )
    assert tries.stdout == "end\n"
    seen_pids = sandbox.commands.run("ls /proc").stdout.split()
    assert max(int(name) for name in seen_pids if name.isdigit()) < 1000, "no process of the host is seen"


def test_what_is_killed_leaves_nothing(create: Any, user: OrdinaryUser) -> None:
    sandbox = create()
    sandbox.commands.run("mkdir -p closed/in && touch closed/in/x && chmod 000 closed/in closed && (sleep 600 &)")
    assert (user.place / "data" / "sandboxes" / sandbox.sandbox_id).is_dir()
    assert sandbox.kill()
    places = [user.place / "data" / "sandboxes" / sandbox.sandbox_id, user.place / "data" / "trash"]
    assert not places[0].exists()
    eventually(lambda: not list(places[1].iterdir()), what="the trash is emptied, closed directories too")


def test_the_limits_that_are_lost_are_said(create: Any, rootless: ServerProcess) -> None:
    sandbox = create()
    url = f"{rootless.url}/sandboxes/{sandbox.sandbox_id}"
    detail = httpx.get(url, headers={"X-API-Key": rootless.api_key}, timeout=30).json()
    assert detail["tier"] == "namespaces"
    assert detail["limitsNotEnforced"] == ["cpu", "memory", "pids", "disk"]


@one_tier("the other half of a test of rootless servers, which are of this tier alone")
def test_a_server_that_can_says_that_it_keeps_them(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    sandbox = Sandbox.create(timeout=60)
    try:
        headers = {"X-API-Key": server.api_key}
        detail = httpx.get(f"{server.url}/sandboxes/{sandbox.sandbox_id}", headers=headers, timeout=30).json()
        assert set(detail["limitsNotEnforced"]) < {"cpu", "memory", "pids", "disk"}
    finally:
        sandbox.kill()


def test_doctor_tells_an_ordinary_user_what_works(user: OrdinaryUser, templates: Path) -> None:
    environ = [f"ATOLL_DATA_DIR={user.place / 'other'}", f"ATOLL_TEMPLATES_DIR={templates}", "COLUMNS=500"]
    done = user.run("env", *environ, sys.executable, "-m", "atoll.cli.main", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "isolation tier namespaces: works here" in done.stdout
    assert ("ok   ids: subordinate ids" in done.stdout) == user.has_subordinate_ids
    assert "isolation tier gvisor: does not work here" in done.stdout
    assert "a sandbox's root is this user on the host" in done.stdout
    for limit in ("memory", "cpu", "pids", "disk"):
        assert re.search(rf"warn limit {limit}: .*NOT enforced", done.stdout), limit
