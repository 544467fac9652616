"""What a tier gives a guest before it serves. One value per guest: its modules keep nothing between two of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atoll.guest.files.metadata import Kept
from atoll.guest.machine.files import Figures
from atoll.guest.process.spawn import StartIn

if TYPE_CHECKING:
    from atoll.guest.machine.shown import Hardware, Machine
    from atoll.guest.pid1.checkpoint import Shared
    from atoll.guest.pid1.quota import Quota
    from atoll.model.sandbox import Limits


@dataclass(slots=True)
class TierParts:
    """Made in the guest's own process by `guest.main.begin`; a tier sets what it has."""

    start_in: StartIn | None = None
    """`start_in(work)` does `work` where programs are to be born; None: the guest starts them itself."""
    machine: Machine | None = None
    """What programs see of the machine; None: the real one."""
    quota: Quota | None = None
    """The limit of processes, where it is kept from inside."""
    sudo: socket.socket | None = None
    """Where `sudo` asks, where the kernel ignores set-uid programs."""
    shared: Shared | None = None
    """The directory that the host sees too, where the sandbox can be saved."""
    gvisor_terminals: bool = False
    """What gVisor's releases of 2024 get wrong about terminals is put right: see `process.pty`."""
    forks_share_memory: bool = True
    """A page that parent and child have in common is one until it is written. gVisor copies up to 2 MiB around it."""
    metadata: Kept = field(default_factory=Kept)
    """Of files on file systems that keep none."""
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    """Makes its loop when it is first used: never in the zygote, whose loop would be shared by all."""

    def show_machine(
        self,
        directory: int,
        limits: Limits,
        processors: Sequence[int],
        *,
        hardware: Hardware,
        memory: Callable[[], Figures],
        cpu: Callable[[], Figures],
        boot_s: int,
        asked: int = -1,
    ) -> None:
        """What programs see of the machine is kept in `directory` from now on. After `start_in` is set.

        `boot_s`: CLOCK_BOOTTIME, as the guest sees it, when that of programs began. `asked`: where their calls of
        sysinfo(2) arrive, if it is ours to answer them. Raises OSError.
        """
        from atoll.guest.machine.shown import Machine, Readings  # it looks at the guest's state, which has this

        self.machine = Machine(directory, hardware, Readings(memory, cpu), boot_s, asked, self.start_in)
        self.machine.resize(limits, processors)
