"""Attempts of a sandbox's own users against the guest: to end it, to stop it, to make it deaf.

The guest is no boundary to the host; but whoever ends it ends the sandbox, and an agent's stray `kill` must not.
"""

from __future__ import annotations

import os

from atoll_attacks import judges
from atoll_attacks.attempt import Attempt, Control, Deed, Family, Impossible, Judge, Program
from atoll_attacks.scene import Scene


def _guest(
    name: str,
    goal: str,
    source: str,
    judge: Judge = judges.guest_lost,
    control: Control | Impossible | None = None,
    *,
    user: str = "root",
    alone: bool = False,
) -> Attempt:
    """`judge` is asked once the program has ended: a guest that is merely busy is no breach."""

    def late(scene: Scene) -> str | None:
        if scene.sandbox is not None and (scene.running or scene.pids()):
            return None
        return judge(scene)

    return Attempt(name, Family.GUEST, goal, Program(source, user), late, control or Control(), alone=alone)


def _changed_priority(scene: Scene) -> str | None:
    first = scene.facts.get("first") or scene.first_process()
    if first is None:
        return None
    scene.facts["first"] = first
    now = (os.getpriority(os.PRIO_PROCESS, first), os.sched_getscheduler(first), len(os.sched_getaffinity(first)))
    before = scene.facts.setdefault("priority", now)
    return f"the guest's scheduling went from {before} to {now}" if now != before else None


_NO_SERVER = Impossible("nothing without a sandbox plays the guest's part: it is our own server that is tried")

ATTEMPTS: tuple[Attempt, ...] = (
    _guest("kill-guest", "end the guest by signal", """
for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV, signal.SIGABRT):
    attempt(os.kill, TARGET, number)
"""),
    _guest("kill-guest-as-user", "end the guest by signal, as its user", """
for number in range(1, 65):
    if number not in (17, 32, 33):
        attempt(os.kill, TARGET, number)
""", user="user"),
    _guest("kill-guest-every-signal", "find a signal that ends the guest", """
for number in range(1, 65):
    if number not in (17, 32, 33):
        attempt(os.kill, TARGET, number)
"""),
    _guest("stop-guest", "stop the guest", """
for number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN):
    attempt(os.kill, TARGET, number)
    time.sleep(0.1)
"""),
    _guest("signal-flood", "drown the guest in signals", """
for _ in range(200000):
    os.kill(TARGET, 17 if TARGET == 1 else 9)
""", control=Control(Program("os.kill(TARGET, 9)"))),
    _guest("signal-by-descriptor", "end the guest by making it the owner of a descriptor", """
ours, theirs = socket.socketpair()
fcntl.fcntl(ours, 10, signal.SIGKILL)  # F_SETSIG
attempt(fcntl.fcntl, ours, 8, TARGET)  # F_SETOWN
attempt(fcntl.fcntl, ours, 15, struct.pack("ii", 1, TARGET))  # F_SETOWN_EX, a process
fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
theirs.send(b"x")
attempt(fcntl.fcntl, ours, 8, -TARGET)
theirs.send(b"x")
time.sleep(0.5)
"""),
    _guest("signal-by-orphan", "end the guest by the death of a child that it inherits", """
for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1):
    for parent in (0, 0x8000):  # CLONE_PARENT
        if os.fork() == 0:
            if attempt(call, "clone", parent | number, 0, 0, 0, 0) == 0:
                time.sleep(0.2)
            os._exit(0)
        os.wait()
time.sleep(0.5)
""", control=Impossible("the signal goes to a parent, and the victim's children are its own")),
    _guest("limit-guest-descriptors", "leave the guest without descriptors", """
call("prlimit64", TARGET, 7, struct.pack("QQ", 3, 3), None)
""", control=Control(judge=lambda scene: "the limit is set" if _limit(scene, 7) == 3 else None)),
    _guest("limit-guest-time", "have the kernel end the guest for its processor time", """
call("prlimit64", TARGET, 0, struct.pack("QQ", 0, 0), None)
time.sleep(1)
""", control=Control(judge=lambda scene: "the limit is set" if _limit(scene, 0) == 0 else None)),
    _guest("limit-guest-files", "let the guest write no file", """
call("prlimit64", TARGET, 1, struct.pack("QQ", 0, 0), None)
""", lambda scene: "the limit is set" if _limit(scene, 1) == 0 else None),
    _guest("limit-guest-processes", "let the guest start nothing", """
call("prlimit64", TARGET, 6, struct.pack("QQ", 0, 0), None)
""", lambda scene: "the limit is set" if _limit(scene, 6) == 0 else None),
    Attempt("lower-guest-priority", Family.GUEST, "make the guest wait for everybody", Program("""
time.sleep(0.3)
attempt(call, "setpriority", 0, TARGET, 19)
attempt(call, "sched_setscheduler", TARGET, 5, bytes(4))
attempt(call, "sched_setaffinity", TARGET, 8, struct.pack("Q", 1))
hold(seconds=0.5)
"""), _changed_priority, Control()),
    Attempt("passwd-is-a-pipe", Family.GUEST, "make the guest wait for a writer that never comes", Program("""
os.rename("/etc/passwd", "/etc/passwd.kept")
os.mkfifo("/etc/passwd")
try:
    time.sleep(1)
finally:
    os.rename("/etc/passwd.kept", "/etc/passwd")
"""), lambda scene: _deaf(scene), Control(Program("""
os.mkfifo(W["drop"] + "/fifo")
if os.fork() == 0:
    open(W["drop"] + "/fifo")
    os._exit(0)
time.sleep(0.3)
"""), judge=lambda scene: "a reader waits for ever" if scene.pids() and judges.dropped(scene) else None)),
    _guest("passwd-is-endless", "fill the guest's memory", """
os.rename("/etc/passwd", "/etc/passwd.kept")
os.symlink("/dev/zero", "/etc/passwd")
time.sleep(0.5)
os.rename("/etc/passwd.kept", "/etc/passwd")
""", control=_NO_SERVER),
    _guest("passwd-is-gone", "leave the guest without users", """
os.rename("/etc/passwd", "/etc/passwd.kept")
time.sleep(0.3)
os.rename("/etc/passwd.kept", "/etc/passwd")
""", control=_NO_SERVER),
    _guest("zombies", "leave the guest with dead children", """
for _ in range(150):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
""", control=_NO_SERVER, user="user"),
    _guest("remove-everything", "leave the guest without its files", """
subprocess.run("rm -rf --no-preserve-root / 2>/dev/null", shell=True)
""", lambda scene: _deaf(scene), _NO_SERVER, alone=True),
    Attempt("thousand-half-requests", Family.GUEST, "hold all of the guest's connections",
            Deed(lambda scene: _half_requests(scene)), judges.guest_lost, _NO_SERVER),
    Attempt("malformed-frames", Family.GUEST, "break the guest's parser",
            Deed(lambda scene: _malformed(scene)), judges.guest_lost, _NO_SERVER),
    Attempt("deep-tree", Family.GUEST, "make the guest recurse until it dies",
            Deed(lambda scene: _deep_tree(scene)), judges.guest_lost, _NO_SERVER),
)  # fmt: skip


def _limit(scene: Scene, number: int) -> int | None:
    import resource

    first = scene.facts.get("first") or scene.first_process()
    if first is None and scene.sandbox is not None:
        first = _first_by_command(scene)
    return resource.prlimit(first, number)[0] if first is not None else None


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
    make = "import os\nfor _ in range(2100):\n    os.mkdir('d'); os.chdir('d')"
    scene.sandbox.commands.run(f'cd /tmp && python3 -c "{make}"', user="root", timeout=30)
    try:
        found = scene.sandbox.files.list("/tmp", depth=100000, user="root", request_timeout=30)
        return f"{len(found)} entries"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        scene.sandbox.commands.run("rm -rf /tmp/d", user="root", timeout=30)
