"""What the supervisor needs of the template store: nothing but look-ups. `images` implements it; tests may too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from atoll.model.template import Template


class TemplateStore(Protocol):
    """The usable templates on this node's disk. Called from the event loop: answers come from memory."""

    def list(self) -> Sequence[Template]:
        """All that a create may name."""
        ...

    def lookup(self, name: str) -> Template:
        """By id or by one of its names. Raises TemplateNotFound."""
        ...
