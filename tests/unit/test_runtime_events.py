"""Events in OpenHands' JSON, in and out, of all versions; recorded text is data, never code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atoll.runtime import (
    CmdRunAction,
    FileEditAction,
    FileReadAction,
    MalformedEvent,
    MessageAction,
    event_from_dict,
    event_to_dict,
)
from atoll.runtime.events.actions import ACTIONS, UnknownAction
from atoll.runtime.events.observations import (
    MAX_CMD_OUTPUT_SIZE,
    OBSERVATIONS,
    CmdOutputMetadata,
    CmdOutputObservation,
    UnknownObservation,
)
from atoll.runtime.events.serialization import parse_old_edit

RECORDED = Path(__file__).parents[2] / "examples" / "create-and-serve.json"


def test_an_action_has_openhands_form() -> None:
    event = CmdRunAction("ls", thought="look", id=7, timeout=120.0)
    assert event_to_dict(event) == {
        "id": 7,
        "message": "Running command: ls",
        "action": "run",
        "args": {
            "command": "ls",
            "is_input": False,
            "thought": "look",
            "blocking": False,
            "is_static": False,
            "cwd": None,
            "hidden": False,
            "confirmation_state": "confirmed",
            "security_risk": -1,
        },
        "timeout": 120.0,
    }


def test_an_observation_has_openhands_form() -> None:
    event = CmdOutputObservation("out", command="ls", metadata=CmdOutputMetadata(exit_code=2, pid=5), cause=7)
    made = event_to_dict(event)
    assert (made["observation"], made["content"], made["cause"], made["success"]) == ("run", "out", 7, False)
    assert made["extras"] == {
        "command": "ls",
        "metadata": {
            "exit_code": 2,
            "pid": 5,
            "username": None,
            "hostname": None,
            "working_dir": None,
            "py_interpreter_path": None,
            "prefix": "",
            "suffix": "",
        },
        "hidden": False,
    }


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_every_action_survives_json(name: str) -> None:
    required = {"command": "c", "code": "c", "path": "/p", "content": "t", "url": "u", "browser_actions": "b"}
    required |= {"name": "n", "agent": "a", "recall_type": "knowledge", "agent_state": "init"}
    event = event_from_dict({"action": name, "args": required, "id": 3, "source": "agent"})
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


@pytest.mark.parametrize("name", sorted(OBSERVATIONS))
def test_every_observation_survives_json(name: str) -> None:
    extras = {"command": "c", "code": "c", "path": "/p", "url": "u", "trigger_by_action": "b", "file_path": "/f"}
    extras |= {"agent_state": "init", "recall_type": "knowledge"}
    event = event_from_dict({"observation": name, "content": "t", "extras": extras | {"outputs": {}}, "cause": 2})
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


def test_unknown_fields_are_dropped_and_unknown_events_kept() -> None:
    event = event_from_dict({"action": "run", "args": {"command": "ls", "keep_prompt": True, "nope": 1}, "zzz": 2})
    assert event == CmdRunAction("ls")
    action = event_from_dict({"action": "fly", "args": {"to": "moon"}})
    assert isinstance(action, UnknownAction)
    assert event_to_dict(action)["args"] == {"to": "moon"}
    observation = event_from_dict({"observation": "smell", "content": "x", "extras": {"of": "rain"}})
    assert isinstance(observation, UnknownObservation)
    assert event_to_dict(observation)["extras"] == {"of": "rain"}


def test_old_forms_are_read() -> None:
    old = {"observation": "run", "content": "x", "extras": {"command": "ls", "exit_code": 3, "command_id": 9}}
    found = event_from_dict(old)
    assert isinstance(found, CmdOutputObservation)
    assert (found.exit_code, found.command_id) == (3, 9)
    message = event_from_dict({"action": "message", "args": {"content": "hi", "images_urls": ["u"]}})
    assert isinstance(message, MessageAction)
    assert message.image_urls == ["u"]
    rejected = event_from_dict({"action": "run", "args": {"command": "ls", "is_confirmed": "rejected"}})
    assert isinstance(rejected, CmdRunAction)
    assert rejected.confirmation_state == "rejected"


def _old_edit(**arguments: Any) -> str:
    return f"print(file_editor(**{arguments!r}))"


def test_an_old_edit_is_parsed_as_data() -> None:
    code = _old_edit(command="create", path="/workspace/a", file_text='it\'s\n"x"\n')
    found = event_from_dict({"action": "edit", "args": {"path": "/workspace/a", "translated_ipython_code": code}})
    assert found == FileEditAction("/workspace/a", command="create", file_text='it\'s\n"x"\n')
    view = event_from_dict(
        {
            "action": "read",
            "args": {"path": "/a", "translated_ipython_code": _old_edit(command="view", path="/a", view_range=[1, 2])},
        }
    )
    assert isinstance(view, FileReadAction)
    assert view.view_range == [1, 2]


@pytest.mark.parametrize(
    "code",
    [
        "print(file_editor(**{'command': __import__('os').system('touch /tmp/executed')}))",
        "print(file_editor(**dict(command='create')))",
        "print(file_editor(**{'a': 1})); import os; print(f(**{}))",
        "print(file_editor(**{" + "[" * 5000 + "))",
        "print(file_editor(**{1: 2}))",
        "__import__('os').system('touch /tmp/executed')",
        "",
    ],
)
def test_code_in_an_old_edit_is_never_executed(code: str) -> None:
    assert parse_old_edit(code) == {}
    found = event_from_dict({"action": "edit", "args": {"path": "/a", "translated_ipython_code": code}})
    assert found == FileEditAction("/a")
    assert not Path("/tmp/executed").exists()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ([], "JSON object"),
        ({}, "neither"),
        ({"action": 5}, "a name"),
        ({"action": "run", "args": []}, "`args`"),
        ({"action": "run", "args": {}}, "`command`"),
        ({"observation": "run", "content": "x"}, "`command`"),
        ({"action": "run", "args": {"command": "x"}, "timeout": "soon"}, "seconds"),
        ({"action": "run", "args": {"command": "x"}, "id": "one"}, "number"),
    ],
)
def test_malformed_events_say_what_is_wrong(data: Any, word: str) -> None:
    with pytest.raises(MalformedEvent, match=word):
        event_from_dict(data)


def test_long_output_is_cut_in_the_middle_unless_hidden() -> None:
    text = "a" * 20_000 + "b" * 20_000
    cut = CmdOutputObservation(text, command="c").content
    assert len(cut) == MAX_CMD_OUTPUT_SIZE + len("\n[... Observation truncated due to length ...]\n")
    assert cut.startswith("a" * 15_000 + "\n[... Observation")
    assert CmdOutputObservation(text, command="c", hidden=True).content == text


def test_what_the_agent_reads_of_a_command() -> None:
    metadata = CmdOutputMetadata(
        exit_code=1, working_dir="/w", py_interpreter_path="/py", prefix="[p]\n", suffix="\n[s]"
    )
    assert CmdOutputObservation("out", command="c", metadata=metadata).to_agent_observation() == (
        "[p]\nout\n[s]\n[Current working directory: /w]\n[Python interpreter: /py]\n[Command finished with exit code 1]"
    )


def test_a_hard_timeout_makes_a_copy() -> None:
    action = CmdRunAction("ls")
    limited = action.with_hard_timeout(5)
    assert (action.timeout, limited.timeout, limited.blocking) == (None, 5, True)
    assert FileReadAction("/a").with_hard_timeout(5).timeout == 5
