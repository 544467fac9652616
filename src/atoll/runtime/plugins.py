"""Plugins that an agent may require, by OpenHands' names. Anything with a `name` serves as a requirement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PluginRequirement:
    """What an agent asks of a runtime."""

    name: str


@dataclass(frozen=True)
class JupyterRequirement(PluginRequirement):
    name: str = "jupyter"


@dataclass(frozen=True)
class AgentSkillsRequirement(PluginRequirement):
    name: str = "agent_skills"


@dataclass(frozen=True)
class VSCodeRequirement(PluginRequirement):
    name: str = "vscode"


def plugin_names(plugins: Iterable[Any] | None) -> frozenset[str]:
    """Names of requirements that are given as objects or as names."""
    return frozenset(plugin if isinstance(plugin, str) else str(plugin.name) for plugin in plugins or ())
