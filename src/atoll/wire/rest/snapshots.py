"""Snapshots and forks of sandboxes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from atoll.wire.rest.base import In, Out
from atoll.wire.rest.sandboxes import Sandbox


class NewSnapshot(In):
    """POST /sandboxes/{id}/snapshots."""

    name: Annotated[str, Field(max_length=400)] | None = None
    memory: bool | None = None


class Snapshot(Out):
    """Its answer, and one of GET /snapshots."""

    snapshot_id: str = Field(serialization_alias="snapshotID")
    names: list[str]


class NewFork(In):
    """POST /sandboxes/{id}/fork. `timeout`: seconds."""

    timeout: int = Field(default=15, ge=0)
    count: int = 1


class ForkError(Out):
    """Why one of them was not made."""

    code: int
    message: str


class Fork(Out):
    """One of its answer: either of both."""

    sandbox: Sandbox | None = None
    error: ForkError | None = None
