"""The controller's rules: limits, order of events, sessions that can be taken up again, well-formed conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from atoll.agent import (
    AgentLoop,
    Budget,
    End,
    Limits,
    ModelError,
    Reply,
    Session,
    SessionError,
    SessionHead,
    ToolCall,
    Usage,
)
from atoll.agent.history import messages, text_of
from atoll.agent.loop import MAX_TALK
from atoll.agent.session import INTERRUPTED
from atoll.agent.tools import ToolFault, action_of, offered
from atoll.runtime import (
    AgentRuntimeDisconnectedError,
    CmdOutputObservation,
    CmdRunAction,
    FileEditAction,
    FileReadAction,
    FileReadObservation,
    Observation,
)
from atoll.runtime.events.base import Action

HEAD = SessionHead("s", "do it", "m")


class Sandbox:
    """Answers every action; loses itself at the action numbered `lost_at`."""

    def __init__(self, lost_at: int = -1) -> None:
        self.ran: list[Action] = []
        self._lost_at = lost_at

    def run_action(self, action: Action) -> Observation:
        if len(self.ran) == self._lost_at:
            raise AgentRuntimeDisconnectedError("lost")
        self.ran.append(action)
        return CmdOutputObservation(f"out {len(self.ran)}", command="")


class Script:
    """A model that gives prepared replies, then fails; it keeps what it was sent."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.sent: list[list[Any]] = []

    def ask(self, sent: Sequence[Any], tools: Sequence[Any]) -> Reply:
        self.sent.append(list(sent))
        if not self._replies:
            raise ModelError("no more replies")
        return self._replies.pop(0)


def bash(command: str, call_id: str = "c") -> ToolCall:
    return ToolCall(call_id, "execute_bash", json.dumps({"command": command}))


def finish(message: str = "done") -> ToolCall:
    return ToolCall("f", "finish", json.dumps({"message": message}))


def reply(*calls: ToolCall, text: str = "", tokens: int = 10) -> Reply:
    return Reply("same-id", text, calls, Usage(tokens, 1))


@pytest.fixture
def session(tmp_path: Path) -> Any:
    with Session.create(tmp_path / "s.jsonl", HEAD) as made:
        yield made


def loop(session: Session, chat: Any, sandbox: Any = None, **limits: Any) -> AgentLoop:
    return AgentLoop(session, sandbox or Sandbox(), chat, offered(jupyter=False, browser=False), Limits(**limits))


def assert_well_formed(sent: list[Any]) -> None:
    """Every tool call has its one answer, right after it, in order; nothing else is a tool message."""
    position = 0
    while position < len(sent):
        calls = [call["id"] for call in sent[position].get("tool_calls", ())]
        answers = [message.get("tool_call_id") for message in sent[position + 1 : position + 1 + len(calls)]]
        assert answers == calls
        assert all(message["role"] == "tool" for message in sent[position + 1 : position + 1 + len(calls)])
        assert sent[position]["role"] != "tool"
        position += 1 + len(calls)


def test_calls_are_carried_out_in_order_until_finish(session: Session) -> None:
    sandbox = Sandbox()
    chat = Script(reply(bash("a", "1"), bash("b", "2"), text="why"), reply(bash("c", "1")), reply(finish("ok")))
    result = loop(session, chat, sandbox).run()
    assert (result.end, result.message, result.steps) == (End.FINISHED, "ok", 4)
    assert [(action.command, action.thought) for action in sandbox.ran if isinstance(action, CmdRunAction)] == [
        ("a", "why"),
        ("b", ""),
        ("c", ""),
    ]
    assert result.usage == Usage(30, 3)
    for sent in [*chat.sent, messages(session.events)]:
        assert_well_formed(sent)
    assert [message["content"][:5] for message in chat.sent[-1] if message["role"] == "tool"] == [
        "out 1",
        "out 2",
        "out 3",
    ]
    assert [event.id for event in session.events] == list(range(len(session.events)))


@pytest.mark.parametrize(
    ("limits", "end", "steps"),
    [
        ({"steps": 2}, End.STEPS, 2),
        ({"budget": Budget(max_tokens=25)}, End.BUDGET, 3),
        ({"budget": Budget(max_cost=0.00002, price_in=1.0)}, End.BUDGET, 2),
    ],
)
def test_a_limit_ends_the_run_before_the_next_call(session: Session, limits: Any, end: End, steps: int) -> None:
    result = loop(session, Script(*[reply(bash("x"))] * 9), **limits).run()
    assert (result.end, result.steps) == (end, steps)


def test_a_step_limit_within_a_reply_leaves_a_well_formed_conversation(session: Session) -> None:
    assert loop(session, Script(reply(bash("a", "1"), bash("b", "2"))), steps=1).run().end is End.STEPS
    assert_well_formed(messages(session.events))


def test_a_cost_limit_without_prices_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="prices"):
        Budget(max_cost=1.0)


def test_a_model_that_only_talks_is_asked_to_go_on_and_then_given_up(session: Session) -> None:
    chat = Script(*[reply(text="hm")] * 9)
    assert loop(session, chat).run().end is End.STALLED
    assert len(chat.sent) == MAX_TALK
    assert [message["role"] for message in chat.sent[-1]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (ToolCall("1", "dance", "{}"), "There is no tool 'dance'"),
        (ToolCall("1", "execute_bash", "{"), "not valid JSON"),
        (ToolCall("1", "execute_bash", "[]"), "JSON object"),
        (ToolCall("1", "execute_bash", "{}"), "needs `command`"),
        (ToolCall("1", "execute_bash", '{"command": 5}'), "`command` of execute_bash is a text"),
        (ToolCall("1", "execute_bash", '{"command": "x", "timeout": -1}'), "above 0"),
        (
            ToolCall("1", "str_replace_editor", '{"command": "insert", "path": "/x", "insert_line": true}'),
            "whole number",
        ),
        (ToolCall("1", "str_replace_editor", '{"command": "view", "path": "/x", "view_range": "1"}'), "list of int"),
    ],
)
def test_a_wrong_call_is_told_to_the_model_and_runs_nothing(session: Session, call: ToolCall, text: str) -> None:
    with pytest.raises(ToolFault, match=text):
        action_of(call)
    sandbox, chat = Sandbox(), Script(reply(call), reply(finish()))
    assert loop(session, chat, sandbox).run().end is End.FINISHED
    assert sandbox.ran == []
    assert text in chat.sent[-1][-1]["content"]


def test_calls_become_the_actions_that_openhands_makes_of_them() -> None:
    view = action_of(ToolCall("1", "str_replace_editor", '{"command": "view", "path": "/x", "view_range": [1, 2]}'))
    assert isinstance(view, FileReadAction)
    assert view.view_range == [1, 2]
    edit = action_of(ToolCall("1", "str_replace_editor", '{"command": "insert", "path": "/x", "insert_line": 0}'))
    assert isinstance(edit, FileEditAction)
    assert edit.insert_line == 0
    run = action_of(ToolCall("1", "execute_bash", '{"command": "x", "is_input": "true", "timeout": 5}'))
    assert isinstance(run, CmdRunAction)
    assert (run.is_input, run.timeout, run.blocking) == (True, 5.0, True)


def test_pictures_are_named_not_sent() -> None:
    assert text_of(FileReadObservation("data:image/png;base64,AAAA", path="/p.png")) == "[/p.png is a image/png file]"


# ---------------------------------------------------------------------------------------------------------- sessions


def test_a_session_goes_on_where_it_was(session: Session) -> None:
    first = loop(session, Script(reply(bash("a")))).run()
    assert (first.end, first.message) == (End.MODEL, "no more replies")
    session.close()
    with Session.resume(session.path) as again:
        assert again.head == HEAD
        chat = Script(reply(finish("later")))
        result = loop(again, chat).run("and this")
        assert (result.end, result.steps, result.usage) == (End.FINISHED, 2, Usage(20, 2))
        assert_well_formed(chat.sent[0])
        assert chat.sent[0][-1] == {"role": "user", "content": "and this"}
        assert "out 1" in chat.sent[0][-2]["content"]


def test_an_action_that_was_not_observed_is_told_as_interrupted(session: Session) -> None:
    result = loop(session, Script(reply(bash("a", "1"), bash("b", "2"))), Sandbox(lost_at=1)).run()
    assert (result.end, result.message) == (End.SANDBOX, "lost")
    session.close()
    with Session.resume(session.path) as again:
        assert again.events[-1].content == INTERRUPTED  # type: ignore[attr-defined]
        sent = messages(again.events)
        assert_well_formed(sent)
        assert [message["content"].split("\n")[0] for message in sent[-2:]] == ["out 1", INTERRUPTED]
    with Session.resume(session.path) as third:
        assert len(third.events) == len(again.events)


def test_a_last_line_that_was_cut_off_is_dropped(session: Session) -> None:
    loop(session, Script(reply(bash("a")))).run()
    session.close()
    data = session.path.read_bytes()
    session.path.write_bytes(data[:-20])
    with Session.resume(session.path) as again:
        assert again.events[-1].content == INTERRUPTED  # type: ignore[attr-defined]
    assert session.path.read_bytes().endswith(b"\n")


def test_a_session_belongs_to_one_process_at_a_time_and_is_never_overwritten(session: Session) -> None:
    with pytest.raises(SessionError, match="in use"):
        Session.resume(session.path)
    with pytest.raises(SessionError, match="there already"):
        Session.create(session.path, HEAD)
    assert session.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]\n", '{"x": 1}\n', "nonsense\n", '{"atoll_session": 1}\n'])
def test_a_file_that_is_no_session_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(SessionError, match="not a session"):
        Session.resume(path)
    path.write_text('{"atoll_session":1,"sid":"s","task":"t","model":"m"}\n{"no": 1}\n')
    with pytest.raises(SessionError, match="line 2 is no event"):
        Session.resume(path)
