"""Every action of OpenHands as frozen data. Field names and defaults are OpenHands' (0.62)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from atoll.runtime.events.base import (
    Action,
    ActionConfirmationStatus,
    ActionSecurityRisk,
    FileEditSource,
    FileReadSource,
    RecallType,
)


@dataclass(frozen=True)
class CmdRunAction(Action):
    """A command for the persistent shell, or (`is_input`) text or a key such as `C-c` for the program that runs in it.

    An empty command asks for new output of the running program. `is_static` runs it in a process of its own, in `cwd`.
    """

    kind: ClassVar[str] = "run"
    runnable: ClassVar[bool] = True

    command: str
    is_input: bool = False
    thought: str = ""
    blocking: bool = False
    is_static: bool = False
    cwd: str | None = None
    hidden: bool = False
    confirmation_state: ActionConfirmationStatus = ActionConfirmationStatus.CONFIRMED
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN

    @property
    def message(self) -> str:
        return f"Running command: {self.command}"


@dataclass(frozen=True)
class IPythonRunCellAction(Action):
    """A cell for the Jupyter kernel. `include_extra` appends the `[Jupyter …]` lines to the output."""

    kind: ClassVar[str] = "run_ipython"
    runnable: ClassVar[bool] = True

    code: str
    thought: str = ""
    include_extra: bool = True
    confirmation_state: ActionConfirmationStatus = ActionConfirmationStatus.CONFIRMED
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN
    kernel_init_code: str = ""

    @property
    def message(self) -> str:
        return f"Running Python code interactively: {self.code}"


@dataclass(frozen=True)
class FileReadAction(Action):
    """Lines `start` to `end` of a file (from 0, -1 is the end). `view_range` only for the editor's view."""

    kind: ClassVar[str] = "read"
    runnable: ClassVar[bool] = True

    path: str
    start: int = 0
    end: int = -1
    thought: str = ""
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN
    impl_source: FileReadSource = FileReadSource.DEFAULT
    view_range: Sequence[int] | None = None

    @property
    def message(self) -> str:
        return f"Reading file: {self.path}"


@dataclass(frozen=True)
class FileWriteAction(Action):
    """Replaces lines `start` to `end` (from 0, -1 is the end) of a file, by default all of it."""

    kind: ClassVar[str] = "write"
    runnable: ClassVar[bool] = True

    path: str
    content: str
    start: int = 0
    end: int = -1
    thought: str = ""
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN

    @property
    def message(self) -> str:
        return f"Writing file: {self.path}"


@dataclass(frozen=True)
class FileEditAction(Action):
    """An editor command (view, create, str_replace, insert, undo_edit), or without one an edit of a range of lines.

    The range counts from 1, both ends included; -1 as `end` is the last line, as `start` it appends.
    """

    kind: ClassVar[str] = "edit"
    runnable: ClassVar[bool] = True

    path: str
    command: str = ""
    file_text: str | None = None
    old_str: str | None = None
    new_str: str | None = None
    insert_line: int | None = None
    content: str = ""
    start: int = 1
    end: int = -1
    thought: str = ""
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN
    impl_source: FileEditSource = FileEditSource.OH_ACI


@dataclass(frozen=True)
class BrowseURLAction(Action):
    kind: ClassVar[str] = "browse"
    runnable: ClassVar[bool] = True

    url: str
    thought: str = ""
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN
    return_axtree: bool = False

    @property
    def message(self) -> str:
        return f"I am browsing the URL: {self.url}"


@dataclass(frozen=True)
class BrowseInteractiveAction(Action):
    kind: ClassVar[str] = "browse_interactive"
    runnable: ClassVar[bool] = True

    browser_actions: str
    thought: str = ""
    browsergym_send_msg_to_user: str = ""
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN
    return_axtree: bool = False

    @property
    def message(self) -> str:
        return f"I am interacting with the browser:\n```\n{self.browser_actions}\n```"


@dataclass(frozen=True)
class MCPAction(Action):
    kind: ClassVar[str] = "call_tool_mcp"
    runnable: ClassVar[bool] = True

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    thought: str = ""
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN

    @property
    def message(self) -> str:
        return (
            f"I am interacting with the MCP server with name:\n```\n{self.name}\n```\n"
            f"and arguments:\n```\n{dict(self.arguments)}\n```"
        )


@dataclass(frozen=True)
class AgentThinkAction(Action):
    kind: ClassVar[str] = "think"

    thought: str = ""

    @property
    def message(self) -> str:
        return f"I am thinking...: {self.thought}"


@dataclass(frozen=True)
class TaskTrackingAction(Action):
    """`plan` writes the task list, `view` reads it."""

    kind: ClassVar[str] = "task_tracking"

    command: str = "view"
    task_list: Sequence[Mapping[str, Any]] = field(default_factory=list)
    thought: str = ""

    @property
    def message(self) -> str:
        if not self.task_list:
            return "Clearing the task list."
        return f"Managing {len(self.task_list)} task item{'' if len(self.task_list) == 1 else 's'}."


@dataclass(frozen=True)
class NullAction(Action):
    kind: ClassVar[str] = "null"

    @property
    def message(self) -> str:
        return "No action"


@dataclass(frozen=True)
class MessageAction(Action):
    kind: ClassVar[str] = "message"

    content: str
    file_urls: Sequence[str] | None = None
    image_urls: Sequence[str] | None = None
    wait_for_response: bool = False
    security_risk: ActionSecurityRisk = ActionSecurityRisk.UNKNOWN

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class SystemMessageAction(Action):
    kind: ClassVar[str] = "system"

    content: str
    tools: Sequence[Any] | None = None
    openhands_version: str | None = None
    agent_class: str | None = None

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class AgentFinishAction(Action):
    kind: ClassVar[str] = "finish"

    final_thought: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    thought: str = ""

    @property
    def message(self) -> str:
        return self.thought or "All done! What's next on the agenda?"


@dataclass(frozen=True)
class AgentRejectAction(Action):
    kind: ClassVar[str] = "reject"

    outputs: Mapping[str, Any] = field(default_factory=dict)
    thought: str = ""

    @property
    def message(self) -> str:
        reason = self.outputs.get("reason")
        return "Task is rejected by the agent." + (f" Reason: {reason}" if reason else "")


@dataclass(frozen=True)
class AgentDelegateAction(Action):
    kind: ClassVar[str] = "delegate"

    agent: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    thought: str = ""

    @property
    def message(self) -> str:
        return f"I'm asking {self.agent} for help with this task."


@dataclass(frozen=True)
class RecallAction(Action):
    kind: ClassVar[str] = "recall"

    recall_type: RecallType
    query: str = ""
    thought: str = ""

    @property
    def message(self) -> str:
        return f"Retrieving content for: {self.query[:50]}"


@dataclass(frozen=True)
class ChangeAgentStateAction(Action):
    kind: ClassVar[str] = "change_agent_state"

    agent_state: str
    thought: str = ""

    @property
    def message(self) -> str:
        return f"Agent state changed to {self.agent_state}"


@dataclass(frozen=True)
class CondensationAction(Action):
    kind: ClassVar[str] = "condensation"

    forgotten_event_ids: Sequence[int] | None = None
    forgotten_events_start_id: int | None = None
    forgotten_events_end_id: int | None = None
    summary: str | None = None
    summary_offset: int | None = None

    @property
    def message(self) -> str:
        return f"Summary: {self.summary}" if self.summary else "Condenser is dropping events."


@dataclass(frozen=True)
class CondensationRequestAction(Action):
    kind: ClassVar[str] = "condensation_request"

    @property
    def message(self) -> str:
        return "Requesting a condensation of the conversation history."


@dataclass(frozen=True)
class LoopRecoveryAction(Action):
    kind: ClassVar[str] = "loop_recovery"

    option: int = 1

    @property
    def message(self) -> str:
        return "Recovering from dead loop."


@dataclass(frozen=True)
class UnknownAction(Action):
    """An action of a name that nobody here knows: kept as it was recorded, refused by the runtime."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def action(self) -> str:
        return self.name


ACTIONS: Mapping[str, type[Action]] = {
    cls.kind: cls
    for cls in (
        CmdRunAction,
        IPythonRunCellAction,
        FileReadAction,
        FileWriteAction,
        FileEditAction,
        BrowseURLAction,
        BrowseInteractiveAction,
        MCPAction,
        AgentThinkAction,
        TaskTrackingAction,
        NullAction,
        MessageAction,
        SystemMessageAction,
        AgentFinishAction,
        AgentRejectAction,
        AgentDelegateAction,
        RecallAction,
        ChangeAgentStateAction,
        CondensationAction,
        CondensationRequestAction,
        LoopRecoveryAction,
    )
}
"""Name in JSON → class."""
