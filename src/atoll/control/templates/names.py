"""Names and tags of templates as E2B has them. Pure.

reference   [namespace "/"] name [":" tag]
namespace   a team's slug or id; left out: the team that asks
tag         which build of the template; left out: "default"
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from atoll.model.errors import InvalidRequest

RESERVED = frozenset(
    {"base", "code-interpreter", "code-interpreter-v1", "browser", "desktop", "mcp-gateway", "image-import"}
)
"""Names of built-in templates."""

DEFAULT_TAG = "default"
"""The build that a name without a tag means."""

MAX_LENGTH = 128
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_IDENTIFIER = re.compile(r"[a-z0-9_-]{1,128}")
_TAG = re.compile(r"[a-z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True)
class Reference:
    """What a caller names a template by. `name` may be an id as well; `tag` None: none was given."""

    name: str
    namespace: str | None = None
    tag: str | None = None

    @property
    def tag_or_default(self) -> str:
        return self.tag or DEFAULT_TAG


def parse_reference(text: str) -> Reference:
    """Trimmed and lower-cased. Raises InvalidRequest."""
    if len(text) > 3 * MAX_LENGTH:
        raise InvalidRequest("the template's name is too long")
    rest, colon, tag = text.strip().lower().partition(":")
    namespace, slash, name = rest.rpartition("/")
    for what, part, there in (("namespace", namespace, bool(slash)), ("name", name, True)):
        if there and not _IDENTIFIER.fullmatch(part):
            raise InvalidRequest(
                f"{part[:100]!r} is not a template's {what}",
                hint="letters, digits, '-' and '_' are allowed, in the form [team/]name[:tag]",
            )
    return Reference(name, namespace if slash else None, check_tag(tag) if colon else None)


def new_template_id() -> str:
    """An id in the form of E2B's: it is a name as well."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(20))


def slug(team_name: str) -> str:
    """A team's name as a namespace."""
    return re.sub(r"[^a-z0-9_]+", "-", team_name[:MAX_LENGTH].lower()).strip("-") or "team"


def check_tag(text: str) -> str:
    """The tag in its one spelling. Raises InvalidRequest: malformed, or it could be taken for a build's id."""
    tag = text.strip().lower()
    if not _TAG.fullmatch(tag):
        raise InvalidRequest(f"{tag[:100]!r} is not a tag", hint="letters, digits, '-', '_' and '.' are allowed")
    try:
        UUID(tag)
    except ValueError:
        return tag
    raise InvalidRequest(f"the tag {tag!r} has the form of a build's id", hint="choose another tag")


def tags_of_request(reference: Reference, tags: Iterable[str]) -> tuple[str, ...]:
    """The tags that a build asked for will get, each once. Raises InvalidRequest."""
    asked = ([reference.tag] if reference.tag else []) + [check_tag(tag) for tag in tags]
    return tuple(dict.fromkeys(asked)) or (DEFAULT_TAG,)
