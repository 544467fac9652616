"""Connections between a runtime and its sandbox that break in the middle of a command, on a real server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from e2b import Sandbox

from atoll.runtime import AgentRuntimeDisconnectedError, CmdOutputObservation, CmdRunAction, E2BRuntime
from atoll.runtime.shell import terminal_link
from support.tiers import one_tier

pytestmark = one_tier("the connection is broken outside of the sandbox")


class Relay:
    """Passes connections on to `port` of this machine until it is told to cut or refuse them."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.refuses = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            if self.refuses:
                near.close()
                far.close()
                continue
            with self._lock:
                self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> int:
        """Ends all connections; how many there were."""
        with self._lock:
            ended, self._open = self._open, []
        for end in ended:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        return len(ended) // 2

    def close(self) -> None:
        self._listening.close()
        self.cut()


@pytest.fixture
def relay(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    made = Relay(urlsplit(server.url).port or 0)
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{made.port}")
    yield made
    made.close()


def run(runtime: E2BRuntime, command: str) -> CmdOutputObservation:
    found = runtime.run_action(CmdRunAction(command, blocking=True, timeout=120))
    assert isinstance(found, CmdOutputObservation), found
    return found


@pytest.fixture
def runtime(relay: Relay) -> Iterator[E2BRuntime]:
    with E2BRuntime(soft_timeout_s=60) as made:
        yield made


def test_what_a_command_prints_while_the_connection_is_broken_is_told_after_it(
    server: Any, relay: Relay, runtime: E2BRuntime
) -> None:
    """The command itself says when to break the connection and when to mend it, by files asked for elsewhere."""
    direct = Sandbox.connect(runtime.sandbox_id, api_url=server.url, sandbox_url=server.url)
    run(runtime, "cd /tmp && x=kept")
    cuts: list[int] = []

    def disturb() -> None:
        direct.commands.run("until [ -e /tmp/begun ]; do sleep 0.1; done", timeout=100)
        relay.refuses = True
        cuts.append(relay.cut())
        direct.commands.run("touch /tmp/cut; until [ -e /tmp/printed ]; do sleep 0.1; done", timeout=100)
        relay.refuses = False

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    found = run(
        runtime,
        "echo before; touch begun; until [ -e cut ]; do sleep 0.1; done; seq 300; touch printed; sleep 1; (exit 3)",
    )
    disturbing.join()
    assert cuts[0] >= 1
    assert found.exit_code == 3
    assert found.content.splitlines() == ["before", *(str(number) for number in range(1, 301))]
    assert "some of its output may be missing" in found.metadata.suffix
    assert run(runtime, "echo $x $PWD").content == "kept /tmp"
    assert "missing" not in run(runtime, "true").metadata.suffix


def test_the_note_of_a_commands_end_can_be_read_in_a_sandbox(runtime: E2BRuntime) -> None:
    run(runtime, "cd /usr; (exit 9)")
    noted = runtime._live.shell._session._noted_end()
    assert noted is not None
    assert (noted.state.exit_code, noted.state.cwd) == (9, "/usr")


def test_a_connection_that_stays_broken_is_a_lost_sandbox(
    relay: Relay, runtime: E2BRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_link, "RECONNECT_S", 1.0)
    relay.refuses = True
    threading.Timer(1.0, relay.cut).start()
    with pytest.raises(AgentRuntimeDisconnectedError, match="the sandbox is lost"):
        runtime.run_action(CmdRunAction("sleep 100", blocking=True, timeout=120))
    relay.refuses = False
