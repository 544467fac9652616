"""A sandbox made once and thrown away, in a process of its own, for `doctor`: prints findings as JSON rows.

It goes the way of every real sandbox (same code), with a template of empty directories and a guest that ends at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from atoll.isolation.base import Verdict
from atoll.isolation.linux.cgroups.meter import Meter
from atoll.isolation.linux.sys import caps, syscalls
from atoll.isolation.linux.sys.fork import fork_into, map_ids
from atoll.isolation.linux.sys.id_ranges import IdRanges, read_delegated
from atoll.isolation.linux.sys.machine import Machine
from atoll.isolation.linux.sys.rootless import map_within
from atoll.isolation.namespaces import egress, messages, posture
from atoll.isolation.namespaces.child import SandboxInit
from atoll.isolation.namespaces.root import build_root
from atoll.model.sandbox import SandboxSpec

_Row = tuple[str, str, str, str]


def main(near: str, rootless: str) -> None:
    """Called in a fresh interpreter; `near` is a directory on the file system where sandboxes will lie.

    `rootless`: "yes" in namespaces of an ordinary user's own.
    """
    syscalls.keep_capabilities_on_id_change()
    place = Path(tempfile.mkdtemp(prefix=".atoll-trial-", dir=near))
    try:
        rows = list(_attempt(place, rootless=rootless == "yes"))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(json.dumps(rows))


def _guest(listener: socket.socket, spec: SandboxSpec) -> NoReturn:
    os._exit(0)


def _attempt(place: Path, *, rootless: bool) -> list[_Row]:
    template, state = place / "template", place / "state"
    for path in (template / "etc", state):
        path.mkdir(parents=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    try:
        no_egress = egress.why_not()
        id_base = 0 if rootless else IdRanges(read_delegated()).take()
        if not rootless:
            syscalls.keep_capabilities_on_id_change()
        pid, pidfd = fork_into(posture.NAMESPACES, owner=id_base or None)
    except OSError as error:
        hint = "raise /proc/sys/user/max_*_namespaces; in a container, run it privileged"
        return [("namespaces", Verdict.FAIL, f"cannot be made: {error}", hint)]
    if pid == 0:
        programs = posture.seccomp_program(), posture.programs_seccomp_program()
        SandboxInit(
            theirs, [], [], _guest, programs, caps.last_cap(),
            egress=not no_egress, meter=Meter({}), machine=Machine(), rootless=rootless,
        ).run()  # fmt: skip
    theirs.close()
    rows: list[_Row] = [("namespaces", Verdict.OK, "user, pid, mount, net, ipc, uts, cgroup", "")]
    rows.append(_egress(no_egress))
    try:
        if rootless:
            map_within(pid)
        else:
            map_ids(pid, id_base, posture.HOST_IDS_PER_SANDBOX)
        messages.send(ours, {"op": "mapped"})
        _expect(ours, "parked")
        mount = build_root(pid, id_base, [str(template)], state)
        owners = "the owners on disk" if rootless else "shifted owners"
        rows.append(("root file system", Verdict.OK, f"overlay with {owners}", ""))
        _go(ours, place, mount)
        _expect(ours, "started")
        rows.append(("sandbox", Verdict.OK, "a trial went through every step", ""))
    except (OSError, RuntimeError) as error:
        hint = "the file system under the data directory must allow idmapped mounts (ext4, xfs, btrfs, tmpfs do)"
        rows.append(("sandbox", Verdict.FAIL, f"a trial failed: {error}", hint if "overlay" in str(error) else ""))
    finally:
        with contextlib.suppress(OSError):
            syscalls.pidfd_kill(pidfd)
        os.waitpid(pid, 0)
    return rows


def _egress(why_not: str) -> _Row:
    if why_not:
        detail = f"sandboxes reach nothing outside: the redirect cannot be set ({why_not})"
        return (
            "egress",
            Verdict.WARN,
            detail,
            "load the kernel modules nf_tables, nft_redir, nft_fib_inet, nft_reject, nft_limit",
        )
    return ("egress", Verdict.OK, "by policy, through the gateway", "")


def _expect(line: socket.socket, expected: str) -> dict[str, Any]:
    body = messages.receive(line).body or {"op": "failed", "error": "the first process ended"}
    if body["op"] != expected:
        raise RuntimeError(str(body.get("error", body)))
    return body


def _go(line: socket.socket, place: Path, mount: int) -> None:
    spec = messages.seal(SandboxSpec("trial", "trial").as_json())
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        messages.send(
            line,
            {"op": "go", "processors": Machine().take(1), "boot_s": 0},
            [mount, log, listener.fileno(), spec],
        )
    for descriptor in (mount, log, spec):
        os.close(descriptor)
