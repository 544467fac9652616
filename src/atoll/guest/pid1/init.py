"""Pid 1's other duties: a clean process to start from, `/init` from the host, the template's start command."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from atoll.guest.pid1 import trust
from atoll.guest.process.service import ProcessTable
from atoll.guest.state import GuestState
from atoll.http1.server import HttpError, Request, Response, json_object
from atoll.wire.envd.connect import ConnectError
from atoll.wire.envd.process import ProcessConfig, StartRequest

MAX_INIT = 1024 * 1024
START_CMD_TAG = "start_cmd"


def prepare_process() -> None:
    """Nothing of what the guest was forked from shows through in the programs it starts."""
    os.umask(0o022)
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # A server that a script starts in the background ignores INT and QUIT, one under nohup HUP; programs would too.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_DFL)
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        if fd > 2:
            try:
                os.set_inheritable(fd, False)
            except OSError:
                continue  # the descriptor of this very listing


class Init:
    """`POST /init` (control port only): what a host may change in a living guest."""

    def __init__(self, state: GuestState) -> None:
        self._state = state

    async def handle(self, request: Request) -> Response:
        """204. Fields that are absent stay as they are; `envVars` are merged; an empty `accessToken` lifts the rule."""
        given = _parse(await request.body.read(MAX_INIT))
        state = self._state
        if given.get("caCertificate"):
            try:
                trust.install(given["caCertificate"], state.env_vars)
            except OSError as error:
                raise HttpError(500, f"the certificate cannot be installed: {error}") from error
        state.env_vars.update(given.get("envVars") or {})
        if "accessToken" in given:
            state.access_token = given["accessToken"] or None
        if given.get("defaultUser"):
            state.default_user = given["defaultUser"]
        if given.get("defaultWorkdir"):
            state.default_workdir = given["defaultWorkdir"]
        return Response(204)


def _parse(data: bytes) -> dict[str, Any]:
    given = json_object(data)
    for name in ("accessToken", "defaultUser", "defaultWorkdir", "caCertificate"):
        if not isinstance(given.get(name, ""), str | None):
            raise HttpError(400, f"{name} must be a string")
    envs = {} if given.get("envVars") is None else given["envVars"]
    if not isinstance(envs, dict) or not all(isinstance(value, str) for value in envs.values()):
        raise HttpError(400, "envVars must map names to strings")
    if any("=" in name or "\0" in name or not name or "\0" in value for name, value in envs.items()):
        raise HttpError(400, "envVars: a name is empty or holds '=' or NUL, or a value holds NUL")
    return given


def run_start_cmd(state: GuestState, processes: ProcessTable) -> None:
    """Starts the template's start command as the default user; listed like any command, with the tag `start_cmd`."""
    command = state.spec.start_cmd
    if not command:
        return
    config = ProcessConfig(cmd="/bin/bash", args=["-l", "-c", command])
    try:
        processes.start(StartRequest(process=config, tag=START_CMD_TAG, stdin=False), state.user_named(None))
    except ConnectError as error:
        print(f"start command not run: {error.message}", file=sys.stderr)
