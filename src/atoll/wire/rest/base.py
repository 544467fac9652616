"""What the bodies of E2B's REST share. Field names are E2B's, through aliases.

What comes in tolerates unknown fields (newer SDKs send more) and null for anything optional. What goes out is built by
the functions of each resource's module and leaves with its aliases and without empty fields. Nothing is decided here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=1024)]


class In(BaseModel):
    """A body that a client sends."""

    model_config = ConfigDict(extra="ignore")


class StrictIn(BaseModel):
    """Keeps what it does not know, so that it can be refused: half a policy would be a hole in it."""

    model_config = ConfigDict(extra="allow")


class Out(BaseModel):
    """A body that is answered."""
