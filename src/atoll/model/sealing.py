"""Values that lie on disk only sealed: secrets, and what egress rules add to requests.

The key is a file of its own (mode 0600), so that a copy of the database or of a sandbox's record shows nothing. It is
no wall against a process that can read the data directory as root.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from atoll.model.network import NetworkPolicy

_MARK = "atoll-sealed:1:"


class Seal:
    """`key` as `new_key` makes it. None: values stay as they are (a control plane or a node by itself)."""

    def __init__(self, key: bytes | None = None) -> None:
        self._fernet = Fernet(key) if key is not None else None

    def close(self, value: str) -> str:
        """The form in which it may lie on disk; twice is not once."""
        return _MARK + self._fernet.encrypt(value.encode()).decode() if self._fernet is not None else value

    def open(self, kept: str) -> str | None:
        """The inverse; also of a value that was kept before there was a seal. None: another key closed it."""
        if not kept.startswith(_MARK) or self._fernet is None:
            return kept
        try:
            return self._fernet.decrypt(kept[len(_MARK) :].encode()).decode()
        except InvalidToken:
            return None

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


def new_key() -> bytes:
    """32 random bytes in Fernet's form."""
    return Fernet.generate_key()


def kept_key(path: Path) -> bytes:
    """The key in that file, which is made where it is missing. One process at a time. Raises OSError, ValueError."""
    with contextlib.suppress(FileNotFoundError):
        key = path.read_bytes().strip()
        Fernet(key)
        return key
    key = new_key()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return key
