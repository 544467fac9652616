"""What a template is: a named, layered, read-only root file system with defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from atoll.model.sandbox import Limits


@dataclass(frozen=True, slots=True)
class Template:
    """One usable build of a template, as the node has it on disk.

    `layers` are directories on the node, top first. `names` are the aliases that a create call may use besides the id.
    """

    template_id: str
    names: tuple[str, ...]
    build_id: str
    layers: tuple[Path, ...]
    limits: Limits
    created_at: datetime
    env_vars: Mapping[str, str] = field(default_factory=dict)
    default_user: str = "user"
    default_workdir: str | None = None
    start_cmd: str | None = None
    interpreter: bool = False
    ready_cmd: str | None = None
    """Ends with 0 once what `start_cmd` has started can be used."""
    image_id: str | None = None
    """For one that was built on this platform; None: a built-in one, which a node knows by its id."""
    node_id: str = ""
    """Which node has the image; "": see what the nodes list."""
    shared: bool = False
    """Whether an object store has the image, so that every node can get it."""
    public: bool = True
    """Whether every team may use it."""
    tier: str | None = None
    """The isolation tier that its sandboxes need; None: the server's own."""
    no_new_privileges: bool = False
    """`SandboxSpec.no_new_privileges` of all its sandboxes."""
    gpu: str | None = None
    """`SandboxSpec.gpu` of those whose create call says nothing of it."""
