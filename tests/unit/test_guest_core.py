"""The guest's way in, its access rule, /init, /metrics, /envs, users: a real guest, raw requests."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from _fake_guest import RunningGuest, running_guest

from atoll.guest.process.users import User, Users, user_in_header
from atoll.http1.server import Headers
from atoll.isolation.base import CONTROL_PORT
from atoll.model.errors import PortClosed
from atoll.wire.envd.connect import ConnectError

TOKEN = "secret-token"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGuest]:
    with running_guest(tmp_path_factory.mktemp("guest"), access_token=TOKEN, env_vars={"A": "1"}) as found:
        yield found


def dial(guest: RunningGuest, port: int) -> socket.socket:
    found = asyncio.run_coroutine_threadsafe(guest.handle.dial(port), guest.loop).result(10)
    found.setblocking(True)
    found.settimeout(10)
    return found


def raw(guest: RunningGuest, data: bytes) -> bytes:
    """Everything that a raw connection to the guest's socket answers to `data` until it is closed."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(guest.state_dir / "guest.sock"))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while chunk := sock.recv(65536):
                found += chunk
        except ConnectionResetError:
            pass
        return found


def control(guest: RunningGuest, method: str, path: str, body: Any) -> tuple[int, bytes]:
    data = json.dumps(body).encode() if not isinstance(body, bytes) else body
    with dial(guest, CONTROL_PORT) as sock:
        sock.sendall(
            f"{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
        )
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return int(answer.split(b" ", 2)[1]), answer


# -- the way in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preamble",
    [
        *(b"", b"\n", b"GET / HTTP/1.1\r\n\r\n", b"ATOLL/2 0\n", b"ATOLL/1 \n", b"ATOLL/1 -1\n", b"ATOLL/1 70000\n"),
        *(b"ATOLL/1 000049983\n", b"x" * 100_000, b"ATOLL/1 \xb2\n"),
    ],
)
def test_a_wrong_preamble_is_cut_off_without_an_answer(guest: RunningGuest, preamble: bytes) -> None:
    assert raw(guest, preamble) == b""
    assert httpx.get(f"{guest.url}/health").status_code == 204


def test_a_preamble_that_arrives_byte_by_byte_is_understood(guest: RunningGuest) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(guest.state_dir / "guest.sock"))
        for byte in b"ATOLL/1 49983\nGET /health HTTP/1.1\r\nconnection: close\r\n\r\n":
            sock.send(bytes([byte]))
        assert sock.recv(100).startswith(b"HTTP/1.1 204")


def test_another_port_is_relayed_both_ways_with_half_closes(guest: RunningGuest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def echo_upper() -> None:
            connection, _ = server.accept()
            with connection:
                data = b""
                while chunk := connection.recv(65536):
                    data += chunk
                connection.sendall(data.upper())

        thread = threading.Thread(target=echo_upper)
        thread.start()
        with dial(guest, port) as sock:
            sock.sendall(b"a" * 1_000_000)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
        thread.join(10)
    assert answer == b"A" * 1_000_000


def test_a_server_on_ipv6_alone_is_reached(guest: RunningGuest) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this host has no IPv6 loopback")
    with server, dial(guest, server.getsockname()[1]) as sock:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"six")
            assert sock.recv(3) == b"six"


def test_a_closed_port_is_refused_at_once(guest: RunningGuest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(PortClosed):
        dial(guest, port)


def test_relayed_connections_leave_nothing_behind(guest: RunningGuest) -> None:
    fds = Path(f"/proc/{guest.handle.record()['pid']}/fd")
    before = len(list(fds.iterdir()))
    with socket.create_server(("127.0.0.1", 0)) as server:
        for first in ("client", "server"):
            for _ in range(10):
                with dial(guest, server.getsockname()[1]) as sock:
                    connection, _ = server.accept()
                    ends = (sock, connection) if first == "client" else (connection, sock)
                    ends[0].shutdown(socket.SHUT_WR)
                    assert ends[1].recv(1) == b""
                    ends[1].shutdown(socket.SHUT_WR)
                    assert ends[0].recv(1) == b""
                    connection.close()
    deadline = time.monotonic() + 10
    while len(list(fds.iterdir())) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_guest_imports_nothing_after_its_start(guest: RunningGuest) -> None:
    # The fake tier refuses imports as a changed root would, and says so in the guest's log.
    assert guest.sandbox().commands.run("echo in").stdout == "in\n"
    guest.sandbox().files.write("imports.txt", "x")
    httpx.get(f"{guest.url}/metrics", headers={"x-access-token": TOKEN})
    assert "imports" not in (guest.state_dir / "guest.log").read_text()


def test_a_relayed_server_that_closes_closes_the_client(guest: RunningGuest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, dial(guest, server.getsockname()[1]) as sock:
        server.accept()[0].close()
        assert sock.recv(1) == b""


# -- the access rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/envs", "/metrics", "/nothing", "/init", "/process.Process/List"])
@pytest.mark.parametrize("headers", [{}, {"x-access-token": "wrong"}, {"x-access-token": TOKEN + "x"}])
def test_every_path_but_health_and_files_needs_the_token(
    guest: RunningGuest, path: str, headers: dict[str, str]
) -> None:
    assert httpx.get(guest.url + path, headers=headers).status_code == 401
    rpc = httpx.post(guest.url + path, headers=headers, json={})
    assert (rpc.status_code, rpc.json()["code"]) == (401, "unauthenticated")


def test_with_the_token_the_sdk_is_let_in(guest: RunningGuest) -> None:
    assert guest.sandbox().commands.run("echo in").stdout == "in\n"


def test_health_is_open(guest: RunningGuest) -> None:
    answer = httpx.get(f"{guest.url}/health")
    assert (answer.status_code, answer.content) == (204, b"")


def test_unknown_paths_and_methods_are_404_in_the_form_of_the_caller(guest: RunningGuest) -> None:
    headers = {"x-access-token": TOKEN}
    assert httpx.get(f"{guest.url}/nothing", headers=headers).json()["code"] == 404
    answer = httpx.post(f"{guest.url}/process.Process/Fly", headers=headers, json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "unimplemented")
    answer = httpx.delete(f"{guest.url}/envs", headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


# -- what the guest tells -------------------------------------------------------------------------------------------


def test_metrics_have_the_fields_of_the_protocol_and_never_the_hosts_memory(guest: RunningGuest) -> None:
    found = httpx.get(f"{guest.url}/metrics", headers={"x-access-token": TOKEN}).json()
    assert set(found) == {
        *("ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache"),
        *("mem_total_mib", "mem_used_mib", "disk_used", "disk_total"),
    }
    assert (found["cpu_count"], found["mem_total"]) == (2, 1024 * 1024 * 1024)
    assert 0 <= found["cpu_used_pct"] <= 100
    assert 0 < found["disk_used"] < found["disk_total"]


# -- /init ----------------------------------------------------------------------------------------------------------


def test_init_is_not_reachable_from_the_envd_port(guest: RunningGuest) -> None:
    assert httpx.post(f"{guest.url}/init", headers={"x-access-token": TOKEN}, json={}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"[]", b"\xff", {"envVars": []}, {"envVars": {"A": 1}}, {"envVars": {"A=B": "x"}}),
        *({"accessToken": 1}, {"defaultUser": {}}, {"envVars": {"": "x"}}, {"envVars": {"A": "\0"}}),
    ],
)
def test_a_malformed_init_is_400_and_changes_nothing(guest: RunningGuest, body: Any) -> None:
    assert control(guest, "POST", "/init", body)[0] == 400
    assert httpx.get(f"{guest.url}/envs", headers={"x-access-token": TOKEN}).json()["A"] == "1"


def test_init_changes_variables_token_user_and_directory(tmp_path: Path) -> None:
    with running_guest(tmp_path, access_token="old", env_vars={"A": "1"}) as guest:
        body = {"envVars": {"B": "2"}, "accessToken": "new", "defaultUser": "root", "defaultWorkdir": "/usr"}
        assert control(guest, "POST", "/init", {**body, "timestamp": "2026-01-01T00:00:00Z"})[0] == 204
        assert httpx.get(f"{guest.url}/envs", headers={"x-access-token": "old"}).status_code == 401
        headers = {"x-access-token": "new"}
        assert httpx.get(f"{guest.url}/envs", headers=headers).json().items() >= {"A": "1", "B": "2"}.items()
        assert control(guest, "POST", "/init", {"accessToken": ""})[0] == 204
        assert guest.sandbox().commands.run("pwd; echo $A$B").stdout == "/usr\n12\n"


def test_the_start_command_runs_and_can_be_heard(tmp_path: Path) -> None:
    with running_guest(tmp_path, start_cmd="echo started $E2B_SANDBOX; sleep 100", env_vars={}) as guest:
        sandbox = guest.sandbox()
        (found,) = sandbox.commands.list()
        assert found.tag == "start_cmd"
        handle = sandbox.commands.connect(found.pid)
        assert next(iter(handle))[0] == "started true\n"
        handle.kill()


# -- users ----------------------------------------------------------------------------------------------------------


def accounts(tmp_path: Path) -> Users:
    passwd, group = tmp_path / "passwd", tmp_path / "group"
    passwd.write_text("root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1001::/home/user:\n# no\nbroken\nbad:x:a:b:::\n")
    group.write_text("root:x:0:\nuser:x:1001:\nsudo:x:27:user,other\ndocker:x:999:user\nbroken\n")
    return Users(str(passwd), str(group))


def test_users_have_all_their_groups(tmp_path: Path) -> None:
    users = accounts(tmp_path)
    assert users.find("user") == User("user", 1000, 1001, (1001, 27, 999), "/home/user", "/bin/sh")
    assert users.find("1000").name == "user"
    assert (users.name_of(0), users.name_of(77), users.group_name_of(27)) == ("root", "77", "sudo")


@pytest.mark.parametrize("name", ["nobody", "", "77", "bad", "broken", "²", "user:x"])
def test_an_unknown_user_is_unauthenticated(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConnectError, match="invalid username"):
        accounts(tmp_path).find(name)


def test_a_user_added_later_is_found(tmp_path: Path) -> None:
    users = accounts(tmp_path)
    users.find("root")
    with (tmp_path / "passwd").open("a") as file:
        file.write("late:x:1005:1005::/home/late:/bin/zsh\n")
    assert users.find("late").uid == 1005


def test_without_account_files_nobody_exists_and_nothing_breaks(tmp_path: Path) -> None:
    users = Users(str(tmp_path / "none"), str(tmp_path / "none"))
    assert users.name_of(1000) == "1000"
    with pytest.raises(ConnectError):
        users.find("root")


@pytest.mark.parametrize(
    ("value", "name"),
    [("Basic dXNlcjo=", "user"), ("basic cm9vdDpwYXNz", "root"), ("Bearer x", None), ("Basic Og==", None)],
)
def test_the_basic_header_names_the_user(value: str, name: str | None) -> None:
    assert user_in_header(Headers([("authorization", value)])) == name


@pytest.mark.parametrize("value", ["Basic ###", "Basic /w==", "Basic dXN"])
def test_a_malformed_basic_header_is_unauthenticated(value: str) -> None:
    with pytest.raises(ConnectError):
        user_in_header(Headers([("authorization", value)]))
