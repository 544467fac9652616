"""A server in the networks of `atoll_attacks.outside`: behind it a small internet that says what reached it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from atoll_attacks.outside.network import Canary, Forward, Networks, fault, networks
from support.host import TOOLS
from support.server import ServerProcess

no_world = fault
"""Why the world cannot be made here; None if it can."""


@dataclass
class World:
    """`internet` and `host` are canaries; `run` runs a script in the server's namespace, without any wall."""

    networks: Networks
    directory: Path
    templates_dir: Path
    settings: dict[str, str]
    tier: str = "namespaces"
    api_url: str = ""
    forward: Forward | None = None
    server: ServerProcess = field(init=False)

    @property
    def internet(self) -> Canary:
        return self.networks.internet

    @property
    def host(self) -> Canary:
        return self.networks.host

    def run(self, script: str, seconds: float = 30) -> str:
        command = [*self.networks.enter, sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        return done.stdout + done.stderr

    def restart_server(self, how: signal.Signals) -> None:
        """Ends the server and starts another on the same data directory."""
        self.server.stop(how)
        self.start_server()

    def start_server(self) -> None:
        """In the namespace, reached by a port of this machine's loopback."""
        self.server = ServerProcess.start(
            self.directory / "data",
            templates_dir=self.templates_dir,
            options=["--isolation", self.tier],
            environ=self.settings,
            wrap=self.networks.enter,
        )
        if self.forward is not None:
            self.forward.close()
        self.forward = Forward(self.networks.holder.pid, int(self.server.url.rsplit(":", 1)[1]))
        self.api_url = f"http://127.0.0.1:{self.forward.port}"

    def close(self) -> None:
        """Ends the server and every sandbox."""
        self.server.stop()
        ServerProcess.start(
            self.directory / "data",
            templates_dir=self.templates_dir,
            options=["--isolation", self.tier, "--end-sandboxes"],
            environ=self.settings,
            wrap=self.networks.enter,
        ).stop()
        if self.forward is not None:
            self.forward.close()

    @property
    def environ(self) -> dict[str, str]:
        return {"E2B_API_KEY": self.server.api_key, "E2B_API_URL": self.api_url, "E2B_SANDBOX_URL": self.api_url}


@contextlib.contextmanager
def world(
    directory: Path,
    templates_dir: Path,
    environ: dict[str, str] | None = None,
    source: str | None = None,
    tier: str = "namespaces",
) -> Iterator[World]:
    """All of it, running. `source`: a Python program that serves in the internet too, and says when it is ready."""
    with networks(directory, source) as around:
        settings = {**around.settings, **(environ or {})}
        if tier == "gvisor":
            settings["ATOLL_TOOLS_DIR"] = str(TOOLS)
        made = World(around, directory, templates_dir, settings, tier)
        made.start_server()
        try:
            yield made
        finally:
            made.close()


Make = Callable[..., Sandbox]


@contextlib.contextmanager
def making(outside: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`Sandbox.create` on that world's server; what it made is killed when the block ends."""
    for name, value in outside.environ.items():
        monkeypatch.setenv(name, value)
    made: list[Sandbox] = []

    def create(**more: Any) -> Sandbox:
        made.append(Sandbox.create(timeout=300, **more))
        return made[-1]

    yield create
    for sandbox in made:
        Sandbox.kill(sandbox.sandbox_id)
