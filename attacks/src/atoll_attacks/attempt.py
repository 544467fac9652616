"""What an attack attempt is: what is tried inside, how the host tells that it worked, and the control without the wall.

    Program   a Python file that runs as a process in the sandbox; as a control the same on the host, as root, unwalled
    Deed      a call to the server from outside, as a client of the sandbox makes it
    Judge     looks at the host's own canaries after (and while) it runs: words about the breach, or None

What a program says of its own success counts for nothing but one thing: a secret that it could only have from the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll_attacks.scene import Scene


class Family(StrEnum):
    """What an attempt goes for."""

    POSTURE = "posture"
    ESCAPE = "escape"
    GUEST = "guest"
    FILES = "files"
    RESOURCES = "resources"
    EGRESS = "egress"
    STRANGERS = "strangers"
    KEYS = "keys"
    AGENT = "agent"


Judge = Callable[["Scene"], str | None]
"""Evidence of a breach in words, or None. Called on the host."""


PROGRAMS = Path(__file__).parent / "inside-programs"
"""They are run in sandboxes, never imported: the name is none of a package."""

MODULES = tuple(sorted(PROGRAMS.glob("*.py")))
"""What lies beside each program when it runs."""


@dataclass(frozen=True, slots=True)
class Program:
    """A file of `inside-programs/`: `path` is its place there without `.py`. `inside.py` lies beside it when it runs.

    `user`: whose process it is in the sandbox (on the host always root). `arguments`: its `inside.ARGUMENTS`.
    """

    path: str
    user: str = "root"
    arguments: tuple[str, ...] = ()
    timeout_s: float = 20.0
    policy: str = ""
    """Of `egress.POLICIES`: what its sandbox may reach. As a control it runs in the server's own network then."""

    @property
    def file(self) -> Path:
        """Where it lies on the host."""
        return PROGRAMS / f"{self.path}.py"


@dataclass(frozen=True, slots=True)
class Deed:
    """Something done from outside; what it says is the scene's output. `source` of it: this function."""

    act: Callable[[Scene], str]


@dataclass(frozen=True, slots=True)
class Impossible:
    """There is no control run, because of `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Control:
    """The attempt without the wall, which must succeed. Without an `act` of its own it is the attempt's.

    `judge` where success looks different there. `needs` is what it cannot be made without: a path of the host, or
    `canary:` and the name of one.
    """

    act: Program | Deed | None = None
    judge: Judge | None = None
    needs: str = ""
    walled: bool = False
    """True: its program runs in a sandbox too, one of another policy."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt. `goal` says in a few words what its success would mean.

    `not_in` names tiers where it means nothing, with the reason.
    """

    name: str
    family: Family
    goal: str
    act: Program | Deed
    judge: Judge
    control: Control | Impossible
    not_in: tuple[tuple[str, str], ...] = ()
    small: bool = False
    """True: in the sandbox with the small limits of `resources.LIMITS`."""
    spoils: bool = False
    """True: that sandbox is of no use to the next one."""
    disturbs: bool = False
    """True: whatever else runs in its sandbox would notice."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `breach` is the evidence; None: it was blocked. `said` is the end of what it printed."""

    breach: str | None
    said: str
