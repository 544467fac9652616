"""The loop: ask the model, carry out what it asks for, log both, until it is done or a limit is reached.

    ask ─► reply ─► each call: action ─► observation ─► ask …
             └ without a call: a message; the model is asked to go on, three times in a row at most

Owns the limits and the order of events. The model, the runtime and the session are given to it; it ends none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from atoll.agent.budget import Budget, Usage, metrics, usage_of_metrics
from atoll.agent.chat import Chat, Message, ModelError, Reply, ToolCall
from atoll.agent.history import call_metadata, messages
from atoll.agent.session import Session
from atoll.agent.tools import ToolFault, action_of
from atoll.runtime.errors import AgentRuntimeError
from atoll.runtime.events.actions import AgentFinishAction, MessageAction, SystemMessageAction, UnknownAction
from atoll.runtime.events.base import Action, Event, EventSource, Observation
from atoll.runtime.events.observations import ErrorObservation
from atoll.runtime.replay import RunsActions

MAX_TALK = 3
"""Answers in a row without a tool call, until the run is taken for stalled."""

GO_ON = (
    "Please continue working on the task on whatever approach you think is suitable.\n"
    "If you think you have solved the task, please finish the interaction.\n"
    "IMPORTANT: YOU SHOULD NEVER ASK FOR HUMAN HELP.\n"
)
SYSTEM = (
    "You are an engineer at work in a Linux sandbox that is yours alone. The directory {workspace} is your workspace. "
    "Use the tools: look before you change, run what you wrote, and say what you did when you finish. "
    "One command at a time; long ones go on running while you look at other things."
)


E = TypeVar("E", bound=Event)


class End(StrEnum):
    """Why a run is over."""

    FINISHED = "finished"
    STEPS = "steps"
    BUDGET = "budget"
    STALLED = "stalled"
    MODEL = "model"
    SANDBOX = "sandbox"


@dataclass(frozen=True, slots=True)
class Limits:
    """`steps` are actions that are carried out; those of an earlier part of a session count."""

    steps: int = 100
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended, what was done and spent over the whole session, and the last word."""

    end: End
    steps: int
    usage: Usage
    cost: float
    message: str = ""


class AgentLoop:
    """One session with one model in one runtime. `on_event` gets every event after it was logged."""

    def __init__(
        self,
        session: Session,
        runtime: RunsActions,
        chat: Chat,
        tools: Sequence[Message],
        limits: Limits | None = None,
        on_event: Callable[[Event], None] | None = None,
        workspace: str = "/workspace",
    ) -> None:
        self._session = session
        self._runtime = runtime
        self._chat = chat
        self._tools = tools
        self._limits = limits or Limits()
        self._on_event = on_event or (lambda event: None)
        self._workspace = workspace
        acted = [event for event in session.events if isinstance(event, Action) and event.tool_call_metadata]
        self._steps = len(acted)
        spent = [usage_of_metrics(event.llm_metrics) for event in session.events if event.llm_metrics]
        self._usage = max(spent, key=lambda usage: usage.tokens, default=Usage())
        self._talk = 0

    def run(self, more: str | None = None) -> Result:
        """Until an End. `more` is a further message of the user, for a session that goes on."""
        if not self._session.events:
            self._add(SystemMessageAction(SYSTEM.format(workspace=self._workspace), source=EventSource.AGENT))
            self._add(MessageAction(self._session.head.task, source=EventSource.USER))
        if more:
            self._add(MessageAction(more, source=EventSource.USER))
        while True:
            if self._steps >= self._limits.steps:
                return self._result(End.STEPS, f"{self._steps} steps were made")
            if reason := self._limits.budget.exceeded(self._usage):
                return self._result(End.BUDGET, reason)
            try:
                reply = self._chat.ask(messages(self._session.events), self._tools)
            except ModelError as error:
                return self._result(End.MODEL, str(error))
            self._usage += reply.usage
            # Endpoints of one's own often give every answer the same id.
            reply = replace(reply, id=f"{reply.id}-{len(self._session.events)}")
            if (result := self._act(reply)) is not None:
                return result

    def _act(self, reply: Reply) -> Result | None:
        if not reply.calls:
            return self._talked(reply)
        self._talk = 0
        for number, call in enumerate(reply.calls):
            if self._steps >= self._limits.steps:
                return self._result(End.STEPS, f"{self._steps} steps were made")
            try:
                finished = self._call(reply, call, thought=reply.text if number == 0 else "")
            except AgentRuntimeError as error:
                return self._result(End.SANDBOX, str(error))
            if finished is not None:
                return self._result(End.FINISHED, finished)
        return None

    def _talked(self, reply: Reply) -> Result | None:
        spent = metrics(self._usage, self._limits.budget)
        self._add(MessageAction(reply.text, source=EventSource.AGENT, llm_metrics=spent, response_id=reply.id))
        self._talk += 1
        if self._talk >= MAX_TALK:
            return self._result(End.STALLED, f"{MAX_TALK} answers in a row used no tool")
        self._add(MessageAction(GO_ON, source=EventSource.USER))
        return None

    def _call(self, reply: Reply, call: ToolCall, thought: str) -> str | None:
        """Carries out one call; the model's last word if it is `finish`. Raises AgentRuntimeError."""
        self._steps += 1
        fault = None
        try:
            action = action_of(call, thought)
        except ToolFault as error:
            action, fault = UnknownAction(name=call.name), str(error)
        metadata = call_metadata(reply, call)
        action = self._add(
            replace(
                action,
                source=EventSource.AGENT,
                tool_call_metadata=metadata,
                response_id=reply.id,
                llm_metrics=metrics(self._usage, self._limits.budget),
            )
        )
        if isinstance(action, AgentFinishAction):
            return action.final_thought
        found: Observation = ErrorObservation(fault) if fault else self._runtime.run_action(action)
        self._observe(replace(found, cause=action.id), metadata)
        return None

    def _observe(self, found: Observation, metadata: dict[str, object]) -> None:
        self._add(replace(found, source=EventSource.ENVIRONMENT, tool_call_metadata=metadata))

    def _add(self, event: E) -> E:
        added = self._session.add(event)
        self._on_event(added)
        return added

    def _result(self, end: End, message: str) -> Result:
        return Result(end, self._steps, self._usage, self._limits.budget.cost(self._usage), message)
