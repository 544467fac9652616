"""Who runs what: user and group look-ups in the sandbox's own /etc/passwd and /etc/group, path rules, Basic header.

Reads the files itself: the C library's look-ups load NSS modules from the template, which the guest must not trust, and
cache answers across a change of root. The files are read afresh whenever they change, so `useradd` works at once.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from atoll.guest.files import paths
from atoll.guest.files.safe_open import read_regular
from atoll.guest.process.credentials import is_single_id
from atoll.http1.server import Headers
from atoll.wire.envd.connect import Code, ConnectError

_MAX_FILE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class User:
    """One account, with all groups it is in. `groups` includes the primary one."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def invalid_user(name: str) -> ConnectError:
    """What a call for an unknown user is answered."""
    return ConnectError(Code.UNAUTHENTICATED, f"invalid username: '{name}'")


class Users:
    """The accounts of the sandbox. `fixed` stands in for the passwd file where there is no wall (tests)."""

    def __init__(
        self, passwd: str = "/etc/passwd", group: str = "/etc/group", *, fixed: Mapping[str, User] | None = None
    ) -> None:
        self._passwd = passwd
        self._group = group
        self._fixed = fixed
        self._stamp: tuple[object, ...] = ()
        self._by_name: dict[str, User] = {}
        self._names: dict[int, str] = {}
        self._group_names: dict[int, str] = {}

    def find(self, name: str) -> User:
        """The account called `name` (or with that decimal uid). Raises ConnectError unauthenticated."""
        self._refresh()
        user = self._by_name.get(name)
        if user is None and name.isascii() and name.isdigit():
            user = self._by_name.get(self._names.get(int(name), ""))
        if user is None:
            raise invalid_user(name)
        return user

    def name_of(self, uid: int) -> str:
        """The account's name, or the number as text."""
        self._refresh()
        return self._names.get(uid) or str(uid)

    def group_name_of(self, gid: int) -> str:
        self._refresh()
        return self._group_names.get(gid) or str(gid)

    def _refresh(self) -> None:
        stamp = (_stamp(self._passwd), _stamp(self._group))
        if stamp == self._stamp:
            return
        members: dict[str, list[int]] = {}
        self._group_names = {}
        for fields in _rows(self._group, 4):
            if fields[2].isdigit():
                gid = int(fields[2])
                self._group_names.setdefault(gid, fields[0])
                for member in filter(None, fields[3].split(",")):
                    members.setdefault(member, []).append(gid)
        self._by_name = {}
        self._names = {}
        for fields in _rows(self._passwd, 7):
            name = fields[0]
            if not (fields[2].isdigit() and fields[3].isdigit()) or name in self._by_name:
                continue
            primary = int(fields[3])
            groups = tuple(dict.fromkeys((primary, *members.get(name, ()))))
            user = User(name, int(fields[2]), primary, groups, fields[5] or "/", fields[6] or "/bin/sh")
            self._names.setdefault(user.uid, name)
            self._by_name[name] = replace(user, uid=0, gid=0, groups=(0,)) if is_single_id() else user
        if self._fixed is not None:
            self._by_name = dict(self._fixed)
        self._stamp = stamp


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _rows(path: str, width: int) -> list[list[str]]:
    try:
        text = read_regular(path, _MAX_FILE).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    rows = [line.split(":") for line in text.splitlines() if line and not line.startswith("#")]
    return [row for row in rows if len(row) >= width]


def user_in_header(headers: Headers) -> str | None:
    """The user name of `Authorization: Basic base64("name:")`; None without the header. Raises ConnectError."""
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, encoded = value.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")[0]
    except (binascii.Error, ValueError):
        raise ConnectError(Code.UNAUTHENTICATED, "malformed Basic authorization header") from None
    return name or None


def expand_path(path: str, user: User, workdir: str | None) -> str:
    """Absolute path by the rules of `guest/files/paths.py`. Raises ConnectError invalid_argument."""
    try:
        return paths.resolve(path, user.home, workdir)
    except paths.InvalidPath as error:
        raise ConnectError(Code.INVALID_ARGUMENT, str(error)) from None
