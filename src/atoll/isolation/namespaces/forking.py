"""Forks the zygote's children: a cgroup, ids and namespaces for each, and the line over which it gets its orders."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable

from atoll.isolation.linux.cgroups.groups import Cgroups, Group
from atoll.isolation.linux.cgroups.meter import Meter
from atoll.isolation.linux.sys import caps, oom, rootless
from atoll.isolation.linux.sys.fork import fork_into, map_ids
from atoll.isolation.linux.sys.id_ranges import IdRanges, read_delegated
from atoll.isolation.linux.sys.machine import Machine
from atoll.isolation.namespaces import messages, posture
from atoll.isolation.namespaces.child import SandboxInit
from atoll.isolation.namespaces.children import Child
from atoll.isolation.namespaces.guest_entry import Guest


class ChildFactory:
    """`name` begins the names of its cgroups."""

    def __init__(
        self, name: str, cgroups: Cgroups, guest: Guest, machine: Machine, *, egress: bool, is_rootless: bool
    ) -> None:
        self._name = name
        self._cgroups = cgroups
        self._guest = guest
        self._machine = machine
        self._egress = egress
        self._rootless = is_rootless
        self._programs = posture.seccomp_program(), posture.programs_seccomp_program()
        self._last_cap = caps.last_cap()
        self._may_score = not is_rootless and caps.is_held(caps.Cap.SYS_RESOURCE)  # root in a container may lack it
        self._ids = IdRanges(read_delegated())

    def fork(self, unremoved: Callable[[Group], object]) -> Child:
        """A new child with its group and ids, on its way to being parked; `give_ids` must follow.

        Raises OSError; nothing is left then but a group that could not be removed at once, which `unremoved` gets.
        """
        group = self._cgroups.group(f"{self._name}-{secrets.token_hex(6)}")
        undo: list[Callable[[], object]] = [lambda: unremoved(group)]
        try:
            group.create()
            joins = group.join_descriptors()
            undo += [lambda fd=fd: os.close(fd) for fd in joins]  # type: ignore[misc]
            users = group.users_descriptors()
            undo += [lambda fd=fd: os.close(fd) for fd in users]  # type: ignore[misc]
            meter = Meter.of(group)
            undo.append(meter.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo += [ours.close, theirs.close]
            id_base = 0 if self._rootless else self._ids.take()
            undo.append(lambda: self._ids.give_back(id_base))
            pid, pidfd = fork_into(posture.NAMESPACES, owner=id_base or None)
            if pid == 0:
                SandboxInit(
                    theirs,
                    joins,
                    users,
                    self._guest.main,
                    self._programs,
                    self._last_cap,
                    egress=self._egress,
                    meter=meter,
                    machine=self._machine,
                    rootless=self._rootless,
                    ahead=self._guest.prepare,
                ).run()
        except OSError:
            for step in reversed(undo):
                step()
            raise
        theirs.close()
        meter.close()
        for descriptor in (*joins, *users):
            os.close(descriptor)
        return Child(pid, pidfd, ours, group, id_base)

    def give_ids(self, child: Child) -> None:
        """Maps its ids and lets it go on. Raises OSError: it is of no use then."""
        if self._rootless:
            rootless.map_within(child.pid)
        else:
            map_ids(child.pid, child.id_base, posture.HOST_IDS_PER_SANDBOX)
        if self._may_score:
            child.score()
        else:
            oom.make_ordinary(child.pid)
        messages.send(child.control, {"op": "mapped"})

    def take_back(self, child: Child) -> None:
        """It has ended: its ids and processors may be given again."""
        self._ids.give_back(child.id_base)
        self._machine.give_back(child.processors)
