"""The smallest guest that tests of an isolation tier need: it runs commands inside and says what came out.

Port 49983 and 0: `GET` anything → 204; `POST` a JSON object {"argv": [...], "user": uid or null, "stdin": text} → JSON
{"code", "out", "err"}. HTTP/1.0 in spirit: one request per connection. Started by a tier as main(listener, config).
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from typing import Any, NoReturn

from atoll.isolation.base import CONTROL_PORT
from atoll.model.sandbox import ENVD_PORT, INTERPRETER_PORT, GuestConfig

_GUEST_PORTS = {CONTROL_PORT, ENVD_PORT, INTERPRETER_PORT}


def main(listener: socket.socket, config: GuestConfig) -> NoReturn:
    """Serves until it is killed."""
    listener.setblocking(True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, config), daemon=True).start()


def _line(stream: Any) -> str:
    return str(stream.readline(8192).decode("latin-1").strip())


def _serve(connection: socket.socket, config: GuestConfig) -> None:
    with connection, connection.makefile("rwb") as stream:
        port = int(_line(stream).removeprefix("ATOLL/1 "))
        if port not in _GUEST_PORTS:
            stream.write(b"\x01")
            return
        method = _line(stream).split(" ")[0]
        length = 0
        while header := _line(stream):
            name, _, value = header.partition(":")
            length = int(value) if name.lower() == "content-length" else length
        if method != "POST":
            stream.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            return
        body = json.dumps(_run(json.loads(stream.read(length)), config)).encode()
        stream.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def _run(order: dict[str, Any], config: GuestConfig) -> dict[str, Any]:
    user = order.get("user")
    try:
        done = subprocess.run(
            order["argv"],
            input=order.get("stdin", "").encode(),
            capture_output=True,
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
            cwd="/",
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **config.env_vars},
            timeout=order.get("timeout", 30),
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {"code": -1, "out": "", "err": f"{type(error).__name__}: {error}"}
    return {
        "code": done.returncode,
        "out": done.stdout.decode(errors="replace"),
        "err": done.stderr.decode(errors="replace"),
    }


def request(connection: socket.socket, order: dict[str, Any] | None = None) -> dict[str, Any]:
    """The other side, for tests: one blocking request over a dialled connection. {} for a plain GET."""
    with connection:
        connection.settimeout(60)
        if order is None:
            connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        else:
            body = json.dumps(order).encode()
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, content = answer.partition(b"\r\n\r\n")
    if b" 204 " in head.split(b"\r\n")[0]:
        return {}
    found: dict[str, Any] = json.loads(content)
    return found
