"""What a guest is made of, as services get it: one value instead of many parameters. Built in `guest/main.py`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from atoll.guest.pid1.checkpoint import Checkpoint
from atoll.guest.pid1.reaper import Reaper
from atoll.guest.process.service import ProcessTable
from atoll.guest.state import GuestState


@dataclass(frozen=True, slots=True)
class Guest:
    """The parts that services are built on."""

    state: GuestState
    reaper: Reaper
    """Reports when a child that `spawn` made has ended."""
    processes: ProcessTable
    """The users' commands; a service's own helpers (kernels) are spawned beside it and are not listed."""
    loop: asyncio.AbstractEventLoop
    checkpoint: Checkpoint
