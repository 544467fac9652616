"""The server as a process: readiness, one per data directory, stopping, restarting, what it tells and what it hides."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from sdk_support import eventually

from support import fake_server
from support.server import ServerDied, ServerProcess

START = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[START]:
    """Starts servers on this test's data directory; they end with it."""
    with ExitStack() as stack:

        def _start(*options: str, **more: Any) -> ServerProcess:
            server = fake_server.start(tmp_path / "data", options=options, **more)
            stack.callback(server.stop)
            return server

        yield _start


def atoll(*words: str, data_dir: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "E2B_"))}
    return subprocess.run(
        [sys.executable, "-m", "atoll.cli.main", *words, "--data-dir", str(data_dir)],
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def is_running(pid: int) -> bool:
    """A zombie that nobody has buried yet has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def create(server: ServerProcess) -> Sandbox:
    return Sandbox.create(timeout=120, api_key=server.api_key, api_url=server.url, sandbox_url=server.url, secure=True)


def test_a_ready_server_answers_and_tells_where_it_is(start: START) -> None:
    server = start()
    assert httpx.get(f"{server.url}/health").status_code in (200, 204)
    record = json.loads((server.data_dir / "server.json").read_text())
    assert (record["pid"], record["url"]) == (server.pid, server.url)
    assert "started_at" in record
    key = server.data_dir / "api-key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_dir.stat().st_mode) & 0o077 == 0
    assert key.read_text().strip() == server.api_key


def test_env_prints_what_points_the_sdks_at_the_server(start: START) -> None:
    server = start()
    told = atoll("env", data_dir=server.data_dir)
    assert told.returncode == 0, told.stderr
    shell = subprocess.run(
        ["bash", "-c", 'eval "$1"; env', "-", told.stdout], capture_output=True, text=True, check=True, env={}
    )
    for name, value in server.environ.items():
        assert f"{name}={value}" in shell.stdout.splitlines()
    assert json.loads(atoll("env", "--json", data_dir=server.data_dir).stdout) == server.environ


def test_env_says_so_when_no_server_runs(tmp_path: Path, start: START) -> None:
    missing = atoll("env", data_dir=tmp_path / "nowhere")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no server runs on" in missing.stderr
    server = start()
    server.stop(signal.SIGKILL)
    assert (server.data_dir / "server.json").exists()
    stale = atoll("env", data_dir=server.data_dir)
    assert stale.returncode == 1
    assert "no server runs on" in stale.stderr


def test_configured_keys_are_the_only_ones_and_env_wants_to_know_them(start: START) -> None:
    server = start(environ={"ATOLL_API_KEYS": "first-key,second-key"})
    assert server.api_key == "first-key"
    for key, status in (("first-key", 200), ("second-key", 200), ("third-key", 401)):
        assert httpx.get(f"{server.url}/v2/sandboxes", headers={"X-API-Key": key}).status_code == status
    assert not (server.data_dir / "api-key").exists()
    assert "ATOLL_API_KEYS" in atoll("env", data_dir=server.data_dir).stderr
    assert "first-key" in atoll("env", data_dir=server.data_dir, ATOLL_API_KEYS="first-key,second-key").stdout


def test_a_data_directory_has_one_server(start: START) -> None:
    first = start()
    with pytest.raises(ServerDied, match=r"runs on .* already"):
        start()
    assert httpx.get(f"{first.url}/health").status_code in (200, 204)
    assert json.loads((first.data_dir / "server.json").read_text())["pid"] == first.pid


def test_a_port_in_use_is_named(start: START) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerDied, match=f"cannot listen on 127.0.0.1:{port}"):
            start(port=port)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(start: START, how: signal.Signals) -> None:
    server = start()
    assert server.stop(how) == 0, server.log_tail()
    assert not (server.data_dir / "server.json").exists()
    assert "stopped" in server.log_tail(3)


def test_a_stop_cuts_a_stream_that_would_go_on_for_ever(start: START) -> None:
    server = start("--end-sandboxes")
    sandbox = create(server)
    handle = sandbox.commands.run("echo on; sleep 1000", background=True)
    assert server.stop() == 0, server.log_tail()
    del handle


def test_state_is_found_again_by_the_next_server(start: START) -> None:
    server = start()
    sandbox = create(server)
    sandbox.commands.run("echo kept > note")
    assert server.stop() == 0, server.log_tail()
    again = start()
    assert again.api_key == server.api_key
    back = Sandbox.connect(sandbox.sandbox_id, api_key=again.api_key, api_url=again.url, sandbox_url=again.url)
    assert back.commands.run("cat note").stdout == "kept\n"
    assert back.kill()


def test_sandboxes_end_with_the_server_where_that_was_asked(start: START) -> None:
    server = start("--end-sandboxes")
    sandbox = create(server)
    pid = int(sandbox.commands.run("sleep 1000 & echo $!").stdout)
    assert server.stop() == 0
    eventually(lambda: not is_running(pid), what="the program in the sandbox has ended")


def test_the_end_of_the_lifeline_ends_server_and_sandboxes(start: START, tmp_path: Path) -> None:
    """The embedded platform's promise: nothing outlives its owner, however that one ended."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    ready, tell = os.pipe()
    command = [sys.executable, "-m", "atoll.cli.main", "serve", "--port", "0", "--isolation", "fake"]
    command += ["--data-dir", str(tmp_path / "data"), "--lifeline-fd", str(reading), "--ready-fd", str(tell)]
    templates = fake_server.empty_template(tmp_path / "templates")
    process = subprocess.Popen(
        command,
        env={**os.environ, **fake_server.environ(), "ATOLL_TEMPLATES_DIR": str(templates)},
        pass_fds=(reading, tell),
        stderr=subprocess.DEVNULL,
    )
    os.close(reading)
    os.close(tell)
    with os.fdopen(ready) as lines:
        told = json.loads(lines.readline())
    sandbox = Sandbox.create(timeout=120, api_key=told["api_key"], api_url=told["url"], sandbox_url=told["url"])
    pid = int(sandbox.commands.run("sleep 1000 & echo $!").stdout)
    os.close(writing)
    assert process.wait(40) == 0
    eventually(lambda: not is_running(pid), what="the program in the sandbox has ended")


def test_an_unknown_tier_is_named_with_those_that_exist(tmp_path: Path) -> None:
    told = atoll("serve", "--port", "0", "--isolation", "moat", data_dir=tmp_path / "data")
    assert told.returncode == 1
    assert "'moat' is not installed" in told.stderr
    assert "namespaces" in told.stderr
    assert "Traceback" not in told.stderr


def test_no_secret_is_logged(start: START) -> None:
    server = start(environ={"ATOLL_LOG_FORMAT": "json"})
    sandbox = create(server)
    sandbox.files.write("x", "y")
    httpx.get(sandbox.download_url("x"))
    token = sandbox._envd_access_token
    sandbox.kill()
    server.stop()
    log = server.log.read_text()
    assert "sandbox.created" in log
    for secret in (server.api_key, token, "signature="):
        assert secret not in log
    for line in log.splitlines():
        if line.startswith("{"):
            json.loads(line)


@pytest.mark.parametrize("variable", [{"ATOLL_PORT": "x"}, {"ATOLL_LOG_LEVEL": "loud"}, {"ATOLL_LOG_FORMAT": "xml"}])
def test_a_wrong_setting_is_named(tmp_path: Path, variable: dict[str, str]) -> None:
    told = atoll("serve", data_dir=tmp_path / "data", **variable)
    assert told.returncode == 1
    assert next(iter(variable)) in told.stderr
    assert "Traceback" not in told.stderr
