"""Teams and their metrics."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from atoll.wire.rest.base import Out


class Team(Out):
    """GET /teams."""

    team_id: str = Field(serialization_alias="teamID")
    name: str
    api_key: str = Field(serialization_alias="apiKey")
    is_default: bool = Field(default=True, serialization_alias="isDefault")


class TeamMetric(Out):
    """A stretch of time of GET /teams/{id}/metrics; sandboxes started per second."""

    timestamp: datetime
    timestamp_unix: int = Field(serialization_alias="timestampUnix")
    concurrent_sandboxes: int = Field(serialization_alias="concurrentSandboxes")
    sandbox_start_rate: float = Field(serialization_alias="sandboxStartRate")


class MaxTeamMetric(Out):
    """GET /teams/{id}/metrics/max."""

    timestamp: datetime
    timestamp_unix: int = Field(serialization_alias="timestampUnix")
    value: float
