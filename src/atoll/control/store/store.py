"""The store: one row per sandbox; `keys` and `events` are further tables, `usage` counts. Every write is one statement.

Reads and writes are typed in the model's words. Decides nothing, but does enforce the lifecycle table: a transition is
an UPDATE that only matches a row whose state allows it, so two that race cannot both win.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from sqlalchemy import RowMapping, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from atoll.control.store.database import Database, open_database
from atoll.control.store.events import EventTables
from atoll.control.store.keys import KeyTables
from atoll.control.store.layers import LayerTables
from atoll.control.store.nodes import NodeTables
from atoll.control.store.schema import sandboxes
from atoll.control.store.secrets import SecretTables
from atoll.control.store.templates import TemplateTables
from atoll.control.store.usage import UsageTables
from atoll.control.store.volumes import VolumeTables
from atoll.model.errors import Conflict
from atoll.model.lifecycle import TRANSITIONS
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import EndReason, Limits, PauseMode, SandboxRecord, SandboxState
from atoll.model.sealing import Seal
from atoll.model.volume import VolumeMount

_FROM: Mapping[SandboxState, tuple[str, ...]] = {
    target: tuple(state.value for state, allowed in TRANSITIONS.items() if target in allowed) for target in SandboxState
}


_NOT_LIVING = (SandboxState.CREATING.value, SandboxState.KILLING.value, SandboxState.ENDED.value)

# The statements of the hot path, built once.
_INSERT = insert(sandboxes)
_RUNNING = (
    update(sandboxes)
    .where(sandboxes.c.sandbox_id == bindparam("target_id"), sandboxes.c.state == SandboxState.CREATING.value)
    .values(state=SandboxState.RUNNING.value, tier=bindparam("new_tier"))
)
_KILLING = (
    update(sandboxes)
    .where(sandboxes.c.sandbox_id == bindparam("target_id"), sandboxes.c.state.in_(_FROM[SandboxState.KILLING]))
    .values(state=SandboxState.KILLING.value, end_reason=bindparam("new_reason"))
)
_KILLING_IF_DUE = _KILLING.where(sandboxes.c.end_at <= bindparam("due_by")).returning(sandboxes)
_KILLING_NOW = _KILLING.returning(sandboxes)
_ENDED = (
    update(sandboxes)
    .where(sandboxes.c.sandbox_id == bindparam("target_id"), sandboxes.c.state.in_(_FROM[SandboxState.ENDED]))
    .values(state=SandboxState.ENDED.value, end_reason=bindparam("new_reason"), ended_at=bindparam("new_ended_at"))
)
_ENDED_WITHOUT_KEY = _ENDED.values(idempotency_key=None, request_digest=None)
_FIND = select(sandboxes).where(sandboxes.c.sandbox_id == bindparam("target_id"))
_SECRET = ("env_vars", "envd_access_token", "traffic_access_token", "network")
_LISTED = select(*(column for column in sandboxes.c if column.name not in _SECRET)).where(
    sandboxes.c.team_id == bindparam("target_team"), sandboxes.c.state.in_(bindparam("states", expanding=True))
)
_FIND_ALL = select(sandboxes).where(sandboxes.c.sandbox_id.in_(bindparam("target_ids", expanding=True)))


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A create call's Idempotency-Key and a digest of its body."""

    key: str
    request_digest: str


class Store:
    """`async with Store(url) as store:` opens and migrates; leaving closes.

    Entering raises InvalidRequest (a URL that cannot be used, a database newer than this Atoll).
    """

    def __init__(self, url: str, seal: Seal | None = None, *, alone: bool = False) -> None:
        """`seal`: in which secrets, tokens, environments and egress rules' values are kept; None: as they are.

        `alone`: a control plane's own, which no other may use meanwhile.
        """
        self._url = url
        self._alone = alone
        self._seal = seal or Seal()
        self._database: Database
        self.keys: KeyTables
        self.events: EventTables
        self.secrets: SecretTables
        self.templates: TemplateTables
        self.layers: LayerTables
        self.usage: UsageTables
        self.volumes: VolumeTables
        self.nodes: NodeTables

    async def __aenter__(self) -> Self:
        self._database = await open_database(self._url, self._seal, alone=self._alone)
        self.keys = KeyTables(self._database)
        self.events = EventTables(self._database, self._seal)
        self.secrets = SecretTables(self._database, self._seal)
        self.templates = TemplateTables(self._database, self._seal)
        self.layers = LayerTables(self._database)
        self.usage = UsageTables(self._database)
        self.volumes = VolumeTables(self._database, self._seal)
        self.nodes = NodeTables(self._database)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.aclose()

    # Sandboxes

    async def add(
        self, record: SandboxRecord, idempotency: Idempotency | None = None, *, volatile: bool = False
    ) -> None:
        """`volatile`: a power cut of this machine ends it for good. Raises Conflict when the id or the idempotency key
        is taken."""
        row = _to_row(record, self._seal)
        if idempotency is not None:
            row |= {"idempotency_key": idempotency.key, "request_digest": idempotency.request_digest}
        try:
            await self._database.write(_INSERT, row, volatile=volatile)
        except IntegrityError as error:
            raise Conflict(f"sandbox {record.sandbox_id!r} or its idempotency key exists already") from error

    async def settle(self) -> None:
        """What was written before is on the machine's disk when this returns."""
        await self._database.settle()

    @property
    def in_order(self) -> bool:
        """Whether what is begun earlier is done earlier."""
        return self._database.in_order

    async def running(self, sandbox_id: str, tier: str) -> bool:
        """A create is done. False: it ended meanwhile."""
        values = {"target_id": sandbox_id, "new_tier": tier}
        return bool(await self._database.write(_RUNNING, values, volatile=True))

    async def transition(
        self, sandbox_id: str, target: SandboxState, *, of_generation: int | None = None, **changes: Any
    ) -> bool:
        """Moves a sandbox to `target` and sets the columns in `changes`. False: unknown, or its state forbids it.

        `of_generation`: also if it was moved to another node since that one.
        """
        statement = (
            update(sandboxes)
            .where(sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state.in_(_FROM[target]))
            .values(state=target.value, **changes)
        )
        if of_generation is not None:
            statement = statement.where(sandboxes.c.generation == of_generation)
        return bool(await self._database.write(statement))

    async def set_state(self, sandbox_id: str, state: SandboxState) -> None:
        """What its node says of one that is neither being made nor ended, whatever was written."""
        where = sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state.not_in(_NOT_LIVING)
        await self._database.write(update(sandboxes).where(*where).values(state=state.value))

    async def set_kept_image(self, record: SandboxRecord, image_id: str) -> bool:
        """What an object store has of a paused one. False: it is not paused any more, or has run since."""
        where = (
            sandboxes.c.sandbox_id == record.sandbox_id,
            sandboxes.c.state == SandboxState.PAUSED.value,
            sandboxes.c.generation == record.generation,
            sandboxes.c.started_at == record.started_at,  # each resume sets it anew
        )
        return bool(await self._database.write(update(sandboxes).where(*where).values(kept_image=image_id)))

    async def keep_as_paused(self, record: SandboxRecord, image_id: str) -> bool:
        """One whose node is gone is paused from now on, with what an object store has of it. False: it was moved."""
        where = sandboxes.c.sandbox_id == record.sandbox_id, sandboxes.c.generation == record.generation
        states = [one.value for one in (SandboxState.RUNNING, SandboxState.PAUSING)]
        values = {"state": SandboxState.PAUSED.value, "pause_mode": PauseMode.FILESYSTEM.value, "kept_image": image_id}
        statement = update(sandboxes).where(*where, sandboxes.c.state.in_(states)).values(**values)
        return bool(await self._database.write(statement))

    async def set_pause_mode(self, sandbox_id: str, mode: PauseMode) -> None:
        """What is kept of a paused one."""
        where = sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state == SandboxState.PAUSED.value
        await self._database.write(update(sandboxes).where(*where).values(pause_mode=mode.value))

    async def move(self, record: SandboxRecord, node_id: str, kept_image: str | None) -> bool:
        """To RESUMING on another node, with the next generation, unless it was moved or ended meanwhile.

        `kept_image`: of what an object store has it is begun there; None: of its template.

        False: not done. This is what makes it run on one node only: of two that would move it one does.
        """
        living = (SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING)
        statement = (
            update(sandboxes)
            .where(
                sandboxes.c.sandbox_id == record.sandbox_id,
                sandboxes.c.generation == record.generation,
                sandboxes.c.state.in_([state.value for state in living]),
            )
            .values(
                state=SandboxState.RESUMING.value,
                node_id=node_id,
                generation=record.generation + 1,
                kept_image=kept_image,
            )
        )
        return bool(await self._database.write(statement))

    async def begin_pause(self, sandbox_id: str, mode: PauseMode, due_by: datetime | None) -> bool:
        """To PAUSING, unless `due_by` is given and its end has meanwhile been put off beyond that. False: not done."""
        statement = (
            update(sandboxes)
            .where(sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state == SandboxState.RUNNING.value)
            .values(state=SandboxState.PAUSING.value, pause_mode=mode.value)
        )
        if due_by is not None:
            statement = statement.where(sandboxes.c.end_at <= due_by)
        return bool(await self._database.write(statement))

    async def begin_kill(self, sandbox_id: str, reason: EndReason, due_by: datetime | None) -> SandboxRecord | None:
        """To KILLING, unless `due_by` is given and its end has meanwhile been put off beyond that. None: not done."""
        values: dict[str, Any] = {"target_id": sandbox_id, "new_reason": reason.value}
        if due_by is None:
            rows = await self._database.read(_KILLING_NOW, values, volatile=True)
        else:
            rows = await self._database.read(_KILLING_IF_DUE, values | {"due_by": due_by}, volatile=True)
        return self._to_record(rows[0]) if rows else None

    async def end(self, sandbox_id: str, reason: EndReason, at: datetime, *, free_key: bool = False) -> bool:
        """To ENDED. `free_key` lets its idempotency key be used again."""
        values = {"target_id": sandbox_id, "new_reason": reason.value, "new_ended_at": at}
        return bool(await self._database.write(_ENDED_WITHOUT_KEY if free_key else _ENDED, values))

    async def set_end_at(self, sandbox_id: str, end_at: datetime) -> bool:
        """False: unknown or not running."""
        statement = (
            update(sandboxes)
            .where(sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state == SandboxState.RUNNING.value)
            .values(end_at=end_at)
        )
        return bool(await self._database.write(statement))

    async def set_network(self, sandbox_id: str, network: NetworkPolicy) -> bool:
        """False: unknown or not running."""
        statement = (
            update(sandboxes)
            .where(sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state == SandboxState.RUNNING.value)
            .values(network=self._seal.close_rules(network).as_json(), allow_internet_access=network.allow_internet)
        )
        return bool(await self._database.write(statement))

    async def find(self, sandbox_id: str) -> SandboxRecord | None:
        """In whatever state it is, ended too."""
        rows = await self._database.read(_FIND, {"target_id": sandbox_id})
        return self._to_record(rows[0]) if rows else None

    async def find_all(self, sandbox_ids: Collection[str]) -> dict[str, SandboxRecord]:
        """By id, in whatever state they are; those that are not there are left out. A few hundred at most."""
        rows = await self._database.read(_FIND_ALL, {"target_ids": list(sandbox_ids)})
        return {row["sandbox_id"]: self._to_record(row) for row in rows}

    async def find_by_idempotency_key(self, team_id: str, key: str) -> tuple[SandboxRecord, str] | None:
        """The sandbox that this key made, and the digest of the request that did it."""
        statement = select(sandboxes).where(sandboxes.c.team_id == team_id, sandboxes.c.idempotency_key == key)
        rows = await self._database.read(statement)
        return (self._to_record(rows[0]), rows[0]["request_digest"]) if rows else None

    async def in_states(self, states: Sequence[SandboxState], team_id: str | None = None) -> list[SandboxRecord]:
        """In no particular order."""
        statement = select(sandboxes).where(sandboxes.c.state.in_([state.value for state in states]))
        if team_id is not None:
            statement = statement.where(sandboxes.c.team_id == team_id)
        rows = await self._database.read(statement)
        return [self._to_record(row) for row in rows]

    async def listed(self, states: Sequence[SandboxState], team_id: str) -> list[SandboxRecord]:
        """As `in_states`, for showing many: without tokens, environments and networks, which are as if not given."""
        values = {"target_team": team_id, "states": [state.value for state in states]}
        return [SandboxRecord(**_plain(row)) for row in await self._database.read(_LISTED, values)]

    def _to_record(self, row: RowMapping) -> SandboxRecord:
        return _to_record(row, self._seal)

    async def forget_ended(self, before: datetime) -> int:
        """Deletes the rows of sandboxes that ended before then; returns how many."""
        statement = delete(sandboxes).where(
            sandboxes.c.state == SandboxState.ENDED.value, sandboxes.c.ended_at < before
        )
        return await self._database.write(statement)


def _to_row(record: SandboxRecord, seal: Seal) -> dict[str, Any]:
    return {
        "sandbox_id": record.sandbox_id,
        "team_id": record.team_id,
        "template_id": record.template_id,
        "template_alias": record.template_alias,
        "node_id": record.node_id,
        "tier": record.tier,
        "state": record.state.value,
        "started_at": record.started_at,
        "end_at": record.end_at,
        "cpu_count": record.limits.cpu_count,
        "memory_mib": record.limits.memory_mib,
        "disk_mib": record.limits.disk_mib,
        "pids": record.limits.pids,
        "metadata": dict(record.metadata),
        "env_vars": seal.close_map(record.env_vars),
        "envd_access_token": seal.close_token(record.envd_access_token),
        "traffic_access_token": seal.close_token(record.traffic_access_token),
        "allow_internet_access": record.network.allow_internet,
        "network": seal.close_rules(record.network).as_json(),
        "auto_pause": record.auto_pause,
        "auto_pause_memory": record.auto_pause_memory,
        "auto_resume": record.auto_resume,
        "pause_mode": record.pause_mode.value if record.pause_mode is not None else None,
        "guest_answered": record.guest_answered,
        "mask_request_host": record.mask_request_host,
        "volumes": [mount.as_json() for mount in record.volumes] or None,
        "generation": record.generation,
        "kept_image": record.kept_image,
        "ended_at": record.ended_at,
        "end_reason": record.end_reason.value if record.end_reason is not None else None,
    }


def _to_network(row: RowMapping, seal: Seal) -> NetworkPolicy:
    if row["network"] is None:
        return NetworkPolicy(allow_internet=row["allow_internet_access"])
    kept = NetworkPolicy.from_json(row["network"])
    return seal.open_rules(kept) if kept.rules else kept


def _to_record(row: RowMapping, seal: Seal) -> SandboxRecord:
    return SandboxRecord(
        **_plain(row),
        env_vars=seal.open_map(row["env_vars"]),
        envd_access_token=seal.open_token(row["envd_access_token"]),
        traffic_access_token=seal.open_token(row["traffic_access_token"]),
        network=_to_network(row, seal),
    )


def _plain(row: RowMapping) -> dict[str, Any]:
    """All of a record that is not sealed."""
    return {
        "sandbox_id": row["sandbox_id"],
        "team_id": row["team_id"],
        "template_id": row["template_id"],
        "template_alias": row["template_alias"],
        "node_id": row["node_id"],
        "tier": row["tier"],
        "state": SandboxState(row["state"]),
        "started_at": row["started_at"],
        "end_at": row["end_at"],
        "limits": Limits(row["cpu_count"], row["memory_mib"], row["disk_mib"], row["pids"]),
        "metadata": row["metadata"],
        "auto_pause": row["auto_pause"],
        "auto_pause_memory": row["auto_pause_memory"],
        "auto_resume": row["auto_resume"],
        "pause_mode": PauseMode(row["pause_mode"]) if row["pause_mode"] is not None else None,
        "guest_answered": row["guest_answered"],
        "mask_request_host": row["mask_request_host"],
        "volumes": tuple(VolumeMount.from_json(mount) for mount in row["volumes"] or ()),
        "generation": row["generation"],
        "kept_image": row["kept_image"],
        "ended_at": row["ended_at"],
        "end_reason": EndReason(row["end_reason"]) if row["end_reason"] is not None else None,
    }
