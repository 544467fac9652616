"""Which MCP servers an agent may use. Field names are OpenHands'; objects of its own classes serve as well."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class MCPStdioServerConfig:
    """A program that is started inside the sandbox. Raises ValueError for a name or command that cannot be one."""

    name: str
    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("Server name can only contain letters, numbers, hyphens, and underscores")
        if not self.command.strip() or " " in self.command.strip():
            raise ValueError(
                "Command should be a single executable without spaces (use arguments field for parameters)"
            )


@dataclass(frozen=True)
class MCPSSEServerConfig:
    """A server elsewhere that speaks HTTP with server-sent events. Raises ValueError for what is no URL."""

    url: str
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_url(self.url)


@dataclass(frozen=True)
class MCPSHTTPServerConfig:
    """A server elsewhere that speaks streamable HTTP. `timeout`: seconds for one call of a tool."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: int | None = 60

    def __post_init__(self) -> None:
        _check_url(self.url)
        if self.timeout is not None and not 0 < self.timeout <= 3600:
            raise ValueError("Timeout must be positive and cannot exceed 3600 seconds")


@dataclass(frozen=True)
class MCPConfig:
    """Servers whose tools an agent may call."""

    sse_servers: Sequence[Any] = field(default_factory=list)
    stdio_servers: Sequence[Any] = field(default_factory=list)
    shttp_servers: Sequence[Any] = field(default_factory=list)


def _check_url(url: str) -> None:
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"an MCP server's URL begins with http:// or https://, not {url!r}")
