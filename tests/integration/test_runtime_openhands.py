"""The real OpenHands loads our classes, in an environment of its own (see support/openhands_environment.py)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import Template

from atoll.config import Settings
from atoll.images.recipes import RECIPES, Recipe
from atoll.images.store import TemplateStore
from atoll.runtime.workspace_start import dormant
from support.openhands_environment import REPOSITORY, VERSIONS, environment, run_in, versions
from support.server import ServerProcess
from support.tiers import one_tier

DEBIAN_13 = "/opt/debian13"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    one_tier("OpenHands' side of the runtime, minutes for each version; the runtime's own side is in test_runtime.py"),
]


@pytest.fixture(scope="module")
def tree() -> Path:
    return environment(Settings.from_environ(os.environ).data_dir)


@pytest.fixture(scope="module")
def connection(server: Any) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("E2B_")}


@pytest.fixture(scope="module", params=versions())
def seen(request: pytest.FixtureRequest, tree: Path, connection: dict[str, str]) -> dict[str, Any]:
    version = request.param
    program = REPOSITORY / "tests" / "support" / "openhands_program.py"
    given = {**connection, "TRAJECTORY": "/run/atoll/examples/create-and-serve.json", "LOG_LEVEL": "ERROR"}
    out = run_in(tree, VERSIONS[version], program, given, version=version, timeout_s=900)
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def test_openhands_resolves_the_class_by_its_path_and_its_actions_get_its_observations(seen: dict[str, Any]) -> None:
    found = seen["actions"]
    assert found["is_runtime"]
    assert found["run"]["observation"] == "run"
    assert found["run"]["content"].split() == ["out", "err"]
    assert found["run"]["extras"]["metadata"]["exit_code"] == 3
    assert found["cd2"]["content"] == "/tmp 1"
    assert found["cell"]["content"].startswith(
        "2\n[Jupyter current working directory: /tmp]\n[Jupyter Python interpreter:"
    )
    assert found["read"]["content"] == "one\ntwo\n"
    assert found["edit"]["content"].startswith("The file /workspace/a.txt has been edited. ")
    assert found["edit"]["extras"]["impl_source"] == "oh_aci"
    assert found["browse"]["observation"] == "error"


def test_files_go_in_and_out_and_git_is_asked(seen: dict[str, Any]) -> None:
    found = seen["actions"]
    assert found["files"] == ["tree/", "a.txt"]
    assert found["zip"]
    assert {(one["status"], one["path"]) for one in found["changes"]} >= {("A", "a.txt")}


def test_attaching_finds_the_sandbox_and_an_unknown_session_raises_openhands_own_error(seen: dict[str, Any]) -> None:
    found = seen["actions"]
    assert found["attached"] == "1\ntwo"
    assert found["lost"] == "AgentRuntimeDisconnectedError ERROR_RUNTIME_DISCONNECTED"
    assert found["status"][0] == "STARTING_RUNTIME"
    assert "READY" in found["status"]


def test_openhands_runs_the_setup_script_once_and_its_log_has_what_came_of_it(seen: dict[str, Any]) -> None:
    events = seen["actions"]["setup"]["events"]
    actions = [event for event in events if "source .openhands/setup.sh" in event.get("args", {}).get("command", "")]
    assert [action["source"] for action in actions] == ["environment"]
    answers = {event["cause"]: event["content"] for event in events if "observation" in event}
    assert answers[actions[0]["id"]].strip() == "ran"
    assert events[-1]["content"].strip() == "up ran"


def test_openhands_finds_and_calls_a_tool_of_a_program_inside_the_sandbox(seen: dict[str, Any]) -> None:
    assert seen["tools"]["tools"] == ["greet"]
    answer = seen["tools"]["answer"]
    assert (answer["observation"], answer["extras"]["name"]) == ("mcp", "greet")
    assert json.loads(answer["content"])["content"][0]["text"] == "hello you"


@pytest.mark.parametrize(("where", "who"), [("inside", "the loop"), ("outside", "nobody's loop")])
def test_a_tool_is_an_action_like_any_other_inside_and_outside_of_an_event_loop(
    seen: dict[str, Any], where: str, who: str
) -> None:
    answer = seen["tools"][where]
    assert answer["observation"] == "mcp"
    assert json.loads(answer["content"])["content"][0]["text"] == f"hello {who}"


def test_a_recorded_run_goes_through_openhands_own_controller(seen: dict[str, Any]) -> None:
    recorded = json.loads((REPOSITORY / "examples" / "create-and-serve.json").read_text())
    runnable = ("run", "run_ipython", "read", "write", "edit")
    wanted = [event["action"] for event in recorded if event.get("action") in runnable]
    found = seen["replay"]
    done = [event for event in found["events"] if event.get("action") in runnable]
    assert [event["action"] for event in done] == wanted
    answered = {event.get("cause"): event["observation"] for event in found["events"] if "observation" in event}
    assert all(answered.get(event["id"]) not in (None, "error") for event in done), found["events"]


@pytest.fixture(scope="module")
def agent_servers(
    tree: Path, server: Any, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A platform with a template `agent-server`: base, and the whole environment at /opt/debian13."""
    templates = Path(f"{templates_dir}.agent-server-{os.getpid()}")
    templates.mkdir()
    running = None
    try:
        _link(templates_dir / "base", templates)
        script = tmp_path_factory.mktemp("recipe") / "layer.sh"
        script.write_text(f"set -eu\nmkdir {DEBIAN_13}\n")
        recipes = {
            "base": RECIPES["base"],
            "agent-server": Recipe("agent-server", "a test", str(script), parent="base"),
        }
        layer = TemplateStore(templates, recipes).ensure_template("agent-server").layers[0]
        for name in ("usr", "opt", "lib", "lib64"):
            _link(tree / name, layer / DEBIAN_13.lstrip("/"))
        running = ServerProcess.start(
            tmp_path_factory.mktemp("agent-server") / "data",
            templates_dir=templates,
            options=["--end-sandboxes", "--warm", "agent-server-warm=1"],
        )
        yield running.environ
    finally:
        if running is not None:
            running.stop()
        shutil.rmtree(templates)


def _link(source: Path, folder: Path) -> None:
    """A copy that costs nothing where it can be one: the files themselves are only read."""
    if subprocess.run(["cp", "-al", str(source), str(folder)], capture_output=True, check=False).returncode != 0:
        subprocess.run(["cp", "-a", str(source), str(folder)], check=True)


def test_the_real_agent_server_runs_in_a_sandbox(tree: Path, agent_servers: dict[str, str]) -> None:
    program = REPOSITORY / "tests" / "support" / "openhands_agent_server_program.py"
    given = {**agent_servers, "DEBIAN_13": DEBIAN_13}
    found = json.loads(run_in(tree, "later", program, given, timeout_s=900).strip().splitlines()[-1])
    assert (found["info"]["title"], found["info"]["version"]) == ("OpenHands Agent Server", "1.58.2")
    failing = found["failing"]
    assert (failing["exit_code"], failing["stdout"], failing["stderr"]) == (3, "out\n/workspace\n", "err\n")
    assert (found["slow"]["exit_code"], found["slow"]["timeout_occurred"]) == (-1, True)
    assert (found["up"], found["down"], found["same"]) == (True, True, True)
    assert found["changes"] == [["UPDATED", "kept"], ["ADDED", "new"]]
    assert found["diff"] == {"modified": "2", "original": "1"}
    assert found["keyless"] == 401
    assert {"r", "sub"} <= set(found["again"].split())
    assert found["lives"] == 0
    assert "before it ended" in found["broken"]
    assert "it printed: no" in found["broken"]


def test_an_agent_server_that_waited_takes_the_keys_of_its_workspace(tree: Path, agent_servers: dict[str, str]) -> None:
    packages = [f"{DEBIAN_13}/{path.relative_to(tree)}" for path in (tree / "opt").glob("*/lib/python3*/site-packages")]
    packages.sort(reverse=True)  # "later" before "first"
    start = f"import runpy, sys; sys.path[:0] = {packages};"
    start += "runpy.run_module('openhands.agent_server', run_name='__main__', alter_sys=True)"
    libraries = ["--library-path", f"{DEBIAN_13}/usr/lib/x86_64-linux-gnu"]
    command = [f"{DEBIAN_13}/lib64/ld-linux-x86-64.so.2", *libraries, f"{DEBIAN_13}/usr/bin/python3", "-c", start]
    builder = Template().from_template("agent-server").set_envs({"LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    builder = builder.set_start_cmd(dormant(shlex.join([*command, "--port", "8000"])), "curl -sf localhost:8000/health")
    given = {"api_key": agent_servers["E2B_API_KEY"], "api_url": agent_servers["E2B_API_URL"]}
    Template.build(builder, "agent-server-warm", memory_mb=2048, **given)
    program = REPOSITORY / "tests" / "support" / "openhands_warm_program.py"
    found = json.loads(run_in(tree, "later", program, agent_servers, timeout_s=600).strip().splitlines()[-1])
    assert found["info"]["title"] == "OpenHands Agent Server"
    assert (found["ran"]["exit_code"], found["ran"]["stdout"]) == (0, "yes\n/workspace\n")
    assert found["keyless"] == 401
    assert found["again"] == "/workspace\n"


def test_workspaces_of_the_newer_sdk(tree: Path, connection: dict[str, str]) -> None:
    program = REPOSITORY / "tests" / "support" / "openhands_sdk_program.py"
    found = json.loads(run_in(tree, "later", program, connection, timeout_s=600).strip().splitlines()[-1])
    light = found["light"]
    assert light["is_workspace"]
    failing = light["failing"]
    assert (failing["exit_code"], failing["stdout"], failing["stderr"]) == (3, "out\n", "err\n")
    assert (light["slow"]["exit_code"], light["slow"]["stdout"], light["slow"]["timeout_occurred"]) == (
        -1,
        "begun\n",
        True,
    )
    assert light["cwd"] == "/tmp\n"
    assert (light["up"], light["down"], light["same"], light["none"]) == (True, 25600, True, False)
    assert light["changes"] == [["DELETED", "gone"], ["UPDATED", "kept"], ["ADDED", "new file"]]
    assert light["diff"] == {"modified": "2\n", "original": "1\n"}
    assert light["new"] == {"modified": "n\n", "original": None}
    assert light["no_repository"] == "AgentRuntimeError"
    remote = found["remote"]
    assert remote == {"is_remote": True, "path": "/api/x", "known": True, "cwd": "/workspace"}
