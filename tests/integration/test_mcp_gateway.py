"""`Sandbox.create(mcp=…)` of both SDKs: servers from a git host, npm and pip behind one URL, used by the `mcp` package.

The git host is a directory of the template, in place of the public one by git's `insteadOf`; packages are files.
"""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import AsyncSandbox, Sandbox, SandboxException, SandboxQuery, Template

from atoll.images.store import TemplateStore
from support.python_environment import InstallFailed, python_environment, run_installer
from support.tiers import one_tier

pytestmark = [pytest.mark.timeout(300), one_tier("programs in a template, started as any other and reached by a port")]

SUPPORT = Path(__file__).parents[1] / "support"
SERVER = (SUPPORT / "mcp_server.py").read_text()
CONFIG: dict[str, Any] = {
    "github/acme/tools": {"install_cmd": "touch installed", "run_cmd": "python3 server.py", "envs": {"GIVEN": "one"}},
    "pip/pip-tool": {"package": "/srv/pip_tool-1-py3-none-any.whl"},
    "npm/npm-tool": {"package": "/srv/npm-tool", "envs": {"TOOL_NAME": "by_npm"}},
}


@pytest.fixture(scope="module")
def client_python() -> Path:
    """Of an environment with the official client."""
    try:
        return python_environment("mcp-2", ["mcp>=2.3,<3"], resolve=True)
    except InstallFailed as error:
        pytest.skip(f"the package `mcp` cannot be installed here: {error}")


@pytest.fixture(scope="module")
def template(server: Any, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`mcp-gateway` with what its servers are installed from."""
    TemplateStore(templates_dir).ensure_template("mcp-gateway")
    place = tmp_path_factory.mktemp("mcp")
    srv, work = place / "srv", place / "work"
    (srv / "git" / "acme").mkdir(parents=True)
    work.mkdir()
    (work / "server.py").write_text(SERVER)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q", "."], ["add", "."], ["commit", "-qm", "1"]):
        subprocess.run([*git, *command], cwd=work, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(srv / "git" / "acme" / "tools")], check=True)
    (srv / "gitconfig").write_text('[url "file:///srv/git/"]\n\tinsteadOf = https://github.com/\n')
    with zipfile.ZipFile(srv / "pip_tool-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pip_tool.py", SERVER)
        info = "pip_tool-1.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pip-tool\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\npip-tool = pip_tool:main\n")
        wheel.writestr(f"{info}/RECORD", "")
    (srv / "npm-tool").mkdir()
    (srv / "npm-tool" / "package.json").write_text('{"name": "npm-tool", "version": "1.0.0", "bin": "server.py"}')
    (srv / "npm-tool" / "server.py").write_text(f"#!/usr/bin/env python3\n{SERVER}")
    (srv / "npm-tool" / "server.py").chmod(0o755)
    name = "mcp-local"
    builder = Template(file_context_path=place).from_template("mcp-gateway")
    Template.build(builder.copy("srv", "/srv", user="root").set_envs({"GIT_CONFIG_SYSTEM": "/srv/gitconfig"}), name)
    return name


def _call(python: Path, server: Any, sandbox_id: str, token: str, calls: list[Any]) -> dict[str, Any]:
    routed = {"e2b-sandbox-id": sandbox_id, "e2b-sandbox-port": "50005", "authorization": f"Bearer {token}"}
    given = {"url": f"{server.url}/mcp", "headers": routed, "calls": calls}
    program = str(SUPPORT / "mcp_client_program.py")
    found: dict[str, Any] = json.loads(run_installer([str(python), program, json.dumps(given)]))
    return found


def test_servers_of_every_origin_answer_behind_one_url(server: Any, template: str, client_python: Path) -> None:
    servers = "/opt/mcp-gateway/servers"
    with Sandbox.create(template, mcp=CONFIG, timeout=200) as sandbox:
        host, token = sandbox.get_host(50005), sandbox.get_mcp_token()
        assert sandbox.get_mcp_url() == f"https://{host}/mcp"
        assert token
        calls = {
            "where": f"{servers}/github_acme_tools one True a False",
            "pip-tool_where": f"{servers}/pip_pip-tool - False a False",
            "by_npm": f"{servers}/npm_npm-tool - False a False",
        }
        tools = list(calls)
        asked = [*([tool, {"word": "a"}] for tool in tools), [tools[-1], {"word": "end"}], ["none", {}]]
        found = _call(client_python, server, sandbox.sandbox_id, token, [*asked, [tools[0], {"word": "a"}]])
        assert found["tools"] == sorted(tools)
        assert found["told"][:3] == [[False, calls[tool]] for tool in tools]
        ended, unknown, other = found["told"][3:]
        assert ended[0], "its server ended while it was called"
        assert unknown[0]
        assert not other[0], "which is nothing to the others"
        routed = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "50005"}
        assert httpx.post(f"{server.url}/mcp", headers=routed, json={}).status_code == 401


@pytest.mark.parametrize(
    ("key", "settings", "reason"),
    [
        ("github/acme/none", {"run_cmd": "true"}, "cannot be installed"),
        ("github/acme/tools", {"run_cmd": "echo why >&2; exit 3"}, "does not start.*\n?.*why"),
        ("duckduckgo", {}, "no Docker catalogue"),
    ],
    ids=["none", "ends", "unknown"],
)
def test_a_server_that_fails_ends_the_sandbox_with_the_reason(
    server: Any, template: str, key: str, settings: dict[str, str], reason: str
) -> None:
    labelled = {"which": os.urandom(8).hex()}
    with pytest.raises(SandboxException, match=f"(?s)Failed to start MCP gateway: .*{key}.*{reason}"):
        Sandbox.create(template, mcp={key: settings}, metadata=labelled, timeout=100)
    assert Sandbox.list(query=SandboxQuery(metadata=labelled)).next_items() == []


async def test_the_asynchronous_sdk_knows_the_same_url_and_token(server: Any, template: str) -> None:
    sandbox = await AsyncSandbox.create(template, mcp={"github/acme/tools": {"runCmd": "python3 server.py"}})
    try:
        token = await sandbox.get_mcp_token()
        again = await AsyncSandbox.connect(sandbox.sandbox_id)
        assert (again.get_mcp_url(), await again.get_mcp_token()) == (sandbox.get_mcp_url(), token)
    finally:
        await sandbox.kill()
