"""Secrets in the form of E2B's control plane: a value comes in and never goes out."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class NewSecret(BaseModel):
    """POST /secrets."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1, max_length=128)
    value: str = Field(repr=False)
    metadata: dict[str, str] | None = None


class SecretUpdate(BaseModel):
    """POST /secrets/{secretID}."""

    model_config = ConfigDict(extra="ignore")

    value: str = Field(repr=False)
    metadata: dict[str, str] | None = None


class SecretOut(BaseModel):
    """What is shown of one."""

    secret_id: str = Field(serialization_alias="secretID")
    name: str
    current_version: int = Field(serialization_alias="currentVersion")
    metadata: dict[str, str]
    created_at: datetime = Field(serialization_alias="createdAt")
    updated_at: datetime = Field(serialization_alias="updatedAt")
