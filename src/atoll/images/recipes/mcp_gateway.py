"""`mcp-gateway --config JSON`, in the template of that name: MCP servers of a sandbox behind one URL.

    github/OWNER/REPO  {"runCmd", "installCmd"?, "envs"?}   cloned, installed and run in its directory
    npm/PACKAGE, pip/PACKAGE  {"package"?, "runCmd"?, "envs"?}   installed; run by the program of the package's name

Starts a server in the background that outlives this command, and returns once all of them have answered: exit code 0,
or 1 with the reason on stderr. Each speaks MCP over its standard streams; to the outside it is streamable HTTP on
:50005/mcp, for clients that have GATEWAY_ACCESS_TOKEN. Keys in the SDK's other spelling (`run_cmd`) mean the same.

Runs on the template's own Python; knows nothing of the rest of Atoll. Their tools keep their names; one that another
has already is called SERVER_NAME. Resources and prompts of the servers are not passed on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

PORT = 50005
STATE = Path("/etc/mcp-gateway")
HOME = Path("/opt/mcp-gateway/servers")
LOGS = Path("/var/log/mcp-gateway")
INSTALL_WITHIN_S = 600.0
ANSWER_WITHIN_S = 60.0
_TAIL = 2000
_GITHUB = re.compile(r"github/([A-Za-z0-9][A-Za-z0-9-]*)/([A-Za-z0-9._-]+)")
_PACKAGE = re.compile(r"(npm|pip)/(@?[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)?)")


class Failed(Exception):
    """Why the gateway cannot serve what it was asked for, in words for who asked."""


@dataclass(frozen=True)
class Wanted:
    """One server. `install` is shell, run in `place` before; `run` is the server."""

    key: str
    place: Path
    install: str
    run: str
    envs: Mapping[str, str]

    @property
    def name(self) -> str:
        """Short, for logs and tools."""
        return re.sub(r"[^A-Za-z0-9_-]", "_", self.key.rpartition("/")[2])


def wanted(key: str, given: Any) -> Wanted:
    """What a line of the configuration means. Raises Failed."""
    if not isinstance(given, dict):
        raise Failed(f"MCP server {key!r}: its settings must be an object")
    settings = {re.sub(r"_(.)", lambda found: found[1].upper(), name): value for name, value in given.items()}
    envs = settings.get("envs") or {}
    if not isinstance(envs, dict) or not all(isinstance(value, str) for value in envs.values()):
        raise Failed(f"MCP server {key!r}: envs must map names to strings")
    texts = {name: settings.get(name) or "" for name in ("runCmd", "installCmd", "package")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise Failed(f"MCP server {key!r}: {name} must be a string")
    place = HOME / re.sub(r"[^A-Za-z0-9_.-]", "_", key)
    if found := _GITHUB.fullmatch(key):
        if not texts["runCmd"]:
            raise Failed(f"MCP server {key!r} needs a runCmd")
        clone = f"git clone --quiet --depth 1 https://github.com/{found[1]}/{found[2]} ."
        return Wanted(key, place, " && ".join(filter(None, (clone, texts["installCmd"]))), texts["runCmd"], envs)
    if found := _PACKAGE.fullmatch(key):
        package = shlex.quote(texts["package"] or found[2])
        program = found[2].rpartition("/")[2]
        if found[1] == "npm":
            install, programs = f"npm install --no-fund --no-audit --prefix . {package}", "node_modules/.bin"
        else:
            install, programs = (
                f"python3 -m venv --without-pip . && python3 -m pip --python bin/python install -q {package}",
                "bin",
            )
        if texts["installCmd"]:
            install += f" && {texts['installCmd']}"
        return Wanted(key, place, install, texts["runCmd"] or f"{programs}/{program}", envs)
    raise Failed(
        f"MCP server {key!r} is not known here: there is no Docker catalogue. Name it by where it comes from: "
        "github/OWNER/REPO, npm/PACKAGE or pip/PACKAGE"
    )


def main() -> int:
    """The command. Its exit code."""
    parser = argparse.ArgumentParser(prog="mcp-gateway")
    parser.add_argument("--config", required=True, help="JSON: server → settings")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        config = json.loads(options.config)
        if not isinstance(config, dict):
            raise Failed("the configuration must be an object: server → settings")
        servers = [wanted(key, given) for key, given in config.items()]
        if options.ready_fd is None:
            return _start(options.config)
    except (Failed, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    asyncio.run(_serve(servers, os.environ["GATEWAY_ACCESS_TOKEN"], options.ready_fd))
    return 0


def _start(config: str) -> int:
    """Starts this program anew in the background and waits for its word: nothing, or what went wrong."""
    token = os.environ.get("GATEWAY_ACCESS_TOKEN") or secrets.token_hex(16)
    for place in (STATE, HOME, LOGS):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = STATE / ".token.new"
    draft.touch(mode=0o600)
    draft.write_text(token)
    draft.rename(STATE / ".token")
    reading, writing = os.pipe()
    command = [sys.executable, "-I", __file__, "--config", config, "--ready-fd", str(writing)]
    with (LOGS / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writing,),
            start_new_session=True,
            env={**os.environ, "GATEWAY_ACCESS_TOKEN": token},
            cwd="/",
        )
    os.close(writing)
    with os.fdopen(reading, "rb") as word:
        reported = word.read(1 << 20).decode(errors="replace")
    if reported == "ready":
        return 0
    process.wait()
    print(reported or f"the gateway ended: see {LOGS / 'gateway.log'}", file=sys.stderr)
    return 1


# -- in the background -------------------------------------------------------------------------------------------------


async def _serve(servers: list[Wanted], token: str, ready_fd: int) -> None:
    import uvicorn  # type: ignore[import-not-found, unused-ignore]

    word = os.fdopen(ready_fd, "wb")
    running = [_Running(one) for one in servers]
    try:
        for one in running:
            await one.started
        sock = socket.create_server(("0.0.0.0", PORT), backlog=128)
    except (Failed, OSError) as error:
        word.write(str(error).encode())
    else:
        app = _only_with(token, _gateway(running).streamable_http_app(host="0.0.0.0"))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        word.write(b"ready")
        word.close()  # the socket listens: what comes early waits in its queue
        await server.serve(sockets=[sock])
    finally:
        word.close()
        for one in running:
            one.task.cancel()
        await asyncio.wait([one.task for one in running]) if running else None


class _Running:
    """A server and the client of it, in a task of their own: its end is nobody else's."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.client: Any = None
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """`started` fails with Failed."""
        from mcp.client.client import Client  # type: ignore[import-not-found, unused-ignore]
        from mcp.client.stdio import (  # type: ignore[import-not-found, unused-ignore]
            StdioServerParameters,
            stdio_client,
        )

        one = self.wanted
        with (LOGS / f"{one.name}.log").open("a+") as log:
            try:
                environ = {**os.environ, **one.envs}
                environ.pop("GATEWAY_ACCESS_TOKEN", None)
                await _install(one, environ, log)
                parameters = StdioServerParameters(
                    command="/bin/bash",
                    args=["-c", one.run],
                    cwd=str(one.place),
                    env=environ,
                    encoding_error_handler="replace",
                )
                starting = asyncio.timeout(ANSWER_WITHIN_S)
                async with starting, Client(stdio_client(parameters, errlog=log), mode="legacy") as self.client:
                    await self.client.list_tools()
                    starting.reschedule(None)
                    self.started.set_result(None)
                    await asyncio.get_running_loop().create_future()
            except Failed as error:
                self.started.set_exception(error)
            except Exception as error:  # whatever the client says of a program that is no MCP server, or that has ended
                if not self.started.done():
                    late = f"no answer within {ANSWER_WITHIN_S:.0f} s"
                    reason = late if isinstance(error, TimeoutError) else _words(error)
                    words = f"MCP server {one.key!r} does not start ({one.run}): {reason}{_tail(log)}"
                    self.started.set_exception(Failed(words))


async def _install(one: Wanted, environ: Mapping[str, str], log: TextIO) -> None:
    done = one.place / ".installed"
    if done.exists():
        return
    shutil.rmtree(one.place, ignore_errors=True)
    one.place.mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        *("/bin/bash", "-c", one.install),
        cwd=one.place,
        env={**environ, "GIT_TERMINAL_PROMPT": "0"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        code = await asyncio.wait_for(process.wait(), INSTALL_WITHIN_S)
    except TimeoutError as error:
        process.kill()
        raise Failed(f"MCP server {one.key!r} is not installed after {INSTALL_WITHIN_S:.0f} s{_tail(log)}") from error
    if code != 0:
        raise Failed(f"MCP server {one.key!r} cannot be installed (exit code {code}){_tail(log)}")
    done.touch()


def _gateway(running: list[_Running]) -> Any:
    """An MCP server with the tools of all."""
    import mcp_types as types  # type: ignore[import-not-found, unused-ignore]
    from mcp.server.lowlevel import Server  # type: ignore[import-not-found, unused-ignore]

    routes: dict[str, tuple[_Running, str]] = {}

    async def list_tools(context: Any, params: Any) -> Any:
        tools = []
        routes.clear()
        for one in running:
            for tool in await _all_tools(one):
                name = tool.name if tool.name not in routes else f"{one.wanted.name}_{tool.name}"
                routes[name] = (one, tool.name)
                tools.append(tool.model_copy(update={"name": name}))
        return types.ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: Any) -> Any:
        if params.name not in routes:
            await list_tools(context, None)
        if params.name not in routes:
            return _error(types, f"there is no tool {params.name!r}")
        one, name = routes[params.name]
        try:
            return await one.client.call_tool(name, params.arguments or {})
        except Exception as error:  # its server has ended, or speaks nonsense: the others go on
            return _error(types, f"MCP server {one.wanted.key!r} failed: {_words(error)}")

    return Server("mcp-gateway", version="1", on_list_tools=list_tools, on_call_tool=call_tool)


async def _all_tools(one: _Running) -> list[Any]:
    """None of a server that has ended."""
    tools: list[Any] = []
    cursor = None
    with contextlib.suppress(Exception):
        while True:
            page = await one.client.list_tools(cursor=cursor)
            tools += page.tools
            if (cursor := page.next_cursor) is None:
                break
    return tools


def _error(types: Any, text: str) -> Any:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)


Asgi = Callable[[Any, Any, Any], Awaitable[None]]


def _only_with(token: str, app: Asgi) -> Asgi:
    """Other requests are answered with 401."""
    wanted_header = f"Bearer {token}".encode()

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, wanted_header):
                await send(
                    {"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer")]}
                )
                await send({"type": "http.response.body", "body": b"a bearer token is needed: get_mcp_token()\n"})
                return
        await app(scope, receive, send)

    return checked


def _words(error: BaseException) -> str:
    """The innermost of a group's."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return str(error) or type(error).__name__


def _tail(log: TextIO) -> str:
    log.flush()
    text = Path(log.name).read_bytes()[-_TAIL:].decode(errors="replace").strip()
    return f"; it printed:\n{text}" if text else ""


if __name__ == "__main__":
    sys.exit(main())
