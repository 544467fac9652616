"""The published command line, `@e2b/cli`, unmodified: every command that Atoll offers, typed as a user would.

`connect` and `create` open a terminal in the sandbox: they get a terminal of their own here.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import runpy
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox, SandboxQuery, Template
from sdk_support import eventually

from support.npm import JS, install_node_modules
from support.tiers import one_tier

pytestmark = one_tier("another client with the SDK's own requests, which are tested in each tier")

WAIT_S = 60


class Cli:
    """`e2b …` with an empty home: only the environment tells it where to go."""

    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        self._program = str(JS / "node_modules" / ".bin" / "e2b")
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "xterm", **environ}

    def run(self, *arguments: str, stdin: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        return subprocess.run(
            [self._program, *arguments],
            env={**self._environ, **more},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def ok(self, *arguments: str, stdin: str | None = None) -> str:
        """Its output; fails the test when it failed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def follow(self, *arguments: str, until: str, then: Callable[[], object]) -> tuple[str, int]:
        """Runs what shows things as they come; does `then` when `until` was shown. All it showed, its status."""
        program = subprocess.Popen([self._program, *arguments], env=self._environ, stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        watchdog = threading.Timer(WAIT_S, program.kill)
        watchdog.start()
        try:
            shown = ""
            for line in program.stdout:
                shown += line
                if until in line:
                    break
            then()
            return shown + program.stdout.read(), program.wait()
        finally:
            watchdog.cancel()
            program.kill()
            program.wait()

    def typed(self, *arguments: str, lines: list[tuple[str, str]]) -> tuple[str, int]:
        """Runs it on a terminal: waits for each pattern, then types the line after it. What it showed, its status."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(self._program, [self._program, *arguments], self._environ)
        try:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
            shown = ""
            for pattern, line in lines:
                shown += _read_until(terminal, pattern)
                os.write(terminal, line.encode())
            shown += _read_until(terminal, None)
            return shown, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        finally:
            os.close(terminal)


def _read_until(terminal: int, pattern: str | None) -> str:
    """What the terminal shows up to a match, or to its end."""
    shown, deadline = "", time.monotonic() + WAIT_S
    while pattern is None or not re.search(pattern, shown):
        if time.monotonic() > deadline:
            raise AssertionError(f"{pattern!r} was never shown: {shown!r}")
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: the last process that had it is gone
            data = b""
        if not data:
            if pattern is not None:
                raise AssertionError(f"ended before {pattern!r}: {shown!r}")
            break
        shown += data.decode("utf-8", "replace")
    return shown


@pytest.fixture(scope="session")
def cli_program() -> None:
    install_node_modules()


@pytest.fixture
def cli(cli_program: None, server: Any, tmp_path: Path) -> Cli:
    return Cli(tmp_path, {"E2B_API_KEY": server.api_key, "E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url})


@pytest.fixture
def made(server: Any) -> Iterator[Callable[..., Sandbox]]:
    """`Sandbox.create` with a mark by which a test finds only its own."""
    sandboxes: list[Sandbox] = []

    def make(mark: str) -> Sandbox:
        sandboxes.append(Sandbox.create(timeout=120, metadata={"cli": mark}))
        return sandboxes[-1]

    yield make
    for sandbox in sandboxes:
        sandbox.kill()


def test_cli_refuses_to_work_without_a_key_or_with_a_wrong_one(cli: Cli) -> None:
    wrong = cli.run("sandbox", "list", E2B_API_KEY="e2b_" + "0" * 40)
    assert wrong.returncode != 0
    assert "Unauthorized" in wrong.stderr
    assert cli.run("sandbox", "list", E2B_API_KEY="").returncode != 0


def test_cli_list_shows_what_runs_with_filters_and_as_json(cli: Cli, made: Callable[..., Sandbox]) -> None:
    ids = {made("list").sandbox_id, made("list").sandbox_id}
    listed = json.loads(cli.ok("sandbox", "list", "--metadata", "cli=list", "--format", "json"))
    assert {item["sandboxId"] for item in listed} == ids
    assert len(json.loads(cli.ok("sandbox", "list", "-m", "cli=list", "--limit", "1", "--format", "json"))) == 1
    shown = cli.ok("sandbox", "list", "--metadata", "cli=list")
    assert all(sandbox_id in shown for sandbox_id in ids)


def test_cli_info_shows_a_sandbox(cli: Cli, made: Callable[..., Sandbox]) -> None:
    sandbox = made("info")
    info = json.loads(cli.ok("sandbox", "info", "--format", "json", sandbox.sandbox_id))
    assert (info["sandboxId"], info["state"], info["metadata"]) == (sandbox.sandbox_id, "running", {"cli": "info"})
    assert sandbox.sandbox_id in cli.ok("sandbox", "info", sandbox.sandbox_id)


def test_cli_exec_passes_input_output_environment_and_exit_code(cli: Cli, made: Callable[..., Sandbox]) -> None:
    sandbox = made("exec")
    done = cli.run("sandbox", "exec", sandbox.sandbox_id, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.returncode == 3
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    assert cli.ok("sandbox", "exec", sandbox.sandbox_id, "wc", "-c", stdin="piped").strip() == "5"
    more = ["--user", "root", "--cwd", "/tmp", "--env", "WORD=hello"]
    shown = cli.ok("sandbox", "exec", *more, sandbox.sandbox_id, "sh", "-c", 'echo "$(id -un) $PWD $WORD"')
    assert shown == "root /tmp hello\n"
    cli.ok("sandbox", "exec", "--background", sandbox.sandbox_id, "sleep", "1234")
    assert any("1234" in " ".join(process.args) for process in sandbox.commands.list())


def test_cli_connect_opens_a_terminal(cli: Cli, made: Callable[..., Sandbox]) -> None:
    sandbox = made("connect")
    shown, status = cli.typed(
        "sandbox", "connect", sandbox.sandbox_id, lines=[(r"[$#] ", "echo $((6 * 7)); stty size; exit\r")]
    )
    assert "42" in shown
    assert "33 101" in shown
    assert status == 0
    assert sandbox.is_running()


def test_cli_create_opens_a_terminal_and_its_sandbox_ends_with_it(cli: Cli) -> None:
    shown, status = cli.typed("sandbox", "create", "base", lines=[(r"[$#] ", "echo made-by-$((40 + 2)); exit\r")])
    assert "made-by-42" in shown
    assert status == 0
    found = re.search(r"sandbox ID (?:\x1b\[[0-9;]*m)?([a-z0-9]{8,})", shown)
    assert found, shown
    eventually(lambda: found[1] not in _ids(), what="the CLI's sandbox ended with its terminal")


def test_cli_create_detached_leaves_the_sandbox_running(cli: Cli) -> None:
    sandbox_id = cli.ok("sandbox", "create", "--detach", "base").split()[-1]
    assert sandbox_id in _ids()
    cli.ok("sandbox", "kill", sandbox_id)


def test_cli_kill_ends_what_it_names_and_says_when_there_is_nothing(cli: Cli, made: Callable[..., Sandbox]) -> None:
    first, second, third = made("kill"), made("kill"), made("other")
    assert "has been killed" in cli.ok("sandbox", "kill", first.sandbox_id)
    assert "found" in "".join((again := cli.run("sandbox", "kill", first.sandbox_id)).stdout + again.stderr)
    cli.ok("sandbox", "kill", "--all", "--metadata", "cli=kill")
    assert not second.is_running()
    assert third.is_running()


def test_cli_logs_shows_what_commands_printed(cli: Cli, made: Callable[..., Sandbox]) -> None:
    sandbox = made("logs")
    sandbox.commands.run("echo to-be-logged; echo trouble >&2")

    def logged() -> str:
        told = cli.ok("sandbox", "logs", "--format", "json", sandbox.sandbox_id)
        return told if "to-be-logged" in told and "trouble" in told else ""

    lines = [json.loads(line) for line in eventually(logged, what="the log holds it").splitlines() if line[:1] == "{"]
    assert {"to-be-logged", "trouble"} <= {line["message"] for line in lines}
    warnings = cli.ok("sandbox", "logs", "--format", "json", "--level", "WARN", sandbox.sandbox_id)
    assert "trouble" in warnings
    assert "to-be-logged" not in [json.loads(line)["message"] for line in warnings.splitlines() if line[:1] == "{"]


# Following metrics asks once, at its beginning, whether the sandbox runs: only "not found" ends it, as an error.
@pytest.mark.parametrize(("what", "until", "status"), [("logs", "tick-3", 0), ("metrics", "cpuUsedPct", 1)])
def test_cli_follows_a_sandbox_until_it_is_closed(
    cli: Cli, made: Callable[..., Sandbox], what: str, until: str, status: int
) -> None:
    sandbox = made("follow")
    sandbox.commands.run("for i in 1 2 3; do echo tick-$i; sleep 1; done; sleep 600", background=True, timeout=0)
    shown, ended = cli.follow(
        "sandbox", what, "--follow", "--format", "json", sandbox.sandbox_id, until=until, then=sandbox.kill
    )
    assert until in shown
    assert ended == status


def test_cli_metrics_shows_samples(cli: Cli, made: Callable[..., Sandbox]) -> None:
    sandbox = made("metrics")
    told = eventually(
        lambda: [
            json.loads(line)
            for line in cli.ok("sandbox", "metrics", "--format", "json", sandbox.sandbox_id).splitlines()
            if line.startswith("{")
        ],
        what="a sample is there",
    )
    assert told[0]["cpuCount"] > 0
    assert 0 < told[0]["memUsed"] < told[0]["memTotal"]


def test_cli_template_list_shows_the_built_ins(cli: Cli) -> None:
    shown = cli.ok("template", "list", "--format", "json")
    assert "base" in {template["templateID"] for template in json.loads(shown)}


def test_cli_sandbox_snapshot_creates_lists_and_deletes(cli: Cli, sandbox: Sandbox) -> None:
    sandbox.files.write("word", "kept")
    made = cli.ok("sandbox", "snapshot", "create", sandbox.sandbox_id)
    (shown,) = [one.snapshot_id for one in sandbox.list_snapshots().next_items()]
    assert shown in made
    assert shown in cli.ok("sandbox", "snapshot", "list", sandbox.sandbox_id)
    with Sandbox.create(shown) as child:
        assert child.files.read("word") == "kept"
    cli.ok("sandbox", "snapshot", "delete", shown)
    assert not sandbox.list_snapshots().next_items()


def test_cli_builds_publishes_and_deletes_a_template(cli: Cli, tmp_path: Path) -> None:
    name = f"cli{tmp_path.name[-12:].replace('_', '-')}{os.getpid()}".lower()
    (tmp_path / "Dockerfile").write_text("FROM debian:12\nCOPY word /srv/\nRUN cat /srv/word > /home/user/copied\n")
    (tmp_path / "word").write_text("from the Dockerfile")
    cli.ok("template", "create", name, "--path", str(tmp_path), "--cpu-count", "1", "--memory-mb", "512")
    with Sandbox.create(name) as sandbox:
        assert sandbox.files.read("/home/user/copied") == "from the Dockerfile"

    def shown() -> Any:
        listed = json.loads(cli.ok("template", "list", "--format", "json"))
        return next((one for one in listed if name in one["aliases"]), None)

    assert shown()["public"] is False
    cli.ok("template", "publish", name, "--yes")
    assert shown()["public"] is True
    cli.ok("template", "unpublish", name, "--yes")
    cli.ok("template", "delete", name, "--yes")
    assert shown() is None


def test_cli_template_init_writes_a_definition_that_is_built_as_it_is(cli: Cli, tmp_path: Path) -> None:
    cli.ok("template", "init", "--name", "mine", "--language", "python-sync", "--path", str(tmp_path))
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"template.py", "build_dev.py", "Makefile"}
    assert "from_image" in _definition(tmp_path / "mine" / "template.py")["read"]
    build = [sys.executable, "build_dev.py"]
    built = subprocess.run(build, cwd=tmp_path / "mine", capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert built.returncode == 0, built.stderr
    assert "Hello World E2B!" in built.stdout
    Sandbox.create("mine-dev").kill()
    cli.ok("template", "delete", "mine-dev", "--yes")


def test_cli_template_migrate_makes_a_definition_of_a_dockerfile(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "e2b.Dockerfile").write_text("FROM debian:12\nRUN apt-get update\n")
    (tmp_path / "e2b.toml").write_text(
        'template_id = "x"\ntemplate_name = "mine"\ndockerfile = "e2b.Dockerfile"\nstart_cmd = "serve"\n'
    )
    cli.ok("template", "migrate", "--language", "python-sync", "--path", str(tmp_path))
    definition = _definition(tmp_path / "template.py")
    assert definition["fromImage"] == "debian:12"
    assert definition["startCmd"].endswith("serve")
    assert ["RUN", "apt-get update"] in [[step["type"], step["args"][0]] for step in definition["steps"]]


def test_cli_auth_knows_that_nobody_signed_in_at_e2b(cli: Cli) -> None:
    """A key in the environment is no account of E2B's: these look at the user's own files only."""
    assert "Not logged in" in cli.ok("auth", "info")
    assert "Not logged in" in cli.ok("auth", "logout")


def _definition(path: Path) -> dict[str, Any]:
    """What a generated program defines, as the SDK would send it."""
    space: dict[str, Any] = runpy.run_path(str(path))
    definition: dict[str, Any] = json.loads(Template.to_json(space["template"]))
    return definition | {"read": path.read_text()}


def _ids() -> set[str]:
    found: set[str] = set()
    pages = Sandbox.list(SandboxQuery())
    while pages.has_next:
        found |= {item.sandbox_id for item in pages.next_items()}
    return found


def test_a_sandbox_is_paused_and_resumed(cli: Cli, sandbox: Sandbox) -> None:
    done = cli.run("sandbox", "pause", sandbox.sandbox_id)
    if done.returncode != 0:
        assert "cannot pause a sandbox" in done.stdout + done.stderr, "the tier says so"
        return
    assert not sandbox.is_running()
    cli.ok("sandbox", "resume", sandbox.sandbox_id)
    assert sandbox.commands.run("echo resumed").stdout == "resumed\n"
