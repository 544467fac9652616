"""Replays a recorded run: the agent's actions are carried out again, messages are shown, others are counted.

    [event, …]  or  {"history": [event, …]}      OpenHands' JSON, of any version that event_json.py reads

Owns reading the file, choosing what is carried out, and comparing each new observation with the recorded one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from atoll.runtime.errors import MalformedEvent
from atoll.runtime.events.actions import AgentFinishAction, MessageAction, SystemMessageAction
from atoll.runtime.events.base import Action, Event, EventSource, Observation
from atoll.runtime.events.observations import CmdOutputObservation, ErrorObservation, FileEditObservation
from atoll.runtime.events.serialization import event_from_dict

MAX_FILE_BYTES = 512 * 1024 * 1024


class Outcome(StrEnum):
    """What became of a recorded event."""

    RUNNING = "running"
    EXECUTED = "executed"
    SHOWN = "shown"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Step:
    """One recorded event and what was done with it. `seconds` is how long the action took now.

    `difference` says how the new observation differs from the recorded one: "" if it does not, None if none was
    recorded. `reason` says why an event was skipped.
    """

    number: int
    event: Event
    outcome: Outcome
    reason: str = ""
    observation: Observation | None = None
    recorded: Observation | None = None
    difference: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Summary:
    """The whole replay."""

    steps: Sequence[Step]
    seconds: float
    counts: Mapping[Outcome, int] = field(default_factory=dict)

    @property
    def executed(self) -> int:
        return self.counts.get(Outcome.EXECUTED, 0)

    @property
    def differing(self) -> list[Step]:
        """Executed steps whose observation is not as recorded."""
        return [step for step in self.steps if step.difference]

    @property
    def errors(self) -> list[Step]:
        """Executed steps that ended in an error observation, unless the recorded one did too."""
        return [
            step
            for step in self.steps
            if isinstance(step.observation, ErrorObservation) and not isinstance(step.recorded, ErrorObservation)
        ]


class RunsActions(Protocol):
    """What replay needs of a runtime."""

    def run_action(self, action: Action) -> Observation: ...


def load_run(path: str | Path) -> list[Event]:
    """The events of a recorded run. Raises MalformedEvent naming the event that is wrong, OSError."""
    file = Path(path)
    if file.stat().st_size > MAX_FILE_BYTES:
        raise MalformedEvent(f"{file} is larger than {MAX_FILE_BYTES // 1024 // 1024} MiB")
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MalformedEvent(f"{file} is not JSON: {error}") from error
    return parse_run(data)


def parse_run(data: Any) -> list[Event]:
    """The events of a parsed JSON document. Raises MalformedEvent."""
    history = data.get("history") if isinstance(data, Mapping) else data
    if not isinstance(history, list):
        raise MalformedEvent("a recorded run is a JSON list of events, or an object with such a list as `history`")
    events = []
    for number, item in enumerate(history):
        try:
            events.append(event_from_dict(item))
        except MalformedEvent as error:
            raise MalformedEvent(f"event {number}: {error}") from error
    return events


def needs_jupyter(events: Sequence[Event]) -> bool:
    """Whether the run uses the Jupyter kernel, so that its sandbox needs one."""
    return any(isinstance(event, Action) and event.action == "run_ipython" for event in events)


def replay(
    run: str | Path | Sequence[Event],
    runtime: RunsActions,
    on_event: Callable[[Step], None] | None = None,
    *,
    timeout_s: float | None = None,
) -> Summary:
    """Replays a run, a file or its events, on a connected runtime.

    `on_event` is called for every event as it happens, for an executed action twice: when it begins (RUNNING) and when
    it has been observed. `timeout_s` limits each action instead of the recorded hard timeouts. Raises
    AgentRuntimeDisconnectedError if the sandbox is lost, MalformedEvent.
    """
    events = load_run(run) if isinstance(run, (str, Path)) else list(run)
    report = on_event or (lambda step: None)
    began = time.monotonic()
    steps: list[Step] = []
    for step in _steps(events, runtime, timeout_s):
        report(step)
        if step.outcome is not Outcome.RUNNING:
            steps.append(step)
    counts = {outcome: sum(step.outcome is outcome for step in steps) for outcome in Outcome}
    return Summary(steps, time.monotonic() - began, counts)


def _steps(events: Sequence[Event], runtime: RunsActions, timeout_s: float | None) -> Iterator[Step]:
    recorded = {event.cause: event for event in events if isinstance(event, Observation) and event.cause is not None}
    for number, event in enumerate(events):
        reason = _why_not(event)
        if isinstance(event, (MessageAction, SystemMessageAction, AgentFinishAction)):
            yield Step(number, event, Outcome.SHOWN)
        elif reason or not isinstance(event, Action):
            yield Step(number, event, Outcome.SKIPPED, reason)
        else:
            yield Step(number, event, Outcome.RUNNING)
            action = event if timeout_s is None else event.with_hard_timeout(timeout_s, blocking=False)
            began = time.monotonic()
            observation = replace(runtime.run_action(action), cause=event.id)
            old = recorded.get(event.id)
            yield Step(
                number,
                event,
                Outcome.EXECUTED,
                observation=observation,
                recorded=old,
                difference=None if old is None else difference(old, observation),
                seconds=time.monotonic() - began,
            )


def _why_not(event: Event) -> str:
    """Why an event is not carried out, "" if it is."""
    if isinstance(event, Observation):
        return "it was observed then; now it is observed anew"
    if not isinstance(event, Action) or not event.runnable:
        return "nothing for a sandbox to do"
    if event.source not in (None, EventSource.AGENT):
        return f"it is the {event.source.value}'s, not the agent's"
    return ""


def difference(old: Observation, new: Observation) -> str:
    """How two observations of the same action differ, in words; "" if they say the same.

    Directories, host names and interpreters are the sandbox's own and are not compared.
    """
    if old.observation != new.observation:
        return f"recorded {old.observation!r}, now {new.observation!r}: {_short(new.content)}"
    if isinstance(old, CmdOutputObservation) and isinstance(new, CmdOutputObservation):
        if old.exit_code != new.exit_code:
            return f"exit code {new.exit_code}, recorded {old.exit_code}"
        if old.content.strip() != new.content.strip():
            return f"output {_short(new.content)}, recorded {_short(old.content)}"
        return ""
    if isinstance(old, FileEditObservation) and isinstance(new, FileEditObservation):
        failed = new.content.startswith("ERROR:")
        if failed != old.content.startswith("ERROR:"):
            return f"the edit {'fails' if failed else 'works'} now: {_short(new.content)}"
        if old.new_content is not None and new.new_content is not None and old.new_content != new.new_content:
            return "the file's new content is another"
        return ""
    return (
        "" if old.content.strip() == new.content.strip() else f"{_short(new.content)}, recorded {_short(old.content)}"
    )


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 80 else flat[:77] + "…")
