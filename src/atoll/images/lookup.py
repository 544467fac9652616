"""What the supervisor needs of the template store: look-ups, and that what it uses stays.

`images.TemplateStore` is the real one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from atoll.images.layers import ImageLayers
from atoll.images.transfer import ImageTransfer
from atoll.model.template import Template


class Templates(Protocol):
    """The usable templates on this node's disk."""

    @property
    def images(self) -> ImageLayers:
        """Those that sandboxes have made."""
        ...

    @property
    def transfer(self) -> ImageTransfer:
        """Their way from and to other machines."""
        ...

    def list_templates(self) -> Sequence[Template]:
        """All that a create may name."""
        ...

    def find_template(self, name: str) -> Template:
        """By id or by one of its names. Raises TemplateNotFound."""
        ...

    def hold(self, layers: Collection[Path]) -> bool:
        """Sandboxes will stand on these: nobody takes them away from now on. False: one of them is gone already."""
        ...

    def hold_nothing(self) -> None:
        """No sandbox of this node is alive."""
        ...

    def remove_unused_builds(self) -> int:
        """Takes away builds that were superseded and that no node holds; returns how many. Blocks. Raises OSError."""
        ...
