"""What was acknowledged, and so what may be found now. Pure: it is told of answers and of findings, and compares.

An operation is `begun` before it is asked for. An answer settles it; without one (the connection was cut, an error was
told) both outcomes are possible from then on, and the oracle never narrows that by what it sees later: what is still
under way in a server may come true after a look.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

RUNNING, PAUSED = "running", "paused"


class There(StrEnum):
    """Whether a sandbox, a snapshot or a template exists."""

    YES = "yes"
    MAYBE = "maybe"
    NO = "no"


@dataclass
class Kept:
    """What a disk holds: path → what may be in that file, and how far its log has got at least."""

    files: dict[str, set[str | None]] = field(default_factory=dict)
    logged: int = 0

    def copy(self) -> Kept:
        return Kept({path: set(may_be) for path, may_be in self.files.items()}, self.logged)


@dataclass
class Life:
    """One sandbox."""

    kept: Kept = field(default_factory=Kept)
    there: There = There.YES
    states: set[str] = field(default_factory=lambda: {RUNNING})
    commands: set[int] = field(default_factory=set)
    """Those that run for certain."""


class Oracle:
    """One actor's sandboxes; `merged` puts those of several together. Not safe to share between threads."""

    def __init__(self) -> None:
        self.lives: dict[str, Life] = {}
        self.snapshots: dict[str, tuple[Kept, There]] = {}
        self.templates: dict[str, There] = {}
        self.unanswered = 0
        """Sandboxes of which nobody has heard and which may be there all the same."""
        self.violations: list[str] = []

    @staticmethod
    def merged(parts: Collection[Oracle]) -> Oracle:
        """All of them as one."""
        whole = Oracle()
        for part in parts:
            whole.lives |= part.lives
            whole.snapshots |= part.snapshots
            whole.templates |= part.templates
            whole.unanswered += part.unanswered
            whole.violations += part.violations
        return whole

    # What was begun and answered

    def create_begun(self, count: int = 1) -> None:
        self.unanswered += count

    def created(self, sandbox_id: str, kept: Kept | None = None, count: int = 1) -> None:
        """One of those that were begun; `kept`: what it was made of."""
        self.unanswered -= count
        self.lives[sandbox_id] = Life(kept.copy() if kept is not None else Kept())

    def refused(self, count: int = 1) -> None:
        """The server said that it did not make it."""
        self.unanswered -= count

    def write_begun(self, sandbox_id: str, path: str, content: str | None) -> None:
        self.lives[sandbox_id].kept.files.setdefault(path, {None}).add(content)

    def written(self, sandbox_id: str, path: str, content: str | None) -> None:
        self.lives[sandbox_id].kept.files[path] = {content}

    def may_be_written(self, sandbox_id: str, path: str) -> bool:
        """Not while an earlier write may still arrive."""
        return len(self.lives[sandbox_id].kept.files.get(path, {None})) == 1

    def command_began(self, sandbox_id: str, pid: int) -> None:
        self.lives[sandbox_id].commands.add(pid)

    def pause_begun(self, sandbox_id: str, *, with_memory: bool) -> None:
        life = self.lives[sandbox_id]
        life.states = {RUNNING, PAUSED}
        if not with_memory:
            life.commands.clear()

    def paused(self, sandbox_id: str) -> None:
        self.lives[sandbox_id].states = {PAUSED}

    def resume_begun(self, sandbox_id: str, *, by_boot: bool) -> None:
        self.pause_begun(sandbox_id, with_memory=not by_boot)

    def resumed(self, sandbox_id: str) -> None:
        self.lives[sandbox_id].states = {RUNNING}

    def unsettled(self, sandbox_id: str) -> None:
        """A pause or resume had no answer: whichever it is, its commands may have ended with a boot."""
        self.lives[sandbox_id].states = {RUNNING, PAUSED}
        self.lives[sandbox_id].commands.clear()

    def end_begun(self, sandbox_id: str) -> None:
        self.lives[sandbox_id].there = There.MAYBE

    def ended(self, sandbox_id: str) -> None:
        self.lives[sandbox_id].there = There.NO

    def snapshot_taken(self, snapshot_id: str, kept: Kept) -> None:
        self.snapshots[snapshot_id] = (kept.copy(), There.YES)

    def snapshot_end_begun(self, snapshot_id: str) -> None:
        self.snapshots[snapshot_id] = (self.snapshots[snapshot_id][0], There.MAYBE)

    def snapshot_ended(self, snapshot_id: str) -> None:
        self.snapshots[snapshot_id] = (self.snapshots[snapshot_id][0], There.NO)

    # What was found

    def saw_listed(self, listed: Mapping[str, str]) -> list[str]:
        """Id → state, of all that the server lists. What is wrong with it; nothing is kept, for it may converge."""
        wrong = []
        for sandbox_id, life in self.lives.items():
            state = listed.get(sandbox_id)
            if life.there is There.YES and state is None:
                wrong.append(f"{sandbox_id} was acknowledged and is not listed")
            elif life.there is There.NO and state is not None:
                wrong.append(f"{sandbox_id} was ended and is listed as {state}")
            elif state is not None and state not in life.states:
                wrong.append(f"{sandbox_id} is {state}, and was last known to be {' or '.join(sorted(life.states))}")
        strangers = listed.keys() - self.lives.keys()
        if len(strangers) > self.unanswered:
            wrong.append(f"{len(strangers)} that nobody was told of, of {self.unanswered} creates without an answer")
        return wrong

    def saw_gone(self, sandbox_id: str) -> None:
        """The server said that there is no such sandbox."""
        life = self.lives[sandbox_id]
        if life.there is There.YES:
            self.violations.append(f"{sandbox_id} was acknowledged, and the server says that it does not exist")
        life.there = There.NO

    def saw_file(self, sandbox_id: str, path: str, content: str | None) -> None:
        """None: there is no such file."""
        self._compare(f"{sandbox_id}:{path}", self.lives[sandbox_id].kept.files.get(path, {None}), content)

    def _compare(self, what: str, may_be: Collection[str | None], content: str | None) -> None:
        if content not in may_be:
            known = " or ".join(repr(one) for one in may_be)
            self.violations.append(f"{what} holds {content!r:.80}, and {known:.200} was acknowledged")

    def saw_log(self, sandbox_id: str, lines: Sequence[str]) -> None:
        """The file to which a program appends 1, 2, 3, …: none is missing, none comes twice, none is gone again.

        Of a line that a full disk refused there may be the beginning, up to the end of a block, before the whole.
        """
        kept = self.lives[sandbox_id].kept
        gap = next((at for at, line in enumerate(lines) if not _is_line(line, str(at + 1))), None)
        if gap is not None:
            there = " ".join(lines[max(0, gap - 3) : gap + 4])
            self.violations.append(f"the log of {sandbox_id} has a gap at line {gap + 1} of {len(lines)}: {there}")
        elif len(lines) < kept.logged:
            self.violations.append(f"the log of {sandbox_id} ends at {len(lines)}, and {kept.logged} were seen before")
        kept.logged = max(kept.logged, len(lines))

    def saw_commands(self, sandbox_id: str, pids: Collection[int]) -> None:
        """Those that run."""
        life = self.lives[sandbox_id]
        if missing := life.commands - set(pids):
            self.violations.append(f"commands {sorted(missing)} of {sandbox_id} have ended by themselves")
            life.commands -= missing

    def saw_snapshots(self, listed: Collection[str]) -> list[str]:
        """As `saw_listed`. A snapshot whose answer was cut off is there or not."""
        there = {snapshot_id: there for snapshot_id, (_, there) in self.snapshots.items()}
        wrong = [f"snapshot {one} is not listed" for one in there if there[one] is There.YES and one not in listed]
        return wrong + [f"snapshot {one} was deleted and is listed" for one in listed if there.get(one) is There.NO]


def _is_line(found: str, whole: str) -> bool:
    return found.endswith(whole) and whole.startswith(found.removesuffix(whole))
