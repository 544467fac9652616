"""`atoll recover`: what the next start makes of a data directory; and a database that does not fit, accepted.

Without `--yes` it only looks. With it, sandboxes that the database does not know are added to a team, with a timeout
that pauses them, and `state-mark` is forgotten. It ends nothing and removes nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from atoll.cli import running
from atoll.config import Settings
from atoll.control import state_mark
from atoll.control.access.auth import DEFAULT_TEAM_ID
from atoll.control.clock import SystemClock
from atoll.control.sandboxes.reconciliation import batched
from atoll.control.store import Store
from atoll.isolation import directory
from atoll.isolation.directory import Newer, Recorded
from atoll.model.errors import Conflict, NotFound
from atoll.model.sandbox import SandboxRecord, SandboxState
from atoll.model.sealing import Seal, kept_key
from atoll.node.adoption import Fate, fate
from atoll.server.plan import control_dir, database_url

ADDED_FOR = timedelta(hours=1)
"""The timeout of one that is added. It is paused then, not ended."""
NODE = "local"

_WORDS = {
    Fate.ADOPT: "runs, or is ended as lost if its process is gone",
    Fate.KEEP: "stays paused",
    Fate.SETTLE: "was being paused or resumed: it runs if its guest answers, else it is paused",
    Fate.END: "was being made or ended: it is ended",
    Fate.LEAVE: "is left alone",
    Fate.DISCARD: "was never finished: it is removed",
}
_KEPT = (Fate.ADOPT, Fate.KEEP, Fate.SETTLE)


@dataclass(frozen=True, slots=True)
class Line:
    """What is so, and what becomes of it."""

    subject: str
    what: str
    needs_yes: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """All of it."""

    lines: tuple[Line, ...]
    unknown: tuple[Recorded, ...]
    """Sandboxes that the database does not know."""


def recover(settings: Settings, *, yes: bool, team: str | None) -> list[Line]:
    """What there is; done, if `yes`. Raises Conflict (a server runs), NotFound (no such team), OSError."""
    if running.find(settings.data_dir) is not None:
        raise Conflict(f"a server runs on {settings.data_dir}: it has recovered what there was", hint="stop it first")
    with running.exclusive(settings.data_dir):
        return asyncio.run(_recover(settings, yes=yes, team=team))


async def _recover(settings: Settings, *, yes: bool, team: str | None) -> list[Line]:
    control = control_dir(settings.data_dir)
    control.mkdir(mode=0o700, parents=True, exist_ok=True)
    seal = Seal(kept_key(settings.data_dir / "secret-key"))
    mark = control / "state-mark"
    async with Store(database_url(settings), seal) as store:
        found = await look(settings.data_dir, store, mark, seal)
        if yes:
            team_id = await _team(store, team)
            for one in found.unknown:
                await store.add(_row(one, team_id, seal))
            mark.unlink(missing_ok=True)
    return list(found.lines)


async def look(data_dir: Path, store: Store, mark: Path, seal: Seal) -> Found:
    """What the next start makes of it; nothing is touched. Raises OSError."""
    place = data_dir / "sandboxes"
    there = (
        {path.name: directory.read(path, seal.open_spec) for path in sorted(place.iterdir())} if place.is_dir() else {}
    )
    known = {one for some in batched(there) for one in await store.find_all(some)}
    lines: list[Line] = []
    unknown: list[Recorded] = []
    marked, newest = state_mark.read(mark), await store.events.newest()
    if newest < (marked or 0):
        what = f"ends at event {newest}, {marked} was seen: no server starts on it before it is accepted"
        lines.append(Line("the database", what, needs_yes=True))
    for sandbox_id, one in there.items():
        becomes = fate(one)
        if isinstance(one, Recorded) and sandbox_id not in known and becomes in _KEPT:
            unknown.append(one)
            what = f"is {one.state.state.value}, and the database does not know it: it is added"
            lines.append(Line(sandbox_id, what, needs_yes=True))
        elif isinstance(one, Newer):
            lines.append(Line(sandbox_id, f"is left alone: its record is of version {one.version}"))
        else:
            lines.append(Line(sandbox_id, _WORDS[becomes]))
    living = [state for state in SandboxState if state is not SandboxState.ENDED]
    gone = {record.sandbox_id for record in await store.in_states(living) if record.node_id == NODE} - there.keys()
    lines += [Line(sandbox_id, "has no directory: it is ended as lost") for sandbox_id in sorted(gone)]
    return Found(tuple(lines), tuple(unknown))


async def _team(store: Store, name: str | None) -> str:
    teams = await store.keys.teams()
    found = [one.team_id for one in teams if name in (one.team_id, one.name)] if name else [DEFAULT_TEAM_ID]
    if len(found) != 1:
        raise NotFound(f"{len(found)} teams are called {name!r}", hint="see `atoll team list`")
    return found[0]


def _row(one: Recorded, team_id: str, seal: Seal) -> SandboxRecord:
    spec, now = one.spec, SystemClock().now()
    is_paused = one.state.state is SandboxState.PAUSED
    return SandboxRecord(
        sandbox_id=spec.sandbox_id,
        team_id=team_id,
        template_id=spec.template_id,
        template_alias=None,
        node_id=NODE,
        tier=one.state.tier,
        state=SandboxState.PAUSED if is_paused else SandboxState.RUNNING,
        started_at=now,
        end_at=now + ADDED_FOR,
        limits=spec.limits,
        env_vars=spec.env_vars,
        envd_access_token=spec.access_token,
        traffic_access_token=spec.traffic_access_token,
        network=seal.open_rules(one.network),
        auto_pause=True,
        pause_mode=one.state.paused.mode if is_paused and one.state.paused is not None else None,
        mask_request_host=spec.mask_request_host,
    )
