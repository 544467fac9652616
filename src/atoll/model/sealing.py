"""Values that lie on disk only sealed: secrets, tokens, environments, and what egress rules add to requests.

The key is a file of its own (mode 0600), so that a copy of the database or of a sandbox's record shows nothing. It is
no wall against a process that can read the data directory as root.

AES-256-GCM under a key that is derived from the file's: 3 µs for a value, where Fernet, which earlier Atolls wrote,
takes 40. Both are read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from atoll.model import durable
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import SandboxSpec

_FERNET, _MARK = "atoll-sealed:1:", "atoll-sealed:2:"
_NONCE = 12
_UTF8 = ("utf-8", "surrogatepass")  # what JSON can say


class Seal:
    """`key` as `new_key` makes it. None: values stay as they are (a control plane or a node by itself)."""

    def __init__(self, key: bytes | None = None) -> None:
        self._fernet = Fernet(key) if key is not None else None
        self._cipher = AESGCM(hashlib.sha256(b"atoll seal 2" + key).digest()) if key is not None else None

    def close(self, value: str) -> str:
        """The form in which it may lie on disk; twice is not once."""
        if self._cipher is None:
            return value
        nonce = os.urandom(_NONCE)
        return _MARK + base64.b64encode(nonce + self._cipher.encrypt(nonce, value.encode(*_UTF8), None)).decode()

    def open(self, kept: str) -> str | None:
        """The inverse; also of a value that was kept before there was a seal. None: another key closed it."""
        if self._cipher is None or self._fernet is None:
            return kept
        try:
            if kept.startswith(_MARK):
                body = base64.b64decode(kept[len(_MARK) :], validate=True)
                return self._cipher.decrypt(body[:_NONCE], body[_NONCE:], None).decode(*_UTF8)
            return self._fernet.decrypt(kept[len(_FERNET) :].encode()).decode() if kept.startswith(_FERNET) else kept
        except (InvalidTag, InvalidToken, ValueError):
            return None

    def close_token(self, value: str | None) -> str | None:
        """As `close`; nothing stays nothing."""
        return self.close(value) if value is not None else None

    def open_token(self, kept: str | None) -> str | None:
        """The inverse. For a token that another key closed one that nobody knows: having none would open all."""
        return None if kept is None else self.open(kept) or secrets.token_hex(32)

    def close_map(self, values: Mapping[str, str]) -> Any:
        """A table of names and values, as a value of JSON; an empty one hides nothing."""
        return self.close(json.dumps(dict(values))) if values and self._cipher is not None else dict(values)

    def open_map(self, kept: Any) -> Mapping[str, str]:
        """The inverse; empty where another key closed it."""
        if not isinstance(kept, str):
            return dict(kept)
        opened = self.open(kept)
        return json.loads(opened) if opened is not None else {}

    def close_spec(self, spec: SandboxSpec) -> dict[str, Any]:
        """A spec as JSON for a sandbox's record. What its rules add is closed already (`close_rules`)."""
        return spec.as_json() | {
            "env_vars": self.close_map(spec.env_vars),
            "access_token": self.close_token(spec.access_token),
            "traffic_access_token": self.close_token(spec.traffic_access_token),
        }

    def open_spec(self, kept: Mapping[str, Any]) -> SandboxSpec:
        """The inverse. Raises KeyError, TypeError, ValueError for what `close_spec` did not make."""
        opened = {
            "env_vars": self.open_map(kept["env_vars"]),
            "access_token": self.open_token(kept["access_token"]),
            "traffic_access_token": self.open_token(kept["traffic_access_token"]),
        }
        return SandboxSpec.from_json({**kept, **opened})

    def close_rules(self, network: NetworkPolicy) -> NetworkPolicy:
        """The same policy with every header's value closed."""
        rules = {
            origin: tuple({name: self.close(value) for name, value in headers.items()} for headers in sets)
            for origin, sets in network.rules.items()
        }
        return replace(network, rules=rules)

    def open_rules(self, network: NetworkPolicy) -> NetworkPolicy:
        """The inverse. A header whose value this key does not open is left out: nothing false is sent."""
        rules = {
            origin: tuple(
                {name: value for name, kept in headers.items() if (value := self.open(kept)) is not None}
                for headers in sets
            )
            for origin, sets in network.rules.items()
        }
        return replace(network, rules=rules)


def is_sealed(kept: str) -> bool:
    """Whether it is what a seal has made."""
    return kept.startswith((_FERNET, _MARK))


def new_key() -> bytes:
    """32 random bytes in Fernet's form."""
    return Fernet.generate_key()


def kept_key(path: Path) -> bytes:
    """The key in that file, which is made where it is missing. Raises OSError, ValueError."""
    if not path.exists():
        durable.write(path, new_key(), replace=False)
    key = path.read_bytes().strip()
    Fernet(key)
    return key
