"""A small controller: a model acts in a sandbox through the agent runtime, and all of it is logged."""

from atoll.agent.budget import Budget, Usage
from atoll.agent.chat import Chat, ChatModel, ModelError, Reply, ToolCall
from atoll.agent.loop import AgentLoop, End, Limits
from atoll.agent.session import Session, SessionError, SessionHead

__all__ = [
    "AgentLoop",
    "Budget",
    "Chat",
    "ChatModel",
    "End",
    "Limits",
    "ModelError",
    "Reply",
    "Session",
    "SessionError",
    "SessionHead",
    "ToolCall",
    "Usage",
]
