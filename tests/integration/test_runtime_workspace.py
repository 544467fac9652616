"""The runtime around a repository, on a real server: git, set-up script, hooks, micro-agents, plugins, settings."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from atoll.runtime import (
    AgentRuntimeError,
    AgentSkillsRequirement,
    CmdOutputObservation,
    CmdRunAction,
    E2BRuntime,
    IPythonRunCellAction,
    JupyterRequirement,
    RuntimeConfig,
    RuntimeStatus,
    SandboxConfig,
    VSCodeRequirement,
)
from atoll.runtime.events.base import Event, EventSource
from atoll.runtime.sandbox.box import find_sandboxes
from support import documents
from support.tiers import one_tier

pytestmark = one_tier("programs that the runtime starts by the SDK: git, scripts, a kernel")

MakeRuntime = Callable[..., E2BRuntime]


@pytest.fixture
def make(server: Any) -> Iterator[MakeRuntime]:
    """Connected runtimes that end with the test."""
    made: list[E2BRuntime] = []

    def start(*args: Any, **more: Any) -> E2BRuntime:
        runtime = E2BRuntime(*args, **{"soft_timeout_s": 1.0, **more})
        made.append(runtime)
        runtime.connect_sync()
        return runtime

    yield start
    for runtime in made:
        runtime.close()


@pytest.fixture(scope="module")
def shared(server: Any) -> Iterator[E2BRuntime]:
    """One runtime for tests that work in directories of their own."""
    with E2BRuntime(soft_timeout_s=1.0) as runtime:
        yield runtime


def run(runtime: E2BRuntime, command: str, **more: Any) -> str:
    found = runtime.run_action(CmdRunAction(command, blocking=True, timeout=60, **more))
    assert isinstance(found, CmdOutputObservation), found
    assert found.exit_code == 0, found
    return found.content


# ---------------------------------------------------------------------------------------------------------- git


def test_changes_and_diffs_are_told_against_the_origin(shared: E2BRuntime) -> None:
    run(
        shared,
        "mkdir -p /workspace/g && cd /workspace/g && git init -q --bare origin.git && git clone -q origin.git one "
        "2>/dev/null && cd one && printf 'a\\nb\\n' > 'with space' && echo x > gone && git add . && git commit -qm 1 "
        "&& git push -q && printf 'a\\nc\\n' > 'with space' && rm gone && echo n > $'new\\nline' "
        "&& git -C .. init -q two "
        "&& echo y > ../two/file && mkdir ../plain",
    )
    found = shared.get_git_changes("/workspace/g")
    assert found == [
        {"status": "D", "path": "one/gone"},
        {"status": "A", "path": "one/new\nline"},
        {"status": "M", "path": "one/with space"},
        {"status": "A", "path": "two/file"},
    ]
    assert shared.get_git_diff("one/with space", "/workspace/g") == {"original": "a\nb", "modified": "a\nc"}
    assert shared.get_git_diff("one/gone", "/workspace/g") == {"original": "x", "modified": ""}
    assert shared.get_git_diff("two/file", "/workspace/g") == {"original": "", "modified": "y"}
    assert shared.get_workspace_branch("g/one") in ("master", "main")
    assert shared.get_git_changes("/workspace/g/plain") is None
    assert shared.get_workspace_branch("g/plain") is None
    with pytest.raises(ValueError, match="no_repository"):
        shared.get_git_diff("/tmp/x", "/tmp")
    run(shared, "head -c 2000000 /dev/zero > /workspace/g/one/big")
    with pytest.raises(ValueError, match="file_to_large"):
        shared.get_git_diff("one/big", "/workspace/g")


def test_work_that_was_committed_but_not_pushed_is_a_change(shared: E2BRuntime) -> None:
    run(
        shared,
        "mkdir -p /workspace/c && cd /workspace/c && git init -q --bare o.git && git clone -q o.git r 2>/dev/null && "
        "cd r && echo 1 > f && git add f && git commit -qm 1 && git push -q && git checkout -qb mine && echo 2 > f "
        "&& git commit -qam 2 && git remote set-head origin -a >/dev/null",
    )
    assert shared.get_git_changes("/workspace/c/r") == [{"status": "M", "path": "f"}]


def test_a_repository_is_cloned_onto_a_branch_of_its_own(make: MakeRuntime) -> None:
    told: list[RuntimeStatus] = []
    runtime = make(status_callback=lambda level, status, text: told.append(status))
    run(runtime, "git init -q -b main /tmp/src && cd /tmp/src && touch f && git add f && git commit -qm 1")
    told.clear()
    assert asyncio.run(runtime.clone_or_init_repo(None, "/tmp/src", None)) == "src"
    assert told == [RuntimeStatus.SETTING_UP_WORKSPACE]
    assert (runtime.get_workspace_branch("src") or "").startswith("openhands-workspace-")
    # The token is added outside of the sandbox, to requests to a host name; it is in no message.
    for host, words in (("nowhere.invalid", "git clone failed: "), ("127.0.0.1:1", "cannot be added outside of it")):
        with pytest.raises(AgentRuntimeError, match=rf"{words}(?!.*hunter2)"):
            asyncio.run(runtime.clone_or_init_repo(None, f"http://x:hunter2@{host}/a/nothing", "main"))


def test_an_empty_workspace_becomes_a_repository_when_asked(make: MakeRuntime) -> None:
    runtime = make(RuntimeConfig(init_git_in_empty_workspace=True, git_user_name="A B", git_user_email="a@b.c"))
    assert asyncio.run(runtime.clone_or_init_repo(None, None, None)) == ""
    assert run(runtime, "git rev-parse --show-toplevel && git config user.name && git config user.email") == (
        "/workspace\nA B\na@b.c"
    )


def test_the_setup_script_runs_in_the_agents_own_shell(make: MakeRuntime) -> None:
    told: list[RuntimeStatus] = []
    runtime = make(status_callback=lambda level, status, text: told.append(status))
    told.clear()
    runtime.maybe_run_setup_script()
    assert told == []
    run(runtime, "mkdir .openhands && printf 'export FROM_SETUP=yes\\ncd /tmp\\n' > .openhands/setup.sh")
    runtime.maybe_run_setup_script()
    assert run(runtime, "echo $FROM_SETUP; pwd") == "yes\n/tmp"
    assert told == [RuntimeStatus.SETTING_UP_WORKSPACE]


def test_the_setup_script_runs_once_also_with_the_runtime_as_a_listener_to_its_own_event_stream(
    make: MakeRuntime,
) -> None:
    class Stream:
        """Numbers events and hands them on at once, as an event stream does."""

        def __init__(self) -> None:
            self.events: list[Event] = []
            self.listeners: list[Callable[[Event], None]] = []

        def add_event(self, event: Event, source: EventSource) -> None:
            self.events.append(replace(event, id=len(self.events), source=source))
            for listener in self.listeners:
                listener(self.events[-1])

    stream = Stream()
    runtime = make(event_stream=stream)
    stream.listeners.append(runtime.on_event)
    run(runtime, "mkdir .openhands && echo 'echo ran | tee -a /tmp/ran' > .openhands/setup.sh")
    runtime.maybe_run_setup_script()
    assert [type(event).__name__ for event in stream.events] == ["CmdRunAction", "CmdOutputObservation"]
    assert getattr(stream.events[1], "content", None) == "ran"
    # The same command by the agent is the agent's own: it runs.
    stream.add_event(
        CmdRunAction(getattr(stream.events[0], "command", ""), blocking=True, timeout=60), EventSource.AGENT
    )
    assert [event.cause for event in stream.events[2:]] == [None, 2]
    assert run(runtime, "cat /tmp/ran") == "ran\nran"


def test_the_pre_commit_script_decides_and_a_hook_that_was_there_still_runs(make: MakeRuntime) -> None:
    runtime = make()
    run(
        runtime,
        "git init -q . && mkdir .openhands && printf '#!/bin/sh\\ntest ! -e forbidden\\n' > .openhands/pre-commit.sh "
        "&& printf '#!/bin/sh\\ntouch own-hook-ran\\n' > .git/hooks/pre-commit && chmod +x .git/hooks/pre-commit",
    )
    runtime.maybe_setup_git_hooks()
    runtime.maybe_setup_git_hooks()  # again: our own hook is not taken for the user's
    assert run(runtime, "touch f && git add f && git commit -qm 1 && ls own-hook-ran") == "own-hook-ran"
    refused = runtime.run_action(CmdRunAction("touch forbidden g && git add g && git commit -qm 2", blocking=True))
    assert isinstance(refused, CmdOutputObservation)
    assert refused.exit_code == 1
    assert run(runtime, "git log --oneline | wc -l").strip() == "1"


def test_microagents_of_the_workspace_and_of_a_repository(make: MakeRuntime) -> None:
    runtime = make()
    assert runtime.get_microagents_from_selected_repo(None) == []
    head = "'---\\ntriggers:\\n- docker\\n---\\nUse it.\\n'"
    run(
        runtime,
        f"mkdir -p r/.openhands/microagents/sub && cd r && printf -- {head} > .openhands/microagents/sub/d.md && "
        "printf 'Rules.' > AGENTS.md && printf 'old' > .openhands_instructions && cd .openhands/microagents && "
        "touch README.md && printf -- '---\\nbad\\n---\\n' > bad.md && ln -s /etc/passwd x.md && "
        "git config --global url./tmp/remote/.insteadOf https://github.com/",
    )
    found = runtime.get_microagents_from_selected_repo("owner/r")
    assert [(one.name, one.type.value, one.content) for one in found] == [
        ("repo_legacy", "repo", "old"),
        ("agents", "repo", "Rules."),
        ("sub/d", "knowledge", "Use it."),
    ]


def test_microagents_that_an_owner_keeps_for_all_repositories_come_first(make: MakeRuntime) -> None:
    runtime = make()
    run(
        runtime,
        "mkdir -p r /tmp/remote/owner/.openhands.git && printf Rules. > r/AGENTS.md && cd /tmp/remote/owner && "
        "git init -q made && cd made && mkdir microagents && printf 'For all.' > microagents/all.md && git add . && "
        "git commit -qm 1 && git clone -q --bare . ../.openhands.git && cd /workspace && "
        "git config --global url./tmp/remote/.insteadOf https://github.com/",
    )
    found = runtime.get_microagents_from_selected_repo("owner/r")
    assert [(one.name, one.content) for one in found] == [("all", "For all."), ("agents", "Rules.")]
    assert run(runtime, "ls -A /tmp | grep atoll-owner || echo nothing") == "nothing"
    assert runtime.get_microagents_from_org_or_user("nobody/r") == []


# ---------------------------------------------------------------------------------------------------------- plugins


@pytest.fixture(scope="module")
def skilled(server: Any, interpreter_template: Any) -> Iterator[E2BRuntime]:
    with E2BRuntime(plugins=[JupyterRequirement(), AgentSkillsRequirement()], soft_timeout_s=1.0) as runtime:
        yield runtime


def cell(runtime: E2BRuntime, code: str, **more: Any) -> str:
    return runtime.run_action(IPythonRunCellAction(code, include_extra=False, **more)).content


def test_agent_skills_are_in_the_kernel(skilled: E2BRuntime) -> None:
    run(skilled, "seq 1 300 > /workspace/n")
    shown = cell(skilled, "open_file('n', 150, 4)").splitlines()
    assert (shown[0], shown[1], shown[2]) == (
        "[File: /workspace/n (300 lines total)]",
        "(147 more lines above)",
        "148|148",
    )
    assert '[Found 1 matches for "299" in /workspace/n]\nLine 299: 299' in cell(skilled, "search_file('299')")
    assert cell(skilled, "open_file('none')") == "ERROR: File none not found."
    code = (
        "from openhands.runtime.plugins.agent_skills.agentskills import *\n"
        "print(file_editor(command='create', path='/workspace/made', file_text='one\\n'))\n"
        "print(file_editor(command='str_replace', path='/workspace/made', old_str='one', new_str='two'))"
    )
    answers = [line for line in cell(skilled, code).splitlines() if line.startswith("{")]
    assert json.loads(answers[0])["output"] == "File created successfully at: /workspace/made"
    assert json.loads(answers[1])["new_content"] == "two\n"
    assert run(skilled, "cat /workspace/made") == "two"


def test_documents_are_read_in_the_kernel(skilled: E2BRuntime, tmp_path: Path) -> None:
    word, deck = tmp_path / "a.docx", tmp_path / "a.pptx"
    word.write_bytes(documents.word(["One\ttab", "Two"]))
    deck.write_bytes(documents.slides([["Title", "line\nnext"], ["Last"]]))
    (tmp_path / "a.pdf").write_bytes(documents.pdf("Hello, this is a test PDF document."))
    (tmp_path / "a.tex").write_text("\\documentclass{article}\\begin{document}\nPlain \\emph{words}.\n\\end{document}")
    skilled.copy_to(str(tmp_path), "/tmp/documents", recursive=True)
    folder = f"/tmp/documents/{tmp_path.name}"
    assert cell(skilled, f"parse_docx('{folder}/a.docx')") == (
        f"[Reading DOCX file from {folder}/a.docx]\n@@ Page 1 @@\nOne\ttab\n\n@@ Page 2 @@\nTwo"
    )
    assert cell(skilled, f"parse_pptx('{folder}/a.pptx')") == (
        f"[Reading PowerPoint file from {folder}/a.pptx]\n@@ Slide 1 @@\nTitle\nline\nnext\n@@ Slide 2 @@\nLast"
    )
    assert cell(skilled, f"parse_pdf('{folder}/a.pdf')") == (
        f"[Reading PDF file from {folder}/a.pdf]\n@@ Page 1 @@\nHello, this is a test PDF document."
    )
    assert cell(skilled, f"parse_latex('{folder}/a.tex')") == f"[Reading LaTex file from {folder}/a.tex]\nPlain words."
    assert "OPENAI_API_KEY is not set" in cell(skilled, f"parse_image('{folder}/a.pdf')")


def test_init_code_runs_once_before_the_first_cell_that_brings_it(skilled: E2BRuntime) -> None:
    init = "counted = globals().get('counted', 0) + 1"
    assert [cell(skilled, "print(counted)", kernel_init_code=init) for _ in range(2)] == ["1", "1"]


def test_the_kernel_follows_the_shell(skilled: E2BRuntime) -> None:
    run(skilled, "mkdir -p '/workspace/a\"b' && cd '/workspace/a\"b'")
    assert cell(skilled, "import os; print(os.getcwd())") == '/workspace/a"b'
    run(skilled, "cd /workspace")
    assert cell(skilled, "print(os.getcwd())") == "/workspace"


EDITOR = r"""#!/bin/sh
while [ $# -gt 0 ]; do case $1 in --port) port=$2;; --connection-token) token=$2;; esac; shift; done
mkdir -p /tmp/site && echo "editor $token" > /tmp/site/index.html
cd /tmp/site && exec python3 -m http.server "$port"
"""


def test_an_editor_for_people_where_the_template_has_one(make: MakeRuntime, server: Any, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "openvscode-server"
    program.parent.mkdir()
    program.write_text(EDITOR)
    program.chmod(0o755)
    config = SandboxConfig(volumes=f"{program.parent}:/usr/local/bin:ro", vscode_port=6001)
    runtime = make(config, plugins=[VSCodeRequirement()])
    token = runtime.get_vscode_token()
    assert len(token) > 20
    assert (runtime.vscode_url or "").endswith(f"/?tkn={token}&folder=/workspace")
    headers = {"E2b-Sandbox-Id": runtime.sandbox_id, "E2b-Sandbox-Port": "6001"}
    assert httpx.get(server.url, headers=headers).text == f"editor {token}\n"
    assert set(runtime.web_hosts.values()) == {6001}
    assert all("6001-" in host for host in runtime.web_hosts)


def test_without_an_editor_the_plugin_is_without_effect(make: MakeRuntime) -> None:
    runtime = make(plugins=[VSCodeRequirement()])
    assert (runtime.vscode_url, runtime.get_vscode_token(), runtime.web_hosts) == (None, "", {})


# ---------------------------------------------------------------------------------------------------------- settings


def test_settings_that_act_on_the_sandbox(make: MakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".hidden").write_text("in")
    config = SandboxConfig(
        runtime_extra_deps="echo made by $(id -un) > /etc/extra",
        volumes=f"{tmp_path}/data:/data:ro",
        docker_runtime_kwargs={"environment": {"FROM_DOCKER": "1"}},
        platform={"x86_64": "linux/amd64", "aarch64": "linux/arm64"}[
            subprocess.check_output(["uname", "-m"], text=True).strip()
        ],
    )
    runtime = make(config)
    assert run(runtime, "cat /etc/extra /data/.hidden; echo $FROM_DOCKER") == "made by root\nin1"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SandboxConfig(runtime_extra_deps="echo no; exit 3"), r"runtime_extra_deps failed with exit code 3: no"),
        (SandboxConfig(platform="linux/riscv"), r"cannot be done here"),
        (SandboxConfig(remote_runtime_resource_factor=8), r"base-x8.*cpu_count"),
    ],
)
def test_settings_that_cannot_be_met_leave_no_sandbox(server: Any, config: SandboxConfig, text: str) -> None:
    with pytest.raises((AgentRuntimeError, ValueError), match=text):
        E2BRuntime(config, sid="unmet").connect_sync()
    assert find_sandboxes("unmet", {}) == []


def test_rm_all_containers_ends_every_sandbox_of_the_session(make: MakeRuntime) -> None:
    make(sid="many")
    make(SandboxConfig(keep_runtime_alive=True), sid="many").close()
    attached = make(SandboxConfig(rm_all_containers=True), sid="many", attach_to_existing=True)
    attached.close()
    assert find_sandboxes("many", {}) == []
