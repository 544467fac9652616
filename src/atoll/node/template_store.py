"""What the supervisor needs of the template store: nothing but look-ups. `images.TemplateStore` is the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from atoll.model.template import Template


class Templates(Protocol):
    """The usable templates on this node's disk."""

    def list_templates(self) -> Sequence[Template]:
        """All that a create may name."""
        ...

    def find_template(self, name: str) -> Template:
        """By id or by one of its names. Raises TemplateNotFound."""
        ...
