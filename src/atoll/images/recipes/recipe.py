"""What a recipe is: the description of one template layer as data. Owns the revision rule; builds nothing.

A recipe is one layer: the bottom one is a Debian tree, every other is what its script adds on top of its parent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from atoll.model.sandbox import Limits

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a build: `fraction` of the whole build of this template in 0..1, `message` for people."""

    template: str
    stage: str
    fraction: float
    message: str


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one template is made. `parent` None means: bottom layer, a Debian tree of `apt_packages`.

    `script` runs as root, chrooted into the tree (with the parents below it), `pip_packages` come to it as
    $PIP_PACKAGES.
    """

    name: str
    summary: str
    script: str
    parent: str | None = None
    names: tuple[str, ...] = ()
    apt_packages: tuple[str, ...] = ()
    pip_packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    """Files beside this module that the script finds in /run/build."""
    limits: Limits = field(default_factory=Limits)
    env_vars: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    interpreter: bool = False
    no_new_privileges: bool = False
    """`Template.no_new_privileges`: recorded with the build; the tree is the same."""
    gpu: str | None = None
    """`Template.gpu`, likewise."""

    def script_text(self) -> str:
        """The script's source, from beside this module."""
        return (SCRIPTS / self.script).read_text()


def revision(recipe: Recipe, parent_revision: str = "") -> str:
    """Twelve hex digits that change whenever what the recipe (or a parent) would build changes."""
    described = {
        "script": recipe.script_text(),
        "apt": recipe.apt_packages,
        "pip": recipe.pip_packages,
        "limits": asdict(recipe.limits),
        "env": dict(recipe.env_vars),
        "interpreter": recipe.interpreter,
        "parent": parent_revision,
    }
    if recipe.programs:
        described["programs"] = [(SCRIPTS / name).read_text() for name in recipe.programs]
    if recipe.no_new_privileges:
        described["no_new_privileges"] = True
    if recipe.gpu is not None:
        described["gpu"] = recipe.gpu
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
