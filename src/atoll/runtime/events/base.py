"""What every event of an agent's run has in common: the words, the enums, the two roots Action and Observation.

Owns no JSON: `event_json.py` translates to and from OpenHands' form. The field names, defaults and enum values are
OpenHands' own (0.62), so that a run recorded by either side is read by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Any, ClassVar, Self


class EventSource(StrEnum):
    """Who brought the event about."""

    AGENT = "agent"
    USER = "user"
    ENVIRONMENT = "environment"


class FileEditSource(StrEnum):
    """Which way of editing: by a model that rewrites a range of lines, or by the editor's commands."""

    LLM_BASED_EDIT = "llm_based_edit"
    OH_ACI = "oh_aci"


class FileReadSource(StrEnum):
    """Which way of reading: the editor's numbered view, or the plain content."""

    OH_ACI = "oh_aci"
    DEFAULT = "default"


class RecallType(StrEnum):
    """What a recall asks for."""

    WORKSPACE_CONTEXT = "workspace_context"
    KNOWLEDGE = "knowledge"


class ActionConfirmationStatus(StrEnum):
    """Whether a person has agreed to an action."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    AWAITING_CONFIRMATION = "awaiting_confirmation"


class ActionSecurityRisk(IntEnum):
    """How dangerous the agent thinks its own action is."""

    UNKNOWN = -1
    LOW = 0
    MEDIUM = 1
    HIGH = 2


@dataclass(frozen=True, kw_only=True)
class Event:
    """One entry of a run. `id` is -1 until a stream numbers it; `timeout` is the hard timeout in seconds."""

    id: int = -1
    timestamp: str | None = None
    source: EventSource | None = None
    cause: int | None = None
    timeout: float | None = None
    tool_call_metadata: Mapping[str, Any] | None = None
    llm_metrics: Mapping[str, Any] | None = None
    response_id: str | None = None

    @property
    def message(self) -> str:
        """One line for people."""
        return ""


@dataclass(frozen=True)
class Action(Event):
    """Something that the agent or the user asks for. `kind` is its name in JSON and the runtime method that does it."""

    kind: ClassVar[str] = ""
    runnable: ClassVar[bool] = False

    @property
    def action(self) -> str:
        """The name in JSON."""
        return self.kind

    def with_hard_timeout(self, seconds: float | None, *, blocking: bool = True) -> Self:
        """A copy that ends after `seconds`. `blocking` switches off the soft timeout, where the action has one."""
        changes: dict[str, Any] = {"timeout": seconds}
        if hasattr(self, "blocking"):
            changes["blocking"] = blocking
        return replace(self, **changes)


@dataclass(frozen=True)
class Observation(Event):
    """What came of an action. Everything that an agent may read is in `content`."""

    kind: ClassVar[str] = ""

    content: str

    @property
    def observation(self) -> str:
        """The name in JSON."""
        return self.kind
