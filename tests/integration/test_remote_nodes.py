"""Nodes on other machines, by setting: two agents on loopback with mutual TLS, driven by the real SDK."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from e2b.exceptions import NotFoundException
from sdk_support import eventually

from support.server import ServerProcess
from support.tiers import SERVER_ENVIRON


def _atoll(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "atoll.cli.main", *words], check=True, capture_output=True, timeout=60)


def test_sandboxes_of_three_nodes_are_used_alike_and_a_silent_node_holds_up_nobody(
    tier: str, make_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None is started ahead of need: three servers on one machine would do nothing else.
    control_dir, environ = tmp_path / "control", {**SERVER_ENVIRON[tier], "ATOLL_GVISOR_READY": "0"}

    def start_node(name: str, port: int = 0) -> ServerProcess:
        words = ["node", "serve", "--id", name, "--listen", f"127.0.0.1:{port}", "--isolation", tier]
        words += ["--certificate", str(tmp_path / f"{name}.pem"), "--end-sandboxes"]
        return make_server(tmp_path / name, words=words, environ=environ)

    for name in ("a", "b"):
        certificate = str(tmp_path / f"{name}.pem")
        _atoll("node", "certificate", "localhost", "--to", certificate, "--data-dir", str(control_dir))
    nodes = {name: start_node(name) for name in ("a", "b")}
    options = ["--isolation", tier, "--keep-sandboxes"]
    options += [part for name, node in nodes.items() for part in ("--node", f"{name}=localhost:{node.port}")]

    def start_control(port: int = 0) -> ServerProcess:
        server = make_server(control_dir, options=options, environ=environ, port=port)
        for variable, value in server.environ.items():
            monkeypatch.setenv(variable, value)
        return server

    server = start_control()
    eventually(lambda: server.log.read_text().count("node.registered") >= 3, what="all nodes have registered")
    sandboxes = {}
    for _ in range(3):  # each goes to the node that has fewest
        sandbox = Sandbox.create(timeout=600)
        (where,) = [name for name, place in _places(tmp_path).items() if (place / sandbox.sandbox_id).exists()]
        sandboxes[where] = sandbox
    assert sandboxes.keys() == {"control", "a", "b"}

    data = bytes(range(256)) * (1 << 13)
    for sandbox in sandboxes.values():
        assert sandbox.commands.run("echo hello").stdout == "hello\n"
        sandbox.files.write("/tmp/data", data)
        assert sandbox.files.read("/tmp/data", format="bytes") == data

    # b is gone, as when its machine has lost its power; control starts again meanwhile, and waits for nobody.
    nodes["b"].stop(signal.SIGKILL)
    server.stop()
    began = time.monotonic()
    server = start_control(int(server.url.rpartition(":")[2]))
    assert time.monotonic() - began < 30, "a start waits for no node that does not answer"
    eventually(lambda: "node.registered" in _lines_of(server, "node=a"), what="a has registered again")
    for name in ("control", "a"):
        assert sandboxes[name].commands.run("echo still here").stdout == "still here\n"
    more = Sandbox.create(timeout=600)
    more.kill()

    # b is back at its place, and what ran there goes on.
    nodes["b"] = start_node("b", nodes["b"].port)
    eventually(lambda: "node.registered" in _lines_of(server, "node=b"), what="b has registered again", within_s=30)
    eventually(lambda: _answers(sandboxes["b"]), what="b's sandbox answers", within_s=30)
    for name, sandbox in sandboxes.items():
        assert sandbox.kill()
        with pytest.raises(NotFoundException):
            Sandbox.connect(sandbox.sandbox_id)
        assert not (_places(tmp_path)[name] / sandbox.sandbox_id).exists()


def _places(root: Path) -> dict[str, Path]:
    return {name: root / name / "sandboxes" for name in ("control", "a", "b")}


def _lines_of(server: ServerProcess, what: str) -> str:
    lines = server.log.read_text().rpartition("starting")[2].splitlines()
    return "\n".join(line for line in lines if what in line.replace("'", ""))


def _answers(sandbox: Any) -> bool:
    try:
        return bool(sandbox.commands.run("echo back").stdout == "back\n")
    except Exception:
        return False
