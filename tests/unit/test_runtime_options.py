"""SandboxConfig: every field is honoured, mapped, told or refused; nothing is ignored in silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import AuthenticationException, RateLimitException, SandboxException

from atoll.runtime import SandboxConfig
from atoll.runtime.options import (
    REFUSED,
    WARNED,
    HostCopy,
    missing_template_hint,
    sandbox_options,
    template_of_toml,
)
from atoll.runtime.sandbox.box import connection_of, is_passing

DOCUMENT = Path(__file__).parents[2] / "docs" / "runtime.md"


def options(template: str | None = None, **fields: Any) -> Any:
    return sandbox_options(SandboxConfig(**fields), template)


def test_every_field_is_in_the_documents_table() -> None:
    table = DOCUMENT.read_text().split("## SandboxConfig")[1].split("\n## ")[0]
    told = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if line[:1] == "|")))
    assert set(SandboxConfig.model_fields) - told == set()


def test_the_defaults_ask_for_nothing() -> None:
    found = options()
    assert (found.template, found.create, found.copies, found.warnings) == ("base", {}, (), ())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("remote_runtime_class", "sysbox"),
        ("use_host_network", True),
        ("additional_networks", ["n"]),
        ("runtime_extra_build_args", ["--x"]),
        ("browsergym_eval_env", "e"),
        ("cuda_visible_devices", "0"),
        ("base_container_image", "python:3.11"),
        ("remote_runtime_resource_factor", 3),
        ("platform", "windows/amd64"),
        ("docker_runtime_kwargs", {"mem_limit": "4g"}),
        ("docker_runtime_kwargs", {"privileged": True}),
        ("volumes", "/data:/data"),
        ("volumes", "/data:/data:rw"),
        ("volumes", "name:/data:ro"),
        ("volumes", "/data:/data:overlay"),
        ("volumes", "/data"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_fields_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"sandbox\.{field}.*cannot be done here: \w+"):
        options(**{field: value})


def test_every_refused_and_told_field_exists() -> None:
    assert set(REFUSED) | set(WARNED) <= set(SandboxConfig.model_fields)


def test_settings_of_other_runtimes_are_told() -> None:
    found = options(remote_runtime_api_url="https://x", force_rebuild_runtime=True)
    assert [warning.split()[0] for warning in found.warnings] == [
        "sandbox.remote_runtime_api_url",
        "sandbox.force_rebuild_runtime",
    ]


def test_size_and_gpu_choose_the_template() -> None:
    assert options(remote_runtime_resource_factor=4).template == "base-x4"
    assert options("mine", enable_gpu=True, remote_runtime_resource_factor=2).template == "mine-gpu-x2"
    chosen = options(enable_gpu=True, cuda_visible_devices="0, 1")
    assert (chosen.template, chosen.metadata) == ("base-gpu", {"atoll.gpu": "index:0,1"})
    assert "base-x4" in (missing_template_hint(SandboxConfig(remote_runtime_resource_factor=4), "base-x4") or "")
    assert missing_template_hint(SandboxConfig(), "base") is None


def test_the_template_may_be_named_by_an_e2b_toml(tmp_path: Path) -> None:
    file = tmp_path / "e2b.toml"
    file.write_text('template_name = "openhands"\ntemplate_id = "785n69"\n')
    assert options(runtime_container_image=str(file)).template == "785n69"
    file.write_text('template_name = "openhands"\n')
    assert template_of_toml(file) == "openhands"
    file.write_text("dockerfile = 1\n")
    with pytest.raises(ValueError, match="names no template"):
        template_of_toml(file)
    file.write_text("x = ")
    with pytest.raises(ValueError, match="not a TOML file"):
        template_of_toml(file)


def test_volumes_and_docker_options_are_mapped() -> None:
    found = options(
        volumes="data:/data, /host/x:/x:ro",
        docker_runtime_kwargs={"environment": ["A=1", "B=x=y"], "network_mode": "none", "detach": True},
    )
    assert found.create == {"allow_internet_access": False, "volume_mounts": {"/data": "data"}}
    assert found.copies == (HostCopy("/host/x", "/x"),)
    assert found.envs == {"A": "1", "B": "x=y"}


def test_a_configured_key_counts_only_without_one_in_the_environment() -> None:
    found = options(api_key="e2b_configured")
    assert connection_of(found, {"E2B_DOMAIN": "x"})["api_key"] == "e2b_configured"
    assert connection_of(found, {})["api_key"] == "e2b_configured"
    assert "api_key" not in connection_of(found, {"E2B_API_KEY": "e2b_other"})
    assert "e2b_configured" not in repr(found) + repr(SandboxConfig(api_key="e2b_configured"))


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (SandboxException("500: the sandbox was not ready within 20 s"), True),
        (SandboxException("503: full"), True),
        (RateLimitException("429"), True),
        (httpx.ConnectError("refused"), True),
        (SandboxException("404: template 'x' not found"), False),
        (SandboxException("400: 500: no"), False),
        (AuthenticationException("401: no key"), False),
        (httpx.ReadTimeout("perhaps it was made"), False),
    ],
)
def test_a_create_is_tried_again_where_it_may_work_a_little_later(error: Exception, passing: bool) -> None:
    assert is_passing(error) is passing


def test_openhands_own_objects_are_read_by_their_names() -> None:
    class Secret:
        def get_secret_value(self) -> str:
            return "k"

    class Theirs:
        timeout, close_delay, api_key, unknown = 7, 9, Secret(), object()

    found = SandboxConfig.of(Theirs())
    assert (found.timeout, found.close_delay, found.api_key, found.keep_runtime_alive) == (7, 9, "k", False)
