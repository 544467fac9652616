"""Finding a team's sandboxes in the store, one or a page of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from atoll.control.access.auth import Caller
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.ids import plain_id
from atoll.control.sandboxes.listing import ListQuery, Page, select_page
from atoll.control.store import Store
from atoll.model.errors import SandboxNotFound
from atoll.model.sandbox import SandboxRecord, SandboxState

VISIBLE = (SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING)
"""The states in which the API shows a sandbox. One that is being made or ended is not there for a caller."""


_RUNS = (SandboxState.RUNNING, SandboxState.PAUSING)


def lost(record: SandboxRecord) -> SandboxNotFound:
    """Of one that nobody can reach."""
    detail = f"it is lost, for its node {record.node_id!r} does not answer; it is there again if that returns"
    return SandboxNotFound(record.sandbox_id, detail)


class SandboxLookup:
    """Read-only: every answer comes from the store, and a caller sees only what belongs to its team."""

    def __init__(self, store: Store, nodes: NodeRegistry) -> None:
        self._store = store
        self._nodes = nodes

    async def get(self, caller: Caller, sandbox_id: str, *, lost_too: bool = False) -> SandboxRecord:
        """Raises SandboxNotFound: unknown, another team's, ended, or lost."""
        record = await self.get_any(caller, sandbox_id)
        if record.state not in VISIBLE:
            raise SandboxNotFound(sandbox_id[:100])
        if not lost_too and self.is_lost(record):
            raise lost(record)
        return record

    def is_lost(self, record: SandboxRecord) -> bool:
        """It ran, and its node does not answer any more: nobody can say that it runs."""
        return record.state in _RUNS and self._nodes.is_lost(record.node_id)

    async def get_any(self, caller: Caller, sandbox_id: str) -> SandboxRecord:
        """In whatever state it is, ended too while its row is kept. Raises SandboxNotFound: unknown, another team's."""
        plain = plain_id(sandbox_id)
        record = await self._store.find(plain) if plain is not None else None
        if record is None or record.team_id != caller.team_id:
            raise SandboxNotFound(sandbox_id[:100])
        return record

    async def get_those(self, caller: Caller, sandbox_ids: Collection[str]) -> dict[str, SandboxRecord]:
        """Of a few ids those that are the team's, in whatever state they are."""
        found = await self._store.find_all(sandbox_ids)
        return {sandbox_id: record for sandbox_id, record in found.items() if record.team_id == caller.team_id}

    async def page(self, caller: Caller, query: ListQuery) -> Page:
        """One page of the team's sandboxes, without what is secret of them (`Store.listed`)."""
        found = await self._store.listed(VISIBLE, caller.team_id)
        return select_page([record for record in found if not self.is_lost(record)], query)

    def unenforced(self, record: SandboxRecord) -> Sequence[str]:
        """The limits that it does not keep, where its node or tier cannot."""
        node = self._nodes.find(record.node_id)
        return node.unenforced(record.tier) if node is not None else ()
