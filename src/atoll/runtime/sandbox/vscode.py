"""An editor for people in the browser, where the sandbox's template offers one: openvscode-server or code-server.

Owns starting it with a token of its own, and the URL. A template without either has no editor: None, never an error.
"""

from __future__ import annotations

import logging
import secrets
import shlex
import time
from dataclasses import dataclass

from atoll.runtime.sandbox.box import E2BBox

DEFAULT_PORT = 60001
START_S = 20.0
LOG = "/tmp/.atoll-vscode.log"
FIND = (
    "command -v openvscode-server || command -v code-server || "
    "ls /openhands/.openvscode-server/bin/openvscode-server 2>/dev/null"
)

_log = logging.getLogger("atoll.runtime")


@dataclass(frozen=True)
class VSCode:
    """A running editor. Opening `url` needs `token`."""

    port: int
    token: str
    url: str


def url_of(box: E2BBox, port: int) -> str:
    """How a browser reaches a port of the sandbox."""
    direct = box.sandbox.connection_config.get_sandbox_url(box.sandbox_id, box.sandbox.sandbox_domain)
    return f"{str(direct).partition('://')[0]}://{box.sandbox.get_host(port)}"


def start(box: E2BBox, workspace: str, port: int | None) -> VSCode | None:
    """Starts the editor on `port` and waits until it listens. None where there is none, or it did not start."""
    program = box.execute(FIND, timeout=30).output.strip().splitlines()
    if not program:
        _log.info("the template has no editor for the browser; the plugin `vscode` is without effect")
        return None
    port, token = port or DEFAULT_PORT, secrets.token_urlsafe(24)
    options = ["--host", "0.0.0.0", "--port", str(port), "--connection-token", token, "--disable-workspace-trust"]
    envs = {}
    if program[0].endswith("/code-server"):
        options = ["--bind-addr", f"0.0.0.0:{port}", "--auth", "password", "--disable-workspace-trust"]
        envs = {"PASSWORD": token}
    line = shlex.join([program[0], *options])
    box.execute(f"nohup setsid {line} >{LOG} 2>&1 </dev/null &", cwd=workspace, envs=envs)
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if port in listening(box):
            return VSCode(port, token, f"{url_of(box, port)}/?tkn={token}&folder={workspace}")
        time.sleep(0.2)
    _log.warning("the editor for the browser did not start: %s", box.execute(f"tail -c 500 {LOG}").output.strip())
    return None


def listening(box: E2BBox) -> list[int]:
    """Ports on which the user's programs listen, without the guest's own."""
    return parse_listening(box.execute("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null", timeout=30).output)


GUEST_PORTS = frozenset({49983, 49999, 15001})
"""The protocol's two, and where Atoll collects what a sandbox sends out."""

LISTEN = "0A"


def parse_listening(table: str) -> list[int]:
    """Ports in state LISTEN of /proc/net/tcp's lines, see proc(5)."""
    ports = set()
    for line in table.splitlines():
        words = line.split()
        if len(words) > 3 and words[3] == LISTEN:
            ports.add(int(words[1].rpartition(":")[2], 16))
    return sorted(ports - GUEST_PORTS)
