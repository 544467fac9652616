"""The agent runtime: OpenHands' runtime contract on E2B sandboxes. What is exported here is the public interface."""

from atoll.runtime.branches import BranchTree, Checkpoint
from atoll.runtime.config import RuntimeConfig, SandboxConfig
from atoll.runtime.errors import (
    AgentRuntimeDisconnectedError,
    AgentRuntimeError,
    AgentRuntimeNotFoundError,
    AgentRuntimeNotReadyError,
    AgentRuntimeTimeoutError,
    AgentRuntimeUnavailableError,
    MalformedEvent,
)
from atoll.runtime.events.actions import (
    AgentFinishAction,
    AgentThinkAction,
    BrowseInteractiveAction,
    BrowseURLAction,
    CmdRunAction,
    FileEditAction,
    FileReadAction,
    FileWriteAction,
    IPythonRunCellAction,
    MCPAction,
    MessageAction,
    NullAction,
    TaskTrackingAction,
)
from atoll.runtime.events.base import (
    Action,
    ActionConfirmationStatus,
    ActionSecurityRisk,
    Event,
    EventSource,
    FileEditSource,
    FileReadSource,
    Observation,
)
from atoll.runtime.events.observations import (
    CmdOutputMetadata,
    CmdOutputObservation,
    ErrorObservation,
    FileEditObservation,
    FileReadObservation,
    FileWriteObservation,
    IPythonRunCellObservation,
    NullObservation,
)
from atoll.runtime.events.serialization import event_from_dict, event_to_dict
from atoll.runtime.files.filestore import E2BFileStore, SupportsFilesystemOperations
from atoll.runtime.mcp.config import MCPConfig, MCPSHTTPServerConfig, MCPSSEServerConfig, MCPStdioServerConfig
from atoll.runtime.plugins import AgentSkillsRequirement, JupyterRequirement, PluginRequirement, VSCodeRequirement
from atoll.runtime.replay import Step, Summary, load_run, replay
from atoll.runtime.runtime import E2BRuntime
from atoll.runtime.sandbox.box import E2BBox, E2BSandbox, Executed
from atoll.runtime.sandbox.embedded import EmbeddedPlatform
from atoll.runtime.status import RuntimeStatus

__all__ = [
    "Action",
    "ActionConfirmationStatus",
    "ActionSecurityRisk",
    "AgentFinishAction",
    "AgentRuntimeDisconnectedError",
    "AgentRuntimeError",
    "AgentRuntimeNotFoundError",
    "AgentRuntimeNotReadyError",
    "AgentRuntimeTimeoutError",
    "AgentRuntimeUnavailableError",
    "AgentSkillsRequirement",
    "AgentThinkAction",
    "BranchTree",
    "BrowseInteractiveAction",
    "BrowseURLAction",
    "Checkpoint",
    "CmdOutputMetadata",
    "CmdOutputObservation",
    "CmdRunAction",
    "E2BBox",
    "E2BFileStore",
    "E2BRuntime",
    "E2BSandbox",
    "EmbeddedPlatform",
    "ErrorObservation",
    "Event",
    "EventSource",
    "Executed",
    "FileEditAction",
    "FileEditObservation",
    "FileEditSource",
    "FileReadAction",
    "FileReadObservation",
    "FileReadSource",
    "FileWriteAction",
    "FileWriteObservation",
    "IPythonRunCellAction",
    "IPythonRunCellObservation",
    "JupyterRequirement",
    "MCPAction",
    "MCPConfig",
    "MCPSHTTPServerConfig",
    "MCPSSEServerConfig",
    "MCPStdioServerConfig",
    "MalformedEvent",
    "MessageAction",
    "NullAction",
    "NullObservation",
    "Observation",
    "PluginRequirement",
    "RuntimeConfig",
    "RuntimeStatus",
    "SandboxConfig",
    "Step",
    "Summary",
    "SupportsFilesystemOperations",
    "TaskTrackingAction",
    "VSCodeRequirement",
    "event_from_dict",
    "event_to_dict",
    "load_run",
    "replay",
]
