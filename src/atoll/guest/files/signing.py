"""Signed file URLs: the check that stands in for `X-Access-Token` on GET and POST /files.

Format (`e2b/sandbox/signature.py`): `v1_` + base64 without padding of sha256 over
`path:operation:user:token[:expiration]`, where path is the text as sent (not resolved), user is the `username` query or
empty, expiration is Unix seconds.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal

Operation = Literal["read", "write"]


def sign(path: str, operation: Operation, user: str, token: str, expiration: int | None = None) -> str:
    """The signature that a client which knows the token would send."""
    raw = f"{path}:{operation}:{user}:{token}"
    if expiration is not None:
        raw += f":{expiration}"
    digest = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).digest()
    return "v1_" + base64.b64encode(digest).rstrip(b"=").decode("ascii")


def refusal(query: Mapping[str, str], operation: Operation, token: str, now: float) -> str | None:
    """Why the signature in `query` does not allow `operation`; None when it does. `now` is Unix seconds."""
    signature = query.get("signature")
    if not signature:
        return "missing signature query parameter"
    expiration_text = query.get("signature_expiration")
    expiration: int | None = None
    if expiration_text is not None:
        if not (expiration_text.isascii() and expiration_text.isdigit() and len(expiration_text) <= 18):
            return "signature_expiration must be Unix seconds"
        expiration = int(expiration_text)
    expected = sign(query.get("path", ""), operation, query.get("username", ""), token, expiration)
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogatepass")):
        return "invalid signature"
    if expiration is not None and expiration < now:
        return "signature is already expired"
    return None
