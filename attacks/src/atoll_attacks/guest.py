"""Attempts of a sandbox's own users against the guest: to end it, to stop it, to make it deaf.

The guest is no boundary to the host; but whoever ends it ends the sandbox, and an agent's stray `kill` must not.
"""

from __future__ import annotations

import os
import re

from atoll_attacks import judges, sentry
from atoll_attacks.attempt import Attempt, Control, Deed, Family, Impossible, Judge, Program
from atoll_attacks.scene import Scene, _text


def _guest(
    name: str,
    goal: str,
    judge: Judge = judges.guest_lost,
    control: Control | Impossible | None = None,
    *,
    program: str = "",
    arguments: tuple[str, ...] = (),
    user: str = "root",
    spoils: bool = False,
) -> Attempt:
    """`program` is called as the attempt unless it is named.

    `judge` is asked once the program has ended: a guest that is merely busy is no breach.
    """

    def late(scene: Scene) -> str | None:
        if scene.sandbox is not None and (scene.running or scene.pids()):
            return None
        return judge(scene)

    act = Program(f"guest/{program or name.replace('-', '_')}", user, arguments)
    return Attempt(name, Family.GUEST, goal, act, late, control or Control(), small=spoils, spoils=spoils)


def _changed_priority(scene: Scene) -> str | None:
    first = scene.facts.get("first") or scene.first_process()
    if first is None:
        return None
    scene.facts["first"] = first
    now = (os.getpriority(os.PRIO_PROCESS, first), os.sched_getscheduler(first), len(os.sched_getaffinity(first)))
    before = scene.facts.setdefault("priority", now)
    return f"the guest's scheduling went from {before} to {now}" if now != before else None


def _limited(number: int) -> Judge:
    """Whether the guest has this limit now. In gVisor the host does not see it: there it is what the guest can do."""

    def judge(scene: Scene) -> str | None:
        if sentry.pid_of(scene) is None:
            return "the limit is set" if _limit(scene, number) == 0 else None
        assert scene.sandbox is not None
        try:
            scene.sandbox.files.write("/tmp/written", "x" * 10000, user="root", request_timeout=20)
        except Exception as error:
            return f"the guest writes no file any more: {type(error).__name__}"
        return judges.guest_lost(scene)

    return judge


_NO_SERVER = Impossible("nothing without a sandbox plays the guest's part: it is our own server that is tried")

ATTEMPTS: tuple[Attempt, ...] = (
    _guest("kill-guest", "end the guest by signal"),
    _guest(
        "kill-guest-as-user", "end the guest by signal, as its user", program="kill_guest_every_signal", user="user"
    ),
    _guest("kill-guest-every-signal", "find a signal that ends the guest"),
    _guest("stop-guest", "stop the guest"),
    _guest("signal-flood", "drown the guest in signals", control=Control(Program("guest/signal_flood_control"))),
    _guest("signal-by-descriptor", "end the guest by making it the owner of a descriptor"),
    _guest(
        "signal-by-orphan",
        "end the guest by the death of a child that it inherits",
        control=Impossible("the signal goes to a parent, and the victim's children are its own"),
    ),
    _guest(
        "limit-guest-descriptors",
        "leave the guest without descriptors",
        program="limit_guest",
        arguments=("7", "3"),
        control=Control(judge=lambda scene: "the limit is set" if _limit(scene, 7) == 3 else None),
    ),
    _guest(
        "limit-guest-time",
        "have the kernel end the guest for its processor time",
        program="limit_guest",
        arguments=("0", "0"),
        control=Control(judge=lambda scene: "the limit is set" if _limit(scene, 0) == 0 else None),
    ),
    _guest(
        "limit-guest-files",
        "let the guest write no file",
        program="limit_guest",
        arguments=("1", "0"),
        judge=_limited(1),
    ),
    _guest(
        "limit-guest-processes",
        "let the guest start nothing",
        program="limit_guest",
        arguments=("6", "0"),
        judge=_limited(6),
    ),
    Attempt(
        "lower-guest-priority",
        Family.GUEST,
        "make the guest wait for everybody",
        Program("guest/lower_guest_priority"),
        _changed_priority,
        Control(),
    ),
    Attempt(
        "passwd-is-a-pipe",
        Family.GUEST,
        "make the guest wait for a writer that never comes",
        Program("guest/passwd_is_a_pipe"),
        lambda scene: _deaf(scene),
        Control(
            Program("guest/wait_for_a_writer"),
            judge=lambda scene: "a reader waits for ever" if scene.pids() and judges.dropped(scene) else None,
        ),
    ),
    _guest("passwd-is-endless", "fill the guest's memory", control=_NO_SERVER),
    _guest("passwd-is-gone", "leave the guest without users", control=_NO_SERVER),
    _guest("zombies", "leave the guest with dead children", control=_NO_SERVER, user="user"),
    _guest(
        "remove-everything", "leave the guest without its files", lambda scene: _deaf(scene), _NO_SERVER, spoils=True
    ),
    Attempt(
        "thousand-half-requests",
        Family.GUEST,
        "hold all of the guest's connections",
        Deed(lambda scene: _half_requests(scene)),
        judges.guest_lost,
        _NO_SERVER,
    ),
    Attempt(
        "malformed-frames",
        Family.GUEST,
        "break the guest's parser",
        Deed(lambda scene: _malformed(scene)),
        judges.guest_lost,
        _NO_SERVER,
    ),
    Attempt(
        "deep-tree",
        Family.GUEST,
        "make the guest recurse until it dies",
        Deed(lambda scene: _deep_tree(scene)),
        judges.guest_lost,
        _NO_SERVER,
    ),
)


_LIMITS = {0: "Max cpu time", 1: "Max file size", 6: "Max processes", 7: "Max open files"}


def _limit(scene: Scene, number: int) -> int | None:
    first = scene.facts.get("first") or scene.first_process()
    if first is None and scene.sandbox is not None:
        first = _first_by_command(scene)
    found = re.search(rf"^{_LIMITS[number]} +(\S+)", _text(f"/proc/{first}/limits"), re.M)
    return int(found.group(1)) if found is not None and found.group(1).isdigit() else None


def _first_by_command(scene: Scene) -> int | None:
    """The first process, found by a command that the host starts for this."""
    import threading

    assert scene.sandbox is not None
    command = scene.sandbox.commands.run(f"exec python3 -c 'import time; time.sleep(20)' {scene.tag}", background=True)
    try:
        for _ in range(100):
            if (first := scene.first_process()) is not None:
                scene.facts["first"] = first
                return first
            threading.Event().wait(0.05)
    finally:
        command.kill()
    return None


def _deaf(scene: Scene) -> str | None:
    """The guest does not even look a user up, or its health check fails."""
    from atoll_attacks.calls import guest_request

    status, body = guest_request(scene, "GET", "/files?path=/nothing/there", timeout_s=2)
    if status:
        status, body = guest_request(scene, "GET", "/health", timeout_s=2)
    return None if status == 204 else f"the guest is deaf: {status} {body[:100]!r}"


def _half_requests(scene: Scene) -> str:
    import socket
    import urllib.parse

    assert scene.sandbox is not None
    place = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"])
    head = (
        f"POST /files?path=/tmp/x HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: {scene.sandbox.sandbox_id}\r\n"
        "E2b-Sandbox-Port: 49983\r\nContent-Length: 1000000\r\nContent-Type: application/octet-stream\r\n\r\nx"
    ).encode()
    held: list[socket.socket] = []
    try:
        for _ in range(1000):
            one = socket.create_connection((place.hostname or "127.0.0.1", place.port or 80), timeout=10)
            one.sendall(head)
            held.append(one)
        return f"holds {len(held)} half requests; {judges.guest_lost(scene) or 'the guest answers'}"
    finally:
        for one in held:
            one.close()


def _malformed(scene: Scene) -> str:
    import random
    import struct

    from atoll_attacks.calls import guest_request

    chance = random.Random(1)
    said = []
    bodies = [
        b"", b"\x00", b"\x00\xff\xff\xff\xff", struct.pack(">BI", 0, 5) + b"{", struct.pack(">BI", 1, 3) + b"abc",
        struct.pack(">BI", 2, 2) + b"{}", struct.pack(">BI", 0, 0x7FFFFFFF) + b"x" * 1000,
        *(chance.randbytes(chance.randrange(1, 400)) for _ in range(40)),
    ]  # fmt: skip
    for body in bodies:
        for kind in ("application/connect+json", "application/connect+proto", "application/json"):
            status, _ = guest_request(scene, "POST", "/process.Process/Start", body, {"Content-Type": kind})
            said.append(str(status))
    return " ".join(sorted(set(said)))


def _deep_tree(scene: Scene) -> str:
    assert scene.sandbox is not None
    make = "import os\nfor _ in range(1050):\n    os.mkdir('dddd'); os.chdir('dddd')"  # 5 kB: longer than a path may be
    scene.sandbox.commands.run(f'cd /tmp && python3 -c "{make}"', user="root", timeout=30)
    try:
        found = scene.sandbox.files.list("/tmp", depth=100000, user="root", request_timeout=30)
        return f"{len(found)} entries"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        scene.sandbox.commands.run("rm -rf /tmp/dddd", user="root", timeout=30)
