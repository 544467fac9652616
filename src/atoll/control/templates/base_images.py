"""Which template stands in for a public image that a build is based on. Pure.

This server reaches no registry. Images that the SDK's builder names by default are served from the Debian recipes,
and the build's log says so; any other is refused with the words that the SDK's users know.
"""

from __future__ import annotations

import re

from atoll.control.templates.build_log import BuildLog
from atoll.control.templates.builder import StepFailed

_STAND_INS = {
    "e2bdev/base": "base",
    "e2bdev/code-interpreter": "code-interpreter-v1",
    "debian": "base",
    "ubuntu": "base",
    "python": "base",
    "node": "base",
    "buildpack-deps": "base",
}
_IMAGE = re.compile(r"(?:docker\.io/)?(?:library/)?([a-z0-9._/-]+)(?::([A-Za-z0-9._-]+))?(?:@sha256:[0-9a-f]{64})?")
_EXACT = frozenset({"e2bdev/base", "e2bdev/code-interpreter"})


def base_template(image: str, log: BuildLog) -> str:
    """The built-in template for `image`. Raises StepFailed."""
    found = _IMAGE.fullmatch(image.strip()[:512])
    name = found[1] if found is not None else ""
    template = _STAND_INS.get(name)
    if template is None:
        offered = ", ".join(sorted(_STAND_INS))
        raise StepFailed(
            "base",
            f"image '{image[:200]}' not found: this server reaches no registry. Images it stands in for: {offered}",
        )
    if name not in _EXACT:
        log.write(
            f"this server reaches no registry: the built-in template '{template}' (Debian with Python and Node) "
            f"stands in for the image '{image[:200]}'",
            "warn",
        )
    return template
