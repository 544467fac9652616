"""How images are named, and which built-in template stands in for one where no registry answers. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from atoll.control.templates.steps import FILES_HASH

HUB = "docker.io"
UPLOAD = "upload:"
"""Before the hash of an archive that its owner has uploaded: `atoll template import`."""

_REGISTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?")
_PART = re.compile(r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_STAND_INS = {"debian": "base", "ubuntu": "base", "python": "base", "node": "base", "buildpack-deps": "base"}
_EXACT = {"e2bdev/base": "base", "e2bdev/code-interpreter": "code-interpreter-v1"}


@dataclass(frozen=True, slots=True)
class Reference:
    """An image of a registry. `text` is what its owner wrote."""

    text: str
    registry: str
    name: str
    tag: str
    digest: str

    @property
    def host(self) -> str:
        """The registry without its port."""
        return re.sub(r":[0-9]+$", "", self.registry)

    @property
    def source(self) -> str:
        """As skopeo takes it; the digest alone counts where there is one."""
        return f"docker://{self.registry}/{self.name}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


def parse(text: str) -> Reference | None:
    """As Docker understands it; None: it is not an image's name."""
    if len(text) > 512:
        return None
    rest, has_digest, digest = text.strip().partition("@")
    first, _, path = rest.partition("/")
    registry = first if path and (first == "localhost" or "." in first or ":" in first) else ""
    name, has_tag, tag = (path if registry else rest).partition(":")
    parts = name.split("/")
    if not registry and len(parts) == 1:
        parts = ["library", name]
    if not all(_PART.fullmatch(part) for part in parts) or (registry and not _REGISTRY.fullmatch(registry)):
        return None
    if (has_tag and not _TAG.fullmatch(tag)) or (has_digest and not _DIGEST.fullmatch(digest)):
        return None
    if registry == HUB and len(parts) == 1:
        parts = ["library", name]
    return Reference(text, registry or HUB, "/".join(parts), tag or "latest", digest)


def uploaded(text: str) -> str:
    """The hash of the archive that `text` names; "" if it names none."""
    rest = text.removeprefix(UPLOAD)
    return rest if rest != text and FILES_HASH.fullmatch(rest) else ""


def built_in(reference: Reference) -> str:
    """The built-in template that is that image of E2B's own, which no registry needs to be asked for; "" if none is."""
    return _EXACT.get(reference.name, "") if reference.registry == HUB else ""


def stand_in(reference: Reference) -> str:
    """The built-in template that can be used in its place; "" if none can."""
    return _STAND_INS.get(reference.name.removeprefix("library/"), "") if reference.registry == HUB else ""


def stand_ins() -> str:
    """For people."""
    return ", ".join(sorted({*_STAND_INS, *_EXACT}))
