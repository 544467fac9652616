"""Every observation of OpenHands as frozen data. Field names, defaults and texts are OpenHands' (0.62)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from atoll.runtime.events.base import FileEditSource, FileReadSource, Observation, RecallType

MAX_CMD_OUTPUT_SIZE = 30000
"""Characters of a command's output that an agent gets; the middle of longer output is left out."""

TRUNCATION_NOTICE = "\n[... Observation truncated due to length ...]\n"


def truncate_middle(content: str, max_size: int = MAX_CMD_OUTPUT_SIZE) -> str:
    """The first and last half of `max_size` characters with a notice between, or `content` if it is short enough."""
    if len(content) <= max_size:
        return content
    half = max_size // 2
    return content[:half] + TRUNCATION_NOTICE + content[-half:]


@dataclass(frozen=True)
class CmdOutputMetadata:
    """What the shell reported of itself after a command. -1 and None where the command has not ended.

    `pid` is the shell's last background process; `prefix` and `suffix` are put around the output for the agent.
    """

    exit_code: int = -1
    pid: int = -1
    username: str | None = None
    hostname: str | None = None
    working_dir: str | None = None
    py_interpreter_path: str | None = None
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class CmdOutputObservation(Observation):
    """The output of a command. Truncated in the middle unless `hidden` (then no agent reads it)."""

    kind: ClassVar[str] = "run"

    command: str
    metadata: CmdOutputMetadata = field(default_factory=CmdOutputMetadata)
    hidden: bool = False

    def __post_init__(self) -> None:
        if not self.hidden:
            object.__setattr__(self, "content", truncate_middle(self.content))

    @property
    def exit_code(self) -> int:
        return self.metadata.exit_code

    @property
    def command_id(self) -> int:
        return self.metadata.pid

    @property
    def error(self) -> bool:
        return self.exit_code != 0

    @property
    def success(self) -> bool:
        return not self.error

    @property
    def message(self) -> str:
        return f"Command `{self.command}` executed with exit code {self.exit_code}."

    def to_agent_observation(self) -> str:
        """The text that an agent gets."""
        text = f"{self.metadata.prefix}{self.content}{self.metadata.suffix}"
        if self.metadata.working_dir:
            text += f"\n[Current working directory: {self.metadata.working_dir}]"
        if self.metadata.py_interpreter_path:
            text += f"\n[Python interpreter: {self.metadata.py_interpreter_path}]"
        if self.exit_code != -1:
            text += f"\n[Command finished with exit code {self.exit_code}]"
        return text


@dataclass(frozen=True)
class IPythonRunCellObservation(Observation):
    """The output of a cell, errors included: a failing cell is a result like any other. Images are data URLs."""

    kind: ClassVar[str] = "run_ipython"

    code: str
    image_urls: Sequence[str] | None = None

    @property
    def error(self) -> bool:
        return False

    @property
    def success(self) -> bool:
        return True

    @property
    def message(self) -> str:
        return "Code executed in IPython cell."


@dataclass(frozen=True)
class FileReadObservation(Observation):
    kind: ClassVar[str] = "read"

    path: str
    impl_source: FileReadSource = FileReadSource.DEFAULT

    @property
    def message(self) -> str:
        return f"I read the file {self.path}."


@dataclass(frozen=True)
class FileWriteObservation(Observation):
    kind: ClassVar[str] = "write"

    path: str

    @property
    def message(self) -> str:
        return f"I wrote to the file {self.path}."


@dataclass(frozen=True)
class FileEditObservation(Observation):
    """What the editor answered; `old_content` and `new_content` are the file before and after."""

    kind: ClassVar[str] = "edit"

    path: str = ""
    prev_exist: bool = False
    old_content: str | None = None
    new_content: str | None = None
    impl_source: FileEditSource = FileEditSource.LLM_BASED_EDIT
    diff: str | None = None

    @property
    def message(self) -> str:
        return f"I edited the file {self.path}."


@dataclass(frozen=True)
class BrowserOutputObservation(Observation):
    kind: ClassVar[str] = "browse"

    url: str
    trigger_by_action: str
    screenshot: str = field(default="", repr=False)
    screenshot_path: str | None = None
    set_of_marks: str = field(default="", repr=False)
    error: bool = False
    goal_image_urls: Sequence[str] = field(default_factory=list)
    open_pages_urls: Sequence[str] = field(default_factory=list)
    active_page_index: int = -1
    dom_object: Mapping[str, Any] = field(default_factory=dict, repr=False)
    axtree_object: Mapping[str, Any] = field(default_factory=dict, repr=False)
    extra_element_properties: Mapping[str, Any] = field(default_factory=dict, repr=False)
    last_browser_action: str = ""
    last_browser_action_error: str = ""
    focused_element_bid: str = ""
    filter_visible_only: bool = False

    @property
    def message(self) -> str:
        return "Visited " + self.url


@dataclass(frozen=True)
class FileDownloadObservation(Observation):
    kind: ClassVar[str] = "download"

    file_path: str

    @property
    def message(self) -> str:
        return f"Downloaded the file at location: {self.file_path}"


@dataclass(frozen=True)
class MCPObservation(Observation):
    kind: ClassVar[str] = "mcp"

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class ErrorObservation(Observation):
    """An error that the agent can act on. `error_id` is a constant such as `AGENT_ERROR$BAD_ACTION`, or empty."""

    kind: ClassVar[str] = "error"

    error_id: str = ""

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class NullObservation(Observation):
    kind: ClassVar[str] = "null"

    @property
    def message(self) -> str:
        return "No observation"


@dataclass(frozen=True)
class SuccessObservation(Observation):
    kind: ClassVar[str] = "success"

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class UserRejectObservation(Observation):
    kind: ClassVar[str] = "user_rejected"

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class AgentThinkObservation(Observation):
    kind: ClassVar[str] = "think"

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class TaskTrackingObservation(Observation):
    kind: ClassVar[str] = "task_tracking"

    command: str = ""
    task_list: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class AgentStateChangedObservation(Observation):
    kind: ClassVar[str] = "agent_state_changed"

    agent_state: str
    reason: str = ""


@dataclass(frozen=True)
class AgentCondensationObservation(Observation):
    kind: ClassVar[str] = "condense"

    @property
    def message(self) -> str:
        return self.content


@dataclass(frozen=True)
class AgentDelegateObservation(Observation):
    kind: ClassVar[str] = "delegate"

    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class LoopDetectionObservation(Observation):
    kind: ClassVar[str] = "loop_detection"


@dataclass(frozen=True)
class RecallObservation(Observation):
    kind: ClassVar[str] = "recall"

    recall_type: RecallType
    repo_name: str = ""
    repo_directory: str = ""
    repo_branch: str = ""
    repo_instructions: str = ""
    runtime_hosts: Mapping[str, int] = field(default_factory=dict)
    additional_agent_instructions: str = ""
    date: str = ""
    custom_secrets_descriptions: Mapping[str, str] = field(default_factory=dict)
    conversation_instructions: str = ""
    working_dir: str = ""
    microagent_knowledge: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def message(self) -> str:
        workspace = self.recall_type is RecallType.WORKSPACE_CONTEXT
        return "Added workspace context" if workspace else "Added microagent knowledge"


@dataclass(frozen=True)
class UnknownObservation(Observation):
    """An observation of a name that nobody here knows, kept as it was recorded."""

    name: str
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def observation(self) -> str:
        return self.name


OBSERVATIONS: Mapping[str, type[Observation]] = {
    cls.kind: cls
    for cls in (
        CmdOutputObservation,
        IPythonRunCellObservation,
        FileReadObservation,
        FileWriteObservation,
        FileEditObservation,
        BrowserOutputObservation,
        FileDownloadObservation,
        MCPObservation,
        ErrorObservation,
        NullObservation,
        SuccessObservation,
        UserRejectObservation,
        AgentThinkObservation,
        TaskTrackingObservation,
        AgentStateChangedObservation,
        AgentCondensationObservation,
        AgentDelegateObservation,
        LoopDetectionObservation,
        RecallObservation,
    )
}
"""Name in JSON → class."""
