"""Attempts of somebody who holds a key: to take the machine, to reach what only the server reaches, to make it grow."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll_attacks.attempt import Attempt, Control, Deed, Family, Impossible, Judge
from atoll_attacks.calls import request
from atoll_attacks.load import costs
from atoll_attacks.scene import Scene

_HEARD_WITHIN_S = 1.5
_OURS = Impossible("it is our own server's limits that are tried: without it there are none")


def _api(method: str, path: str, body: object = None) -> tuple[int, bytes]:
    raw = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return request(method, path, raw, {"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}, 60)


# -- sizes -------------------------------------------------------------------------------------------------------------


def _of_size(**metadata: str) -> Callable[[Scene], str]:
    def act(scene: Scene) -> str:
        costs()(scene)
        asked = {f"atoll.{name}": value for name, value in metadata.items()}
        status, body = _api("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 60, "metadata": asked})
        scene.facts["status"] = status
        if status == 201:
            _api("DELETE", f"/sandboxes/{json.loads(body)['sandboxID']}")
        return f"{status} {body[:300].decode('latin-1')}"

    return act


def _given(scene: Scene) -> str | None:
    """What the machine cannot give was promised, or the server broke on it."""
    status = scene.facts["status"]
    return f"it was answered {status}" if status not in (400, 429) else costs()(scene)


# -- what the server dials for somebody --------------------------------------------------------------------------------


@contextlib.contextmanager
def _service(scene: Scene) -> Iterator[int]:
    """A service of the host on all its addresses; what it hears is kept."""
    heard: list[bytes] = scene.facts.setdefault("heard", [])
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        listener.settimeout(0.1)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        heard.append(b"connected")

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def _own_addresses() -> list[str]:
    """Of this machine, as a stranger would write them."""
    found = ["127.0.0.1", "127.1", "2130706433", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "localhost"]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return found


def _webhooks(scene: Scene) -> str:
    assert scene.sandbox is not None
    made, said = [], []
    with _service(scene) as port:
        try:
            for address in _own_addresses():
                hook = {
                    "name": "w",
                    "url": f"http://{address}:{port}/",
                    "events": ["sandbox.lifecycle.updated"],
                    "signatureSecret": secrets.token_hex(16),
                }
                status, body = _api("POST", "/events/webhooks", hook)
                said.append(f"{address} {status}")
                if status in (200, 201):
                    made.append(json.loads(body)["id"])
            scene.sandbox.set_timeout(900)
            until = time.monotonic() + _HEARD_WITHIN_S
            while made and time.monotonic() < until and not scene.facts["heard"]:
                time.sleep(0.05)
        finally:
            for one in made:
                _api("DELETE", f"/events/webhooks/{one}")
    return ", ".join(said)


def _naive_webhooks(scene: Scene) -> str:
    """What dials whatever it is told."""
    with _service(scene) as port:
        for address in _own_addresses():
            with contextlib.suppress(OSError, ValueError):
                urllib.request.urlopen(f"http://{address}:{port}/", data=b"{}", timeout=0.3)
    return f"{len(scene.facts['heard'])} heard"


def _heard(scene: Scene) -> str | None:
    return "a service of the host was reached" if scene.facts.get("heard") else None


# -- what is kept for somebody -----------------------------------------------------------------------------------------

_MOST_KEPT = 48 << 20


def _kept(scene: Scene) -> int:
    """Bytes that the control plane has on disk."""
    directory = scene.world.data_dir
    if directory is None:
        return 0
    files = [path for path in (directory / "control").rglob("*") if path.is_file()]
    return sum(_size(path) for path in files)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _repeated(ask: Callable[[Scene, int], tuple[int, bytes]], count: int) -> Callable[[Scene], str]:
    def act(scene: Scene) -> str:
        costs()(scene)
        scene.facts["kept"] = _kept(scene)
        statuses = [ask(scene, number)[0] for number in range(count)]
        return f"{count} requests, statuses {sorted(set(statuses))}"

    return act


def _grown(scene: Scene) -> str | None:
    grown = _kept(scene) - scene.facts["kept"]
    return f"{grown >> 20} MiB are kept for it" if grown > _MOST_KEPT else costs(most_s=20)(scene)


def _event(scene: Scene, number: int) -> tuple[int, bytes]:
    assert scene.sandbox is not None
    return _api("POST", f"/sandboxes/{scene.sandbox.sandbox_id}/timeout", {"timeout": 900 + number % 2})


def _secret(scene: Scene, number: int) -> tuple[int, bytes]:
    return _api("POST", "/secrets", {"name": f"flood-{number % 4}", "value": "x" * 16000})


def _without_secrets(act: Callable[[Scene], str]) -> Callable[[Scene], str]:
    def deed(scene: Scene) -> str:
        try:
            return act(scene)
        finally:
            for number in range(4):
                _api("DELETE", f"/secrets/flood-{number}")

    return deed


def _body(raw: bytes) -> Callable[[Scene], str]:
    return _repeated(lambda scene, number: _api("POST", "/v2/sandboxes", raw), 8)


def _attempt(
    name: str, goal: str, act: Callable[[Scene], str], judge: Judge, control: Control | Impossible = _OURS
) -> Attempt:
    return Attempt(name, Family.KEYS, goal, Deed(act), judge, control)


ATTEMPTS: tuple[Attempt, ...] = (
    _attempt("sandbox-of-all-processes", "be given every process of the machine", _of_size(pids="999999999"), _given),
    _attempt("sandbox-of-all-memory", "be given more memory than there is", _of_size(memory="999999999"), _given),
    _attempt("sandbox-of-all-disk", "have an endless disk made", _of_size(disk="16000000"), _given),
    _attempt("sandbox-of-no-size", "have a number read for ever", _of_size(memory="9" * 5000), _given),
    _attempt(
        "webhook-to-the-host",
        "have the server speak to services of the host",
        _webhooks,
        _heard,
        Control(Deed(_naive_webhooks)),
    ),
    _attempt("events-without-end", "have events kept without end", _repeated(_event, 150), _grown),
    _attempt("secrets-without-end", "have secrets kept without end", _without_secrets(_repeated(_secret, 60)), _grown),
    _attempt("deep-body", "have the server recurse until it dies", _body(b"[" * 500_000), _grown),
    _attempt(
        "large-body",
        "fill the server's memory with a body",
        _body(b'{"templateID": "' + b"x" * (8 << 20) + b'"}'),
        _grown,
    ),
    _attempt(
        "large-number", "have the server read a number for ever", _body(b'{"timeout": ' + b"9" * 900_000 + b"}"), _grown
    ),
)
