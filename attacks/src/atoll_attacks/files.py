"""Attempts by the file API and by forged credentials: what a client may ask of a sandbox must never reach past it."""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.parse
from collections.abc import Callable

from atoll_attacks import judges
from atoll_attacks.attempt import Attempt, Control, Deed, Family, Impossible, Judge, Program
from atoll_attacks.calls import ENVD_PORT, guest_request, request, token_of
from atoll_attacks.scene import Scene

_NAIVE = Control(Program("escape/plain_path"))
"""What a server without a wall does with the path in the end: open it on the host."""

_WRITE_ON_HOST = Control(Program("files/write_on_host"))


def _deed(
    name: str, goal: str, act: Callable[[Scene], str], judge: Judge, control: Control | Impossible = _NAIVE
) -> Attempt:
    return Attempt(name, Family.FILES, goal, Deed(act), judge, control)


def _read(path: str) -> Callable[[Scene], str]:
    """Asks for a path in which {secret} stands for the host's; as root and as user, escaped and not."""

    def act(scene: Scene) -> str:
        said = []
        wanted = path.format(secret=scene.world.places["secret"], bare=scene.world.places["secret"].lstrip("/"))
        for escaped in (urllib.parse.quote(wanted), urllib.parse.quote(wanted, safe="")):
            for user in ("root", "user"):
                status, body = guest_request(scene, "GET", f"/files?path={escaped}&username={user}", timeout_s=5)
                said.append(f"{status} {body[:4096].decode('latin-1')}")
        return "\n".join(said)

    return act


_MEMORY_MAP = re.compile(r"^(?:200 )?[0-9a-f]{6,16}-[0-9a-f]{6,16} [r-][w-][x-][ps] ", re.M)


def _map_seen(scene: Scene) -> str | None:
    """A table of some process's memory came out: where the guest's programs and data lie."""
    found = _MEMORY_MAP.search(scene.output)
    return f"the guest's memory map was read: {found.group()}" if found else None


def _by_thread(scene: Scene) -> str:
    """The guest's own /proc under the number of each of its threads, and as a tree that is moved elsewhere."""
    said = [_read(f"/proc/{number}/{name}")(scene) for number in range(1, 7) for name in ("maps", "task/2/maps")]
    said += [_read(f"/proc/{name}/maps")(scene) for name in ("thread-self", "self/task/1", "2/task/1")]
    for source in ("/proc/1", "/proc/2", "/proc/2/task"):
        body = json.dumps({"source": source, "destination": f"/tmp/moved{source}"}).encode()
        kind = {"Content-Type": "application/json", "Connect-Protocol-Version": "1"}
        said.append(str(guest_request(scene, "POST", "/filesystem.Filesystem/Move", body, kind, timeout_s=5)[0]))
    _inside(scene, "find /tmp/ -name maps -size -1M | head -50 | xargs -r cat > /tmp/found")
    return "\n".join([*said, _read("/tmp/found")(scene)])


def _inside(scene: Scene, script: str) -> None:
    assert scene.sandbox is not None
    with contextlib.suppress(Exception):
        scene.sandbox.commands.run(script, user="root", timeout=20)


def _by_link(make: str, path: str) -> Callable[[Scene], str]:
    def act(scene: Scene) -> str:
        _inside(scene, make.format(secret=scene.world.places["secret"], drop=scene.world.places["drop"]))
        return _read(path)(scene)

    return act


def _upload(path: str, make: str = "true") -> Callable[[Scene], str]:
    def act(scene: Scene) -> str:
        _inside(scene, make.format(**scene.world.places))
        wanted = urllib.parse.quote(path.format(**scene.world.places))
        said = []
        for user in ("root", "user"):
            kind = {"Content-Type": "application/octet-stream"}
            status, body = guest_request(scene, "POST", f"/files?path={wanted}&username={user}", b"x", kind)
            said.append(f"{status} {body[:200]!r}")
        return "\n".join(said)

    return act


def _multipart(name: str) -> Callable[[Scene], str]:
    def act(scene: Scene) -> str:
        filename = name.format(**scene.world.places)
        body = (
            f'--b\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\nx\r\n--b--\r\n'
        ).encode()
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        return str(guest_request(scene, "POST", "/files?username=root", body, kind))

    return act


_RACE = """
rm -rf /tmp/race; mkdir -p /tmp/race/real; echo harmless > /tmp/race/real/secret
(for i in $(seq 3000); do ln -sfn /tmp/race/real /tmp/race/link; ln -sfn $(dirname {secret}) /tmp/race/link; done) &
"""


def _race(scene: Scene) -> str:
    _inside(scene, _RACE.format(**scene.world.places))
    said, until = [], time.monotonic() + 2
    while time.monotonic() < until:
        status, body = guest_request(scene, "GET", "/files?path=/tmp/race/link/secret&username=root", timeout_s=5)
        said.append(f"{status} {body[:200].decode('latin-1')}")
    return "\n".join(sorted(set(said)))


def _endless(path: str, make: str = "true") -> Callable[[Scene], str]:
    """A file that never ends or never begins: an answer must come, and it must not be the file."""

    def act(scene: Scene) -> str:
        _inside(scene, make)
        began = time.monotonic()
        status, body = guest_request(scene, "GET", f"/files?path={path}&username=root", timeout_s=10)
        scene.facts["taken"] = (status, len(body), time.monotonic() - began)
        return f"{status} {len(body)} bytes"

    return act


def _hung(scene: Scene) -> str | None:
    if scene.facts.get("taken", (1, 0, 0))[0] == 0:
        return "the guest never answered"
    if scene.facts.get("taken", (1, 0, 0))[0] == 200 and scene.facts["taken"][1] >= 1 << 20:
        return "the guest read a device"
    return judges.guest_lost(scene)


_READ_DEVICE = Control(
    Program("files/read_device"),
    judge=lambda scene: "a device is read" if "True" in scene.output else None,
)
_WAIT_FOR_PIPE = Control(
    Program("guest/wait_for_a_writer"),
    judge=lambda scene: "a reader waits for ever" if scene.pids() and judges.dropped(scene) else None,
)

# -- credentials -------------------------------------------------------------------------------------------------------

_PRIVATE = "/home/user/private.txt"


def _asks(ask: Callable[[Scene], tuple[int, bytes]]) -> Callable[[Scene], str]:
    """A neighbour's file holds the token; `ask` tries to get it."""

    def act(scene: Scene) -> str:
        for sandbox in (scene.sandbox, scene.other):
            assert sandbox is not None
            sandbox.files.write(_PRIVATE, scene.world.token)
        status, body = ask(scene)
        return f"{status} {body.decode('latin-1')}"

    return act


def _honest(scene: Scene) -> str:
    """The same request as its owner makes it."""
    assert scene.sandbox is not None
    scene.sandbox.files.write(_PRIVATE, scene.world.token)
    return guest_request(scene, "GET", f"/files?path={_PRIVATE}")[1].decode("latin-1")


_OWNER = Control(Deed(_honest))


def _signed(scene: Scene, path: str, operation: str, token: str, expiration: int | None = None) -> str:
    import base64
    import hashlib

    raw = f"{path}:{operation}::{token}" + (f":{expiration}" if expiration is not None else "")
    digest = base64.b64encode(hashlib.sha256(raw.encode()).digest()).rstrip(b"=").decode()
    query = {"path": path, "signature": f"v1_{digest}"}
    if expiration is not None:
        query["signature_expiration"] = str(expiration)
    return "/files?" + urllib.parse.urlencode(query)


def _token(scene: Scene) -> str:
    return token_of(scene.sandbox)


def _other_id(scene: Scene) -> str:
    assert scene.other is not None
    return str(scene.other.sandbox_id)


def _own_host(scene: Scene) -> dict[str, str]:
    assert scene.sandbox is not None
    return {"Host": f"{ENVD_PORT}-{scene.sandbox.sandbox_id}.localhost"}


def _smuggle(scene: Scene) -> tuple[int, bytes]:
    """Two requests in one: the second would reach the guest's control port, were the lengths read differently."""
    import socket

    from atoll_attacks.calls import server_address

    assert scene.sandbox is not None
    inner = (
        f"GET /files?path={_PRIVATE} HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {_other_id(scene)}\r\n"
        f"E2b-Sandbox-Port: {ENVD_PORT}\r\nX-Access-Token: {_token(scene)}\r\n\r\n"
    )
    body = f"0\r\n\r\n{inner}"
    outer = (
        f"POST /files?path=/tmp/s HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {scene.sandbox.sandbox_id}\r\n"
        f"E2b-Sandbox-Port: {ENVD_PORT}\r\nX-Access-Token: {_token(scene)}\r\nContent-Length: {len(body)}\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{body}"
    )
    answer = b""
    with socket.create_connection(server_address(), timeout=3) as connection:
        connection.sendall(outer.encode())
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                answer += piece
    return 0, answer


def _control_port(scene: Scene) -> tuple[int, bytes]:
    """The guest's control port lifts every rule; it is the host's alone."""
    said = []
    for port in ("0", "00", "65536", "-1", "49983 ", "+0"):
        status, body = request(
            "POST", "/init", b'{"accessToken": ""}',
            {"E2b-Sandbox-Id": _other_id(scene), "E2b-Sandbox-Port": port, "Content-Type": "application/json"},
        )  # fmt: skip
        said.append(f"{status} {body[:80]!r}")
    status, body = guest_request(scene, "GET", f"/files?path={_PRIVATE}", token="", sandbox_id=_other_id(scene))
    return status, body + " ".join(said).encode()


_FORGERIES = tuple(
    _deed(name, goal, _asks(ask), judges.leaked, _OWNER)
    for name, goal, ask in (
        ("no-token", "read without a token",
         lambda s: guest_request(s, "GET", f"/files?path={_PRIVATE}", token="")),
        ("empty-token", "read with an empty token",
         lambda s: guest_request(s, "GET", f"/files?path={_PRIVATE}", headers={"X-Access-Token": ""}, token="")),
        ("own-token-for-another", "read a neighbour's file with one's own token",
         lambda s: guest_request(s, "GET", f"/files?path={_PRIVATE}", sandbox_id=_other_id(s))),
        ("neighbour-by-host-name", "name one sandbox in the header and another in the host",
         lambda s: guest_request(s, "GET", f"/files?path={_PRIVATE}", sandbox_id=_other_id(s), headers=_own_host(s))),
        ("cut-token", "read with the first half of a token",
         lambda s: guest_request(s, "GET", f"/files?path={_PRIVATE}", token=_token(s)[:32])),
        ("signature-of-nothing", "read with an empty signature",
         lambda s: guest_request(s, "GET", f"/files?path={_PRIVATE}&signature=", token="")),
        ("signature-without-token", "sign without the token",
         lambda s: guest_request(s, "GET", _signed(s, _PRIVATE, "read", ""), token="")),
        ("signature-for-writing", "read with a signature for writing",
         lambda s: guest_request(s, "GET", _signed(s, _PRIVATE, "write", _token(s)), token="")),
        ("signature-for-another-path", "use a signature for another path",
         lambda s: guest_request(s, "GET", _signed(s, "/etc/hostname", "read", _token(s)).replace(
             "%2Fetc%2Fhostname", urllib.parse.quote(_PRIVATE, safe="")), token="")),
        ("signature-expired", "use a signature after its time",
         lambda s: guest_request(s, "GET", _signed(s, _PRIVATE, "read", _token(s), 1000000000), token="")),
        ("signature-expiry-removed", "take the expiry off a signature",
         lambda s: guest_request(s, "GET", _signed(s, _PRIVATE, "read", _token(s), 4000000000).partition(
             "&signature_expiration")[0], token="")),
        ("signature-for-another-sandbox", "use one's own signature on a neighbour",
         lambda s: guest_request(s, "GET", _signed(s, _PRIVATE, "read", _token(s)), token="", sandbox_id=_other_id(s))),
        ("smuggled-request", "smuggle a second request past the edge", _smuggle),
        ("control-port", "reach the guest's control port from outside", _control_port),
    )
)  # fmt: skip

ATTEMPTS: tuple[Attempt, ...] = (
    _deed("dots", "climb with dots", _read("../../../../../../../../..{secret}"), judges.leaked),
    _deed("dots-absolute", "climb with dots from the top", _read("/../../../../../..{secret}"), judges.leaked),
    _deed("absolute", "read a host path", _read("{secret}"), judges.leaked),
    _deed("slashes", "climb with slashes and dots", _read("//..//../..///../{bare}"), judges.leaked),
    _deed("backslashes", "climb with backslashes", _read("..\\..\\..\\..{secret}"), judges.leaked),
    _deed("nul", "cut the path with a NUL", _read("{secret}\0.txt"), judges.leaked),
    _deed("home-of-others", "climb by a home directory", _read("~root/../../../..{secret}"), judges.leaked),
    _deed("proc-root", "read by the guest's own root", _read("/proc/1/root{secret}"), judges.leaked),
    _deed("proc-self", "the same by /proc/self", _read("/proc/self/root/../../..{secret}"), judges.leaked),
    _deed("proc-cwd", "the same by its working directory", _read("/proc/self/cwd/../../../..{secret}"), judges.leaked),
    _deed(
        "proc-environ",
        "read the guest's environment",
        _read("/proc/self/environ"),
        judges.leaked,
        Control(Program("escape/environment_of_first_process")),
    ),
    _deed(
        "proc-by-thread",
        "read the guest's own /proc by a thread's number",
        _by_thread,
        _map_seen,
        Control(Program("files/show_map")),
    ),
    _deed(
        "proc-memory",
        "read the guest's memory",
        _read("/proc/self/mem"),
        _hung,
        Control(Program("escape/read_memory"), judge=judges.memory_open),
    ),
    _deed(
        "link-to-secret", "read by a symbolic link", _by_link("ln -sfn {secret} /tmp/link", "/tmp/link"), judges.leaked
    ),
    _deed(
        "link-to-directory",
        "read below a symbolic link",
        _by_link("ln -sfn / /tmp/top", "/tmp/top{secret}"),
        judges.leaked,
    ),
    _deed(
        "link-to-proc",
        "read by a link to the guest's root",
        _by_link("ln -sfn /proc/1/root /tmp/root", "/tmp/root{secret}"),
        judges.leaked,
    ),
    _deed("link-race", "swap a directory for a link while it is read", _race, judges.leaked),
    _deed("write-absolute", "write a host path", _upload("{drop}/written"), judges.dropped, _WRITE_ON_HOST),
    _deed("write-dots", "write with dots", _upload("../../../../..{drop}/written"), judges.dropped, _WRITE_ON_HOST),
    _deed(
        "write-proc-root",
        "write by the guest's own root",
        _upload("/proc/1/root{drop}/written"),
        judges.dropped,
        _WRITE_ON_HOST,
    ),
    _deed(
        "write-link",
        "write by a symbolic link",
        _upload("/tmp/out", "ln -sfn {drop}/written /tmp/out"),
        judges.dropped,
        _WRITE_ON_HOST,
    ),
    _deed(
        "write-below-link",
        "write below a symbolic link",
        _upload("/tmp/outdir/written", "ln -sfn {drop} /tmp/outdir"),
        judges.dropped,
        _WRITE_ON_HOST,
    ),
    _deed(
        "write-filename",
        "write by the name of a part",
        _multipart("../../../../../..{drop}/written"),
        judges.dropped,
        _WRITE_ON_HOST,
    ),
    _deed(
        "write-program",
        "overwrite the guest's program",
        _upload("/proc/self/exe"),
        lambda scene: None if " 4" in f" {scene.output}" and " 200" not in f" {scene.output}" else "it was accepted",
        Impossible("it would overwrite this machine's Python"),
    ),
    _deed("device", "read a device without an end", _endless("/dev/zero"), _hung, _READ_DEVICE),
    _deed("terminal", "read a terminal that never answers", _endless("/dev/ptmx"), _hung, _READ_DEVICE),
    _deed(
        "pipe", "read a pipe without a writer", _endless("/tmp/pipe", "mkfifo /tmp/pipe || true"), _hung, _WAIT_FOR_PIPE
    ),
    _deed(
        "link-loop",
        "follow links in a circle",
        _endless("/tmp/loop", "ln -sfn /tmp/loop /tmp/loop"),
        _hung,
        _WAIT_FOR_PIPE,
    ),
    *_FORGERIES,
)
