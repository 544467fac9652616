"""The runtime's configuration: OpenHands' SandboxConfig and the few fields of its config that a runtime reads.

Inputs that we own reject unknown fields; every field of OpenHands (0.62) is here with its default. What each one does
in this runtime is in docs/runtime.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atoll.runtime.mcp.config import MCPConfig

DEFAULT_BASE_IMAGE = "nikolaik/python-nodejs:python3.12-nodejs22"


class SandboxConfig(BaseModel):
    """OpenHands' sandbox settings. Times are seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    remote_runtime_api_url: str | None = "http://localhost:8000"
    local_runtime_url: str = "http://localhost"
    keep_runtime_alive: bool = False
    pause_closed_runtimes: bool = True
    rm_all_containers: bool = False
    api_key: str | None = Field(default=None, repr=False)
    base_container_image: str | None = DEFAULT_BASE_IMAGE
    runtime_container_image: str | None = None
    user_id: int = Field(default_factory=lambda: os.getuid() or 1000)
    timeout: int = 120
    remote_runtime_init_timeout: int = 180
    remote_runtime_api_timeout: int = 180
    remote_runtime_enable_retries: bool = True
    remote_runtime_class: str | None = None
    enable_auto_lint: bool = False
    use_host_network: bool = False
    additional_networks: list[str] = Field(default_factory=list)
    runtime_binding_address: str = "0.0.0.0"
    runtime_extra_build_args: list[str] | None = None
    initialize_plugins: bool = True
    force_rebuild_runtime: bool = False
    runtime_extra_deps: str | None = None
    runtime_startup_env_vars: dict[str, str] = Field(default_factory=dict, repr=False)
    browsergym_eval_env: str | None = None
    platform: str | None = None
    close_delay: int = 3600
    remote_runtime_resource_factor: int = 1
    enable_gpu: bool = False
    docker_runtime_kwargs: dict[str, Any] | None = None
    selected_repo: str | None = None
    trusted_dirs: list[str] = Field(default_factory=list)
    vscode_port: int | None = None
    volumes: str | None = None
    cuda_visible_devices: str | None = None

    @classmethod
    def from_toml_section(cls, data: Mapping[str, Any]) -> dict[str, SandboxConfig]:
        """`{"sandbox": SandboxConfig}` from a `[sandbox]` table. Raises ValueError naming what is wrong."""
        try:
            return {"sandbox": cls.model_validate(dict(data))}
        except ValidationError as error:
            raise ValueError(f"Invalid sandbox configuration: {error}") from error

    @classmethod
    def of(cls, other: Any) -> SandboxConfig:
        """Ours as it is; OpenHands' own object by its names, fields that its version lacks at their defaults."""
        if isinstance(other, cls):
            return other
        found = {name: getattr(other, name) for name in cls.model_fields if hasattr(other, name)}
        secret = getattr(found.get("api_key"), "get_secret_value", None)
        if secret is not None:
            found["api_key"] = secret()
        return cls.model_validate(found)

    @model_validator(mode="before")
    @classmethod
    def _default_base_image(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "base_container_image" in data and data["base_container_image"] is None:
            return {**data, "base_container_image": DEFAULT_BASE_IMAGE}
        return data


class RuntimeConfig(BaseModel):
    """What a runtime reads of OpenHands' config. An OpenHandsConfig object serves as well: only names are used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sandbox: SandboxConfig = Field(default_factory=SandboxConfig)
    workspace_base: str | None = None
    workspace_mount_path: str | None = None
    workspace_mount_path_in_sandbox: str = "/workspace"
    run_as_openhands: bool = True
    enable_browser: bool = True
    init_git_in_empty_workspace: bool = False
    git_user_name: str = "openhands"
    git_user_email: str = "openhands@all-hands.dev"
    mcp: MCPConfig = Field(default_factory=MCPConfig)
