"""An agent's run branches: checkpoints of a real sandbox, runs that go on from them, the command line, a replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox, SandboxException
from typer.testing import CliRunner

from atoll.cli.main import app
from atoll.runtime import BranchTree, CmdOutputObservation, CmdRunAction, E2BRuntime
from atoll.runtime.errors import AgentRuntimeError
from support.tiers import one_tier

pytestmark = pytest.mark.timeout(180)

RUN = [
    {"id": 0, "source": "agent", "action": "run", "args": {"command": "echo one > /workspace/word; cd /tmp"}},
    {"id": 1, "source": "agent", "action": "run", "args": {"command": "cat /workspace/word; pwd"}},
]


@pytest.fixture
def runtime(server: Any, tmp_path: Path) -> Iterator[E2BRuntime]:
    with E2BRuntime(branches=tmp_path / "branches") as made:
        yield made


def run(runtime: E2BRuntime, command: str) -> str:
    found = runtime.run_action(CmdRunAction(command))
    assert isinstance(found, CmdOutputObservation), found
    assert found.exit_code == 0, found
    return found.content


def atoll(tmp_path: Path, *words: str) -> Any:
    done = CliRunner().invoke(app, [*words, "--data-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_goes_on_from_any_of_its_checkpoints(runtime: E2BRuntime, tier: str, tmp_path: Path) -> None:
    run(runtime, "mkdir -p /workspace/d && cd /workspace/d && export WORD=first && echo 1 > file")
    run(runtime, "sleep 1000 & echo $! > /workspace/pid")
    first = runtime.checkpoint("first")
    assert (first.parent, first.note, first.cwd) == (None, "first", "/workspace/d")
    # A tier that keeps no memory says so, with the platform's own reason.
    assert (first.keeps, "holds the disk" in first.why) == (("memory", False) if tier == "gvisor" else ("files", True))
    run(runtime, "echo 2 > file; WORD=second")
    second = runtime.checkpoint()
    assert second.parent == first.id
    assert run(runtime, "ls -A ~ | grep -c shell-state || true") == "0"

    with E2BRuntime(checkpoint=first, branches=tmp_path / "branches") as branch:
        assert branch.sandbox_id != runtime.sandbox_id
        assert run(branch, "pwd; echo $WORD; cat file; ls -A ~ | grep -c shell-state || true").split() == [
            "/workspace/d",
            "first",
            "1",
            "0",
        ]
        alive = run(branch, "kill -0 $(cat /workspace/pid) 2>/dev/null && echo there || echo gone")
        assert alive == ("there" if tier == "gvisor" else "gone")
        run(branch, "echo other > file")
        other = branch.checkpoint("other")
        assert other.parent == first.id
        commands = [event.command for event in branch.history if isinstance(event, CmdRunAction)]
        assert [command.split()[0] for command in commands] == ["mkdir", "sleep", "pwd;", "kill", "echo"]
        assert [event.id for event in branch.history] == list(range(10))
    assert run(runtime, "cat file") == "2"
    assert {one.id for one in BranchTree(tmp_path / "branches").all()} == {first.id, second.id, other.id}

    listed = json.loads(atoll(tmp_path, "branch", "list", "--json"))
    assert [one["id"] for one in listed] == [first.id, second.id, other.id]
    assert f"{other.id}" in atoll(tmp_path, "branch", "list")
    taken = json.loads(atoll(tmp_path, "branch", "run", second.id[:8], "cat file; pwd", "--json"))
    assert taken["observation"]["content"].split() == ["2", "/workspace/d"]
    assert taken["checkpoint"]["parent"] == second.id
    shown = json.loads(atoll(tmp_path, "branch", "show", taken["checkpoint"]["id"], "--json"))
    assert len(shown["events"]) == shown["event_count"] == 8
    refused = CliRunner().invoke(app, ["branch", "delete", first.id, "--data-dir", str(tmp_path)])
    assert refused.exit_code == 1
    for name in (other.id, taken["checkpoint"]["id"], second.id, first.id):
        atoll(tmp_path, "branch", "delete", name)
    assert BranchTree(tmp_path / "branches").all() == []
    with pytest.raises(SandboxException, match="404"):
        Sandbox.create(first.snapshot)


@one_tier("the same in every tier: what a checkpoint keeps is tried above")
def test_a_replay_branches_before_an_event(server: Any, tmp_path: Path) -> None:
    recorded = tmp_path / "run.json"
    recorded.write_text(json.dumps(RUN))
    done = CliRunner().invoke(
        app, ["replay", str(recorded), "--from", "1", "--branch", "--json", "--data-dir", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    tree = BranchTree(tmp_path / "branches")
    point, end = tree.all()
    assert (point.parent, end.parent) == (None, point.id)
    assert [getattr(event, "content", "") for event in tree.history(end)][-1].split() == ["one", "/tmp"]
    assert "one" not in atoll(tmp_path, "branch", "run", point.id, "rm /workspace/word; ls /workspace")
    with pytest.raises(AgentRuntimeError, match="is where"):
        tree.remove(point)
    for one in tree.all():
        Sandbox.delete_snapshot(one.snapshot)
    assert CliRunner().invoke(app, ["replay", str(recorded), "--from", "1"]).exit_code == 2
