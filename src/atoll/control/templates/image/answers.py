"""What the programs of an import answer. They run among strangers' bytes: nothing is believed unchecked. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

MAX_ANSWER = 1 << 20
MAX_LAYERS = 200
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_VARIABLES, _MAX_VALUE = 512, 32768


class ImportRefused(Exception):
    """`kind`: "unreachable", "missing", "denied" or "bad"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Fetched:
    """An image that is there, with what of its configuration means something here."""

    digest: str
    blobs: tuple[str, ...]
    diff_ids: tuple[str, ...]
    env: dict[str, str]
    workdir: str
    user: str
    command: tuple[str, ...]


def answer_of(output: bytes) -> dict[str, Any]:
    """The last line. Raises ImportRefused with what it says, or that it says nothing."""
    lines = output[-MAX_ANSWER:].splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ImportRefused("bad", "its program gave no answer: did the image use up the memory of its sandbox?")
    if (error := value.get("error")) is not None:
        kind, message = (str(error.get(key)) for key in ("kind", "message")) if isinstance(error, dict) else ("bad", "")
        raise ImportRefused(kind if kind in ("unreachable", "missing", "denied") else "bad", message[:1000])
    return value


def fetched(answer: dict[str, Any]) -> Fetched:
    """Raises ImportRefused for anything that makes no sense."""
    try:
        image = answer["image"]
        blobs, diff_ids = tuple(image["blobs"]), tuple(image["diff_ids"])
        env = dict(line.split("=", 1) for line in image["env"] if "=" in line)
        found = Fetched(
            _hex(image["digest"]),
            tuple(map(_hex, blobs)),
            tuple(map(_hex, diff_ids)),
            {name: value for name, value in env.items() if _NAME.fullmatch(name) and "\0" not in value},
            str(image["workdir"])[:4096],
            str(image["user"])[:200],
            tuple(str(word)[:200] for word in image["command"][:50]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImportRefused("bad", "its description makes no sense") from error
    if len(blobs) > MAX_LAYERS or len(blobs) != len(diff_ids):
        raise ImportRefused("bad", f"it has {len(blobs)} layers; {MAX_LAYERS} are the most")
    if len(found.env) > _MAX_VARIABLES or sum(map(len, found.env.values())) > _MAX_VALUE:
        raise ImportRefused("bad", "its environment is too large")
    return found


def user_of(answer: dict[str, Any]) -> str:
    """Whom its programs run as. Raises ImportRefused."""
    user = answer.get("user")
    if not isinstance(user, str) or not _USER.fullmatch(user):
        raise ImportRefused("bad", "its user's name makes no sense")
    return user


def _hex(value: Any) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise ValueError("no digest")
    return value
