"""The tree of checkpoints and the log that becomes them, without a sandbox."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.runtime import BranchTree, Checkpoint, CmdOutputObservation, CmdRunAction, NullObservation
from atoll.runtime.branches import EventLog
from atoll.runtime.branching import settings_at
from atoll.runtime.config import SandboxConfig
from atoll.runtime.errors import AgentRuntimeError

ROOT = Checkpoint("a" * 12, None, "s", "snap", "files", "base", "/", "2030-01-01T00:00:00+00:00", 2)


def test_the_log_numbers_events_and_pairs_each_observation_with_its_action() -> None:
    log = EventLog(7)
    assert log.read() == []
    log.note(CmdRunAction("first", id=99), CmdOutputObservation("out", command="first"))
    log.note(CmdRunAction("second"), NullObservation(""))
    found = log.read()
    assert [(one["id"], one.get("cause")) for one in found] == [(7, None), (8, 7), (9, None)]
    assert (log.count, log.next_id) == (3, 10)
    log.begin_anew()
    assert (log.read(), log.count, log.next_id) == ([], 0, 10)
    log.close()
    log.close()


def test_what_happened_is_the_way_from_the_root(tmp_path: Path) -> None:
    tree, log = BranchTree(tmp_path / "branches"), EventLog()
    assert tree.all() == []
    log.note(CmdRunAction("one"), CmdOutputObservation("1", command="one"))
    tree.add(ROOT, log.read())
    for name in ("b" * 12, "bb" + "c" * 10):
        log.begin_anew()
        log.note(CmdRunAction(name), NullObservation(""))
        tree.add(replace(ROOT, id=name, parent=ROOT.id, event_count=3), log.read())
    log.close()
    other = tree.get("bbb")
    assert [getattr(event, "command", "") for event in tree.history(other)] == ["one", "one", "b" * 12]
    for wrong, words in (("bb", "several"), ("f", "no checkpoint"), ("../x", "no checkpoint's id"), ("", "id")):
        with pytest.raises(AgentRuntimeError, match=words):
            tree.get(wrong)
    with pytest.raises(AgentRuntimeError, match="delete these first"):
        tree.remove(tree.get("a"))
    (tree.directory / f"{ROOT.id}.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(AgentRuntimeError, match="another Atoll"):
        tree.history(other)


def test_a_branch_is_not_prepared_again_and_has_the_size_of_its_snapshot() -> None:
    given = SandboxConfig(runtime_extra_deps="apt-get install x", volumes="data:/d,/etc:/e:ro", enable_gpu=True)
    found = settings_at(given)
    assert (found.runtime_extra_deps, found.volumes, found.enable_gpu) == (None, "data:/d", False)
