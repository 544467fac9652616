"""Finding the sandbox of a signed file URL that carries no sandbox id.

With one URL for all sandboxes the SDKs' `download_url` and `upload_url` are `/files?path=…&signature=…`, nothing else.
The signature is `"v1_" + base64(sha256("{path}:{read|write}:{user}:{token}[:{expiration}]"))` without padding, so the
live sandbox whose token reproduces it is the one that is meant. The guest checks it again, and the expiry.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from urllib.parse import parse_qs

from atoll.edge.head import RequestHead
from atoll.model.seams import Route, RouteTable

MAX_PATH = 4096
MAX_USER = 256
MAX_EXPIRATION = 32
"""Characters. Each live sandbox is tried, for anybody who asks: what all of them share is hashed once."""
_SIGNATURE = re.compile(r"v1_([A-Za-z0-9+/]{43})")
_OPERATIONS = {b"GET": "read", b"HEAD": "read", b"POST": "write"}


def signature_of(path: str, operation: str, user: str, token: str, expiration: str | None) -> str:
    """E2B's signature, version 1."""
    parts = [path, operation, user, token] + ([expiration] if expiration else [])
    digest = hashlib.sha256(":".join(parts).encode("utf-8", "surrogateescape")).digest()
    return "v1_" + base64.b64encode(digest).rstrip(b"=").decode("ascii")


def find_signed(head: RequestHead, routes: RouteTable) -> Route | None:
    """The route whose token made this URL's signature, or None: not a signed file URL, or nobody's."""
    operation = _OPERATIONS.get(head.method)
    if operation is None or head.path != b"/files" or b"signature=" not in head.query:
        return None
    try:
        query = parse_qs(head.query.decode("ascii"), keep_blank_values=True, max_num_fields=32)
    except ValueError:
        return None
    path, user, expiration, given = (
        query.get(name, [""])[0] for name in ("path", "username", "signature_expiration", "signature")
    )
    # A literal "+" in the query reads as a space; base64 has no spaces.
    signature = _SIGNATURE.fullmatch(given.replace(" ", "+"))
    if signature is None or len(path) > MAX_PATH or len(user) > MAX_USER or len(expiration) > MAX_EXPIRATION:
        return None
    expected = base64.b64decode(signature[1] + "=")
    common = hashlib.sha256(f"{path}:{operation}:{user}:".encode("utf-8", "surrogateescape"))
    behind = f":{expiration}" if expiration else ""
    for route in routes.routes():
        if route.envd_access_token is None:
            continue
        digest = common.copy()
        digest.update(f"{route.envd_access_token}{behind}".encode("utf-8", "surrogateescape"))
        if hmac.compare_digest(digest.digest(), expected):
            return route
    return None
