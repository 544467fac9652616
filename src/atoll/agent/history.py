"""From a session's events to the messages that a model is sent. Pure.

Every tool call is followed by exactly one answer, in the order of the calls, as endpoints demand; calls of one reply
are one message. Whatever a session went through, the messages are well-formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from atoll.agent.chat import Message, Reply, ToolCall
from atoll.runtime.events.actions import MessageAction, SystemMessageAction
from atoll.runtime.events.base import Action, Event, EventSource, Observation
from atoll.runtime.events.observations import (
    CmdOutputObservation,
    FileReadObservation,
    IPythonRunCellObservation,
    truncate_middle,
)

MAX_ANSWER = 30_000


def call_metadata(reply: Reply, call: ToolCall) -> dict[str, Any]:
    """What an action remembers of the call that it came from, in OpenHands' form."""
    calls = [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
        for one in reply.calls
    ]
    message = {"role": "assistant", "content": reply.text, "tool_calls": calls}
    return {
        "function_name": call.name,
        "tool_call_id": call.id,
        "total_calls_in_response": len(calls),
        "model_response": {"id": reply.id, "choices": [{"message": message}]},
    }


def messages(events: Sequence[Event]) -> list[Message]:
    """The conversation so far."""
    answers = {
        _key(event.tool_call_metadata["model_response"]["id"], event.tool_call_metadata["tool_call_id"]): event
        for event in events
        if isinstance(event, Observation) and event.tool_call_metadata
    }
    return list(_messages(events, answers))


def _messages(events: Iterable[Event], answers: dict[tuple[str, str], Observation]) -> Iterator[Message]:
    answered: set[str] = set()
    for event in events:
        if isinstance(event, SystemMessageAction):
            yield {"role": "system", "content": event.content}
        elif isinstance(event, Action) and event.tool_call_metadata:
            reply = event.tool_call_metadata["model_response"]
            if str(reply["id"]) in answered:
                continue
            answered.add(str(reply["id"]))
            message = reply["choices"][0]["message"]
            yield message
            for call in message["tool_calls"]:
                yield from _answer(call["id"], answers.get(_key(reply["id"], call["id"])))
        elif isinstance(event, MessageAction):
            role = "assistant" if event.source == EventSource.AGENT else "user"
            yield {"role": role, "content": event.content}


def _key(reply_id: object, call_id: object) -> tuple[str, str]:
    """Endpoints number the calls of each reply anew: only together do the two name a call."""
    return str(reply_id), str(call_id)


def _answer(call_id: str, found: Observation | None) -> Iterator[Message]:
    text = text_of(found) if found is not None else "This call was not carried out: the work ended."
    yield {"role": "tool", "tool_call_id": call_id, "content": text}


def text_of(observation: Observation) -> str:
    """What a model reads of an observation. Pictures are named, not spelled out."""
    if isinstance(observation, CmdOutputObservation):
        text = observation.to_agent_observation()
    elif isinstance(observation, FileReadObservation) and observation.content.startswith("data:"):
        text = f"[{observation.path} is a {observation.content[5:].partition(';')[0]} file]"
    elif isinstance(observation, IPythonRunCellObservation) and observation.image_urls:
        text = f"{observation.content}\n[{len(observation.image_urls)} pictures]"
    else:
        text = observation.content
    return truncate_middle(text, MAX_ANSWER)
