"""API keys of a team."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from atoll.wire.rest.base import In


class NewKey(In):
    """POST /api-keys, PATCH /api-keys/{id}."""

    name: Annotated[str, Field(min_length=1, max_length=255)]


class KeyMask(BaseModel):
    """What of a key may be shown again."""

    prefix: str
    value_length: int = Field(serialization_alias="valueLength")
    masked_value_prefix: str = Field(serialization_alias="maskedValuePrefix")
    masked_value_suffix: str = Field(serialization_alias="maskedValueSuffix")


class TeamKey(BaseModel):
    """GET /api-keys. `createdBy` and `lastUsed` may be null, so nulls are kept."""

    id: str
    name: str
    mask: KeyMask
    created_at: datetime = Field(serialization_alias="createdAt")
    created_by: None = Field(default=None, serialization_alias="createdBy")
    last_used: datetime | None = Field(default=None, serialization_alias="lastUsed")


class CreatedTeamKey(TeamKey):
    """POST /api-keys: the only answer that holds the key itself."""

    key: str
