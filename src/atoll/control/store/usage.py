"""How many sandboxes a team had at once and started, over time: counted by the database from the sandboxes' rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Integer, and_, cast, extract, func, literal, or_, select, union_all

from atoll.control.store.database import Database
from atoll.control.store.schema import sandboxes
from atoll.model.sandbox import EndReason


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time in which something began or ended; `at` is its first Unix second."""

    at: int
    started: int
    change: int
    """Started less ended."""
    peak: int
    """The most at once after any of its seconds, counted from the beginning of the whole span."""


class UsageTables:
    """Part of the Store, on its database. A sandbox whose create failed never was one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def alive_at(self, team_id: str, second: int) -> int:
        """How many there were just before that Unix second."""
        statement = select(func.count()).where(
            _was_one(team_id),
            sandboxes.c.started_at < _moment(second),
            or_(sandboxes.c.ended_at.is_(None), sandboxes.c.ended_at >= _moment(second)),
        )
        rows = await self._database.survey(statement)
        return int(rows[0]["count_1"])

    async def stretches(self, team_id: str, start: int, end: int, length: int) -> list[Stretch]:
        """From `start` to `end` (Unix seconds, both included) in stretches of `length` seconds; the eventless left out.

        Two hops of arithmetic, both in the database, so that a busy week comes back as a few rows: what changed in
        each second, summed up over time; and of that the highest point in each stretch.
        """
        begun = _second(sandboxes.c.started_at)
        ended = _second(sandboxes.c.ended_at)
        moments = union_all(
            select(begun.label("at"), literal(1).label("started"), literal(1).label("change")).where(
                _was_one(team_id), _within(sandboxes.c.started_at, start, end)
            ),
            select(ended.label("at"), literal(0).label("started"), literal(-1).label("change")).where(
                _was_one(team_id), _within(sandboxes.c.ended_at, start, end)
            ),
        ).subquery()
        seconds = (
            select(
                moments.c.at,
                func.sum(moments.c.started).label("started"),
                func.sum(moments.c.change).label("change"),
                func.sum(func.sum(moments.c.change)).over(order_by=moments.c.at).label("level"),
            )
            .group_by(moments.c.at)
            .subquery()
        )
        stretch = (seconds.c.at - (seconds.c.at - start) % length).label("stretch")
        statement = (
            select(
                stretch,
                func.sum(seconds.c.started).label("started"),
                func.sum(seconds.c.change).label("change"),
                func.max(seconds.c.level).label("peak"),
            )
            .group_by(stretch)
            .order_by(stretch)
        )
        rows = await self._database.survey(statement)
        return [Stretch(int(r["stretch"]), int(r["started"]), int(r["change"]), int(r["peak"])) for r in rows]


def _was_one(team_id: str) -> ColumnElement[bool]:
    failed = sandboxes.c.end_reason == EndReason.CREATE_FAILED.value
    return and_(sandboxes.c.team_id == team_id, or_(sandboxes.c.end_reason.is_(None), ~failed))


def _within(moment: ColumnElement[Any], start: int, end: int) -> ColumnElement[bool]:
    return and_(moment >= _moment(start), moment < _moment(end + 1))


def _moment(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def _second(moment: ColumnElement[Any]) -> ColumnElement[int]:
    """A moment as whole Unix seconds, on SQLite and PostgreSQL alike: only the latter's have a fraction."""
    seconds = extract("epoch", moment)
    return cast(seconds - seconds % 1, Integer)
