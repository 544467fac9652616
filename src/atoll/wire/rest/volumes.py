"""Volumes in the form of E2B's control plane. (Their contents are no part of it: `atoll.volumes.content`.)"""

from __future__ import annotations

from pydantic import Field

from atoll.wire.rest.base import In, Out


class NewVolume(In):
    """POST /volumes."""

    name: str = Field(max_length=1024)


class VolumeOut(Out):
    """One of a list."""

    volume_id: str = Field(serialization_alias="volumeID")
    name: str


class VolumeAndToken(VolumeOut):
    """One, with what opens its contents."""

    token: str
    size_mb: int = Field(serialization_alias="sizeMB")
    """Atoll's own: how much it can hold."""
