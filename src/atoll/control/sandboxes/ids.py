"""Sandbox ids: how they are made, and how a client's spelling of one is read. Pure but for the random bits."""

from __future__ import annotations

import base64
import secrets

from atoll.model.sandbox import SANDBOX_ID


def new_sandbox_id() -> str:
    """E2B's form: an `i` and 19 lower-case letters and digits (95 random bits)."""
    return "i" + base64.b32encode(secrets.token_bytes(12)).decode().lower()[:19]


def plain_id(text: str) -> str | None:
    """The id in what a client sent; old SDKs append `-<clientID>`. None: it cannot be an id."""
    plain = text.partition("-")[0]
    return plain if SANDBOX_ID.fullmatch(plain) else None
