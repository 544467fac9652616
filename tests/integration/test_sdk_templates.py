"""Definitions of templates, as the published SDK's builder makes them: all in the client, without a server.

What is done with a definition (`Template.build`) is in `test_sdk_template_builds.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2b import AsyncTemplate, Template, wait_for_port


def _definition(builder: Any) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(Template.to_json(builder))
    return definition


def _steps(builder: Any) -> list[tuple[str, str]]:
    return [(step["type"], step["args"][0]) for step in _definition(builder)["steps"]]


def test_every_base_is_named_in_the_definition() -> None:
    bases = [
        (Template().from_alpine_image("3.20"), "alpine:3.20"),
        (Template().from_arch_image(), "archlinux:latest"),
        (Template().from_base_image(), "e2bdev/base"),
        (Template().from_bun_image("1"), "oven/bun:1"),
        (Template().from_debian_image("bookworm"), "debian:bookworm"),
        (Template().from_fedora_image("41"), "fedora:41"),
        (Template().from_image("my/image:1"), "my/image:1"),
        (Template().from_node_image("22"), "node:22"),
        (Template().from_python_image("3.12"), "python:3.12"),
        (Template().from_ubuntu_image("24.04"), "ubuntu:24.04"),
    ]
    assert [_definition(base)["fromImage"] for base, _ in bases] == [image for _, image in bases]
    assert _definition(Template().from_template("base"))["fromTemplate"] == "base"


async def test_every_base_is_named_in_the_definition_async() -> None:
    bases = [
        (AsyncTemplate().from_alpine_image("3.20"), "alpine:3.20"),
        (AsyncTemplate().from_arch_image(), "archlinux:latest"),
        (AsyncTemplate().from_base_image(), "e2bdev/base"),
        (AsyncTemplate().from_bun_image("1"), "oven/bun:1"),
        (AsyncTemplate().from_debian_image("bookworm"), "debian:bookworm"),
        (AsyncTemplate().from_fedora_image("41"), "fedora:41"),
        (AsyncTemplate().from_image("my/image:1"), "my/image:1"),
        (AsyncTemplate().from_node_image("22"), "node:22"),
        (AsyncTemplate().from_python_image("3.12"), "python:3.12"),
        (AsyncTemplate().from_ubuntu_image("24.04"), "ubuntu:24.04"),
    ]
    assert [_definition(base)["fromImage"] for base, _ in bases] == [image for _, image in bases]
    assert json.loads(AsyncTemplate.to_json(AsyncTemplate().from_template("base")))["fromTemplate"] == "base"
    assert AsyncTemplate.to_dockerfile(bases[0][0]).strip() == "FROM alpine:3.20"


def test_a_private_registry_is_named_with_its_credentials() -> None:
    amazon = Template().from_aws_registry("x/y", access_key_id="id", secret_access_key="word", region="eu")
    google = Template().from_gcp_registry("x/y", service_account_json={"project": "p"})
    assert _definition(amazon)["fromImageRegistry"]["awsRegion"] == "eu"
    assert json.loads(_definition(google)["fromImageRegistry"]["serviceAccountJson"]) == {"project": "p"}


async def test_a_private_registry_is_named_with_its_credentials_async() -> None:
    amazon = AsyncTemplate().from_aws_registry("x/y", access_key_id="id", secret_access_key="word", region="eu")
    google = AsyncTemplate().from_gcp_registry("x/y", service_account_json={"project": "p"})
    assert _definition(amazon)["fromImageRegistry"]["type"] == "aws"
    assert _definition(google)["fromImageRegistry"]["type"] == "gcp"


DOCKERFILE = "FROM debian:12\nRUN apt-get update\nENV A=b\nWORKDIR /srv\nUSER www-data\n"


def test_a_dockerfile_becomes_a_definition_and_a_definition_a_dockerfile() -> None:
    builder = Template().from_dockerfile(DOCKERFILE)
    assert json.loads(Template.to_json(builder))["fromImage"] == "debian:12"
    assert _steps(builder)[2:] == [
        ("RUN", "apt-get update"),
        ("ENV", "A"),
        ("WORKDIR", "/srv"),
        ("USER", "www-data"),
    ]
    told = Template.to_dockerfile(builder)
    assert told.startswith("FROM debian:12\n")
    assert "RUN apt-get update\nENV A=b\nWORKDIR /srv\nUSER www-data\n" in told


async def test_a_dockerfile_becomes_a_definition_async() -> None:
    builder = AsyncTemplate().from_dockerfile(DOCKERFILE)
    assert json.loads(AsyncTemplate.to_json(builder))["fromImage"] == "debian:12"


def test_every_step_of_a_builder_is_in_the_definition(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("content")
    builder = Template(file_context_path=tmp_path).from_image("image")
    builder.set_envs({"A": "1"})
    builder.set_user("root")
    builder.set_workdir("/srv")
    builder.run_cmd(["one", "two"])
    builder.copy("here", "there")
    builder.copy_items([{"src": "here", "dest": "again"}])
    builder.make_dir("/made")
    builder.make_symlink("/from", "/to")
    builder.rename("/a", "/b")
    builder.remove("/gone")
    builder.apt_install("git")
    builder.pip_install("numpy")
    builder.npm_install("left-pad")
    builder.bun_install("elysia")
    builder.git_clone("https://example.com/r.git", "/repo")
    assert _steps(builder) == [
        ("ENV", "A"),
        ("USER", "root"),
        ("WORKDIR", "/srv"),
        ("RUN", "one && two"),
        ("COPY", "here"),
        ("COPY", "here"),
        ("RUN", "mkdir -p /made"),
        ("RUN", "ln -s /from /to"),
        ("RUN", "mv /a /b"),
        ("RUN", "rm /gone"),
        (
            "RUN",
            "apt-get update && DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get install -y git",
        ),
        ("RUN", "pip install numpy"),
        ("RUN", "npm install left-pad"),
        ("RUN", "bun install elysia"),
        ("RUN", "git clone https://example.com/r.git /repo"),
    ]
    copied = [step for step in _definition(builder)["steps"] if step["type"] == "COPY"]
    assert len({step["filesHash"] for step in copied}) == len(copied)  # where it goes is part of it


def test_start_and_ready_commands_and_a_skipped_cache_are_in_the_definition() -> None:
    builder = Template().skip_cache().from_image("image")
    builder.run_cmd("before")
    started = builder.set_start_cmd("serve", wait_for_port(8000))
    definition = _definition(started)
    assert (definition["startCmd"], "8000" in definition["readyCmd"]) == ("serve", True)
    assert definition["force"] is True
    builder = Template().from_image("image")
    builder.run_cmd("kept")
    builder.skip_cache()
    builder.run_cmd("again")
    assert [step["force"] for step in _definition(builder)["steps"]] == [False, True]
    ready = Template().from_image("image")
    assert _definition(ready.set_ready_cmd("true"))["readyCmd"] == "true"


async def test_a_skipped_cache_is_in_the_definition_async() -> None:
    assert _definition(AsyncTemplate().skip_cache().from_image("image"))["force"] is True


def test_what_a_template_of_its_own_offers_can_be_named() -> None:
    builder = Template().from_template("mcp-gateway")
    builder.add_mcp_server("exa")
    assert "exa" in _steps(builder)[0][1]
    container = Template().from_template("devcontainer")
    container.beta_dev_container_prebuild("/repo")
    container.beta_set_dev_container_start("/repo")
    assert "/repo" in json.dumps(_definition(container))
