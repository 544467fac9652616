"""What the pool of waiting children should be, and the next step towards it. Decides only: no process, no clock.

    demand (what was asked for last) ──► shares: how many children should be booted for which key
    children there are + shares ──► next_step: Park a new one · Boot a parked one for a key · Drop a useless one · None

A booted child has the root and the limits of one key and serves that key only; a parked one fits any.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)
KeyOut = TypeVar("KeyOut", bound=Hashable, covariant=True)


class Member(Protocol[KeyOut]):
    """A child of the pool, or on its way into it."""

    @property
    def key(self) -> KeyOut | None:
        """What its root was made for; None while it fits everything."""
        ...

    @property
    def is_ready(self) -> bool:
        """False while it is on its way to the state that it is in the pool for."""
        ...


class Demand(Generic[Key]):
    """What was asked for last: the next create will most likely need it again."""

    def __init__(self, remembered: int = 8) -> None:
        self._asked: deque[Key] = deque(maxlen=remembered)

    def note(self, key: Key) -> None:
        """A create asked for it."""
        self._asked.append(key)

    def forget(self, key: Key) -> None:
        """It cannot be made ahead. The next create that asks for it gets the reason."""
        self._asked = deque((one for one in self._asked if one != key), self._asked.maxlen)

    def shares(self, size: int, booted: Mapping[Key | None, int]) -> dict[Key, int]:
        """How many of a pool of `size` should be booted for what: two thirds for what is asked for most, the rest for
        the next.

        What is there already counts for it: several that are asked for in turn must not drive each other out.
        """
        asked = Counter(self._asked)
        most = sorted(asked, key=lambda key: asked[key] + booted.get(key, 0), reverse=True)[:2]
        if len(most) < 2:
            return dict.fromkeys(most, size)
        return {most[0]: size - size // 3, most[1]: size // 3}


Child = TypeVar("Child", bound=Member[Hashable])


@dataclass(frozen=True, slots=True)
class Park:
    """Fork one more."""


@dataclass(frozen=True, slots=True)
class Boot(Generic[Child, Key]):
    """Send a parked child into a root made for `key`."""

    child: Child
    key: Key


@dataclass(frozen=True, slots=True)
class Drop(Generic[Child]):
    """End a child that serves nothing that is asked for."""

    child: Child


def next_step(
    size: int,
    demand: Demand[Key],
    members: Sequence[Child],
    *,
    may_park: bool = True,
    may_boot: Callable[[Key], bool] = lambda key: True,
) -> Park | Boot[Child, Key] | Drop[Child] | None:
    """What brings the pool nearer to what it should be; None: it is that, or has to wait.

    Args:
        size: how many children should wait.
        members: all that wait or are on their way to it.
        may_park: False after forks that failed.
        may_boot: False for a key whose root cannot be made now.
    """
    if len(members) < size and may_park:
        return Park()
    booted: Counter[Hashable] = Counter(member.key for member in members)
    shares = demand.shares(size, booted)  # type: ignore[arg-type]
    lacking = next((key for key, share in shares.items() if booted[key] < share and may_boot(key)), None)
    if lacking is None:
        return None
    ready = [member for member in members if member.is_ready]
    if (plain := next((member for member in ready if member.key is None), None)) is not None:
        return Boot(plain, lacking)
    # One on its way will do as well: it is not worth the end of another.
    if any(member.key is None for member in members):
        return None
    share_of: Mapping[Any, int] = shares
    useless = (member for member in ready if booted[member.key] > share_of.get(member.key, 0))
    return Drop(found) if (found := next(useless, None)) is not None else None


def candidates(key: Hashable, members: Iterable[Child], *, booted_only: bool = False) -> list[Child]:
    """Those that can become a sandbox of `key`: the further they are on their way, the earlier in the list."""

    def distance(member: Child) -> int:
        return (0 if member.is_ready else 1) + (0 if member.key is not None else 2)

    usable = (member for member in members if member.key == key or (member.key is None and not booted_only))
    return sorted(usable, key=distance)
