"""`atoll branch`: the checkpoints of agents' runs: what there is, what led to one, going on from it, an end to it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from atoll.cli.replay import indented, subject
from atoll.cli.run import check_lasting, platform_environ
from atoll.config import Settings
from atoll.model.errors import PlatformError
from atoll.runtime import BranchTree, Checkpoint, CmdRunAction, E2BRuntime, JupyterRequirement, event_to_dict
from atoll.runtime.branching import BRANCHES
from atoll.runtime.events.base import Action, Observation


def tree_of(settings: Settings) -> BranchTree:
    """The one of this data directory."""
    return BranchTree(settings.data_dir / BRANCHES)


def show_all(settings: Settings, *, as_json: bool) -> None:
    """Prints the tree. Raises AgentRuntimeError."""
    found = tree_of(settings).all()
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    console = Console(highlight=False)
    known = {one.id for one in found}
    for root in (one for one in found if one.parent not in known):
        tree = Tree(_line(root))
        pending = [(root, tree)]
        while pending:
            above, branch = pending.pop()
            pending += [(one, branch.add(_line(one))) for one in found if one.parent == above.id]
        console.print(tree)


def _line(one: Checkpoint) -> str:
    note = f"  {escape(one.note)}" if one.note else ""
    when = one.created_at[:19].replace("T", " ")
    return f"[bold]{one.id}[/bold]  {when}  {one.event_count} events  {one.keeps}  {escape(one.sid)}{note}"


def show(settings: Settings, name: str, *, as_json: bool) -> None:
    """Prints one and what led to it. Raises AgentRuntimeError."""
    tree = tree_of(settings)
    one = tree.get(name)
    events = tree.history(one)
    if as_json:
        print(json.dumps({**asdict(one), "events": [event_to_dict(event) for event in events]}, indent=2))
        return
    console = Console(highlight=False)
    console.print(_line(one))
    if one.why:
        console.print(f"  without memory: {escape(one.why)}")
    for event in events:
        if isinstance(event, Action):
            console.print(f"\n[bold cyan]{escape(event.action)}[/bold cyan] {escape(subject(event))}")
        elif isinstance(event, Observation) and event.content.strip():
            console.print(indented(event.content, style="dim"))


def go_on(settings: Settings, name: str, command: str, note: str, *, as_json: bool) -> int:
    """Runs `command` in a sandbox of the checkpoint, and takes the next one there; the command's exit code.

    Raises AtollError.
    """
    from e2b import SandboxException

    tree = tree_of(settings)
    one = tree.get(name)
    check_lasting(settings)
    with platform_environ(settings):
        plugins = [JupyterRequirement()] if one.jupyter else []
        runtime = E2BRuntime(sid=f"branch-{one.id}", plugins=plugins, checkpoint=one, branches=tree.directory)
        try:
            asyncio.run(runtime.connect())
            observation = runtime.run_action(CmdRunAction(command))
            taken = runtime.checkpoint(note or command)
        except SandboxException as error:
            raise PlatformError(f"checkpoint {one.id} cannot be gone on from: {error}") from error
        finally:
            runtime.close()
    if as_json:
        print(json.dumps({"checkpoint": asdict(taken), "observation": event_to_dict(observation)}, indent=2))
    else:
        print(observation.content)
        print(f"checkpoint {taken.id}")
    return int(getattr(observation, "exit_code", 1))


def delete(settings: Settings, name: str) -> None:
    """It and its snapshot. Raises AtollError: others began there, or the platform does not answer."""
    from e2b import SandboxException
    from e2b_code_interpreter import Sandbox

    tree = tree_of(settings)
    one = tree.get(name)
    tree.check_leaf(one)
    check_lasting(settings)
    with platform_environ(settings):
        try:
            Sandbox.delete_snapshot(one.snapshot)  # that it is gone already is no failure
        except SandboxException as error:
            raise PlatformError(f"the snapshot of {one.id} cannot be deleted: {error}") from error
    tree.remove(one)
