"""What a runtime does with the repository in its workspace: clone, set-up script, git hook, changes, diff, branch.

Owns the order of these steps and their texts; each one is an action like the agent's own, so that it is seen and
limited in the same way. Data that git prints is read with `-z`: any file name is possible.
"""

from __future__ import annotations

import logging
import re
import secrets
import shlex
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

from atoll.runtime.errors import AgentRuntimeError
from atoll.runtime.events.actions import CmdRunAction, FileReadAction, FileWriteAction
from atoll.runtime.events.base import Action, Event, EventSource, Observation
from atoll.runtime.events.observations import CmdOutputObservation, FileReadObservation
from atoll.runtime.repository.credentials import Authorization, basic, without_credentials
from atoll.runtime.repository.microagents import LEGACY, MAX_FILE_BYTES, MAX_FILES, Microagent, load, load_all

SETUP_SCRIPT = ".openhands/setup.sh"
SETUP_COMMAND = f"chmod +x {SETUP_SCRIPT} && source {SETUP_SCRIPT}"
"""OpenHands' own words, by which either side knows it in a log."""
SETUP_TIMEOUT_S = 600.0
PRE_COMMIT = ".openhands/pre-commit.sh"
HOOK_MARK = "This hook was installed by OpenHands"
"""How a hook of ours is known from the user's own; OpenHands' words, so that either side knows the other's hook."""

HOOK = f"""#!/bin/bash
# {HOOK_MARK}
# The repository's own checks are in {PRE_COMMIT}; a hook that was here before is pre-commit.local.
if [ -x "{PRE_COMMIT}" ]; then
    "{PRE_COMMIT}" || exit $?
fi
if [ -x .git/hooks/pre-commit.local ]; then
    exec .git/hooks/pre-commit.local "$@"
fi
"""
GIT_TIMEOUT_S = 60.0
OWNER_TIMEOUT_S = 30
MAX_DIFF_BYTES = 1024 * 1024
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

REFERENCE = f"""
reference() {{
  local branch base
  branch=$(git -C "$1" rev-parse --abbrev-ref HEAD 2>/dev/null) &&
    git -C "$1" rev-parse --verify -q "origin/$branch" && return
  base=$(git -C "$1" rev-parse --abbrev-ref origin/HEAD 2>/dev/null) &&
    git -C "$1" merge-base HEAD "$base" 2>/dev/null && return
  git -C "$1" rev-parse --verify -q HEAD >/dev/null || {{ echo {EMPTY_TREE}; return; }}
  git -C "$1" remote | grep -q . && git -C "$1" rev-parse HEAD || echo {EMPTY_TREE}
}}
"""
"""bash: what the work of a session is compared with: the branch at its origin, where it left the default branch, or
nothing at all for a repository that has no origin. Never asks the network.
"""

CHANGES = (
    "exec 2>/dev/null\n"
    + REFERENCE
    + r"""
changes() {
  local ref; ref=$(reference "$1") || return 0
  git -C "$1" diff --name-status --no-renames -z "$ref" -- && git -C "$1" ls-files --others --exclude-standard -z |
    while IFS= read -r -d '' name; do printf 'A\0%s\0' "$name"; done
}
found=
git rev-parse --is-inside-work-tree >/dev/null 2>&1 && { found=1; printf 'R\0%s\0' .; changes .; }
for git in ./*/.git; do
  [ -e "$git" ] || continue
  dir=${git%/.git}; found=1; printf 'R\0%s\0' "${dir#./}"; changes "$dir"
done
[ -n "$found" ] || exit 30
"""
)
"""bash: every repository in the directory and right below it, as pairs of a letter and a path (R: a repository)."""

ORIGINAL = (
    "exec 2>/dev/null\n"
    + REFERENCE
    + r"""
file=$1
[ -e "$file" ] && [ "$(stat -L -c %s -- "$file")" -gt "$2" ] && exit 31
dir=$(dirname -- "$file")
while [ ! -d "$dir" ]; do dir=$(dirname -- "$dir"); done
top=$(cd -- "$dir" && git rev-parse --show-toplevel 2>/dev/null) || exit 30
git -C "$top" show "$(reference "$top"):$(realpath -m --relative-to="$top" -- "$file")" 2>/dev/null || true
"""
)
"""bash: the file as it was at the reference; nothing if it was not there."""


LIST = f"""
cd -- "$1" 2>/dev/null || exit 30
find . -type f -name '*.md' ! -name README.md -size -{MAX_FILE_BYTES // 1024}k -printf '%P\\0' | head -z -n {MAX_FILES}
"""
"""bash: the Markdown files of a directory tree, links and files that are too large left out."""


class ActsOnSandbox(Protocol):
    """What is needed of a runtime."""

    @property
    def workspace(self) -> str: ...
    def run_action(self, action: Action) -> Observation: ...


class Repository:
    """The repository work of one runtime. `add_event` is called with what belongs into the event log."""

    def __init__(
        self,
        runtime: ActsOnSandbox,
        add_event: Callable[[Event, EventSource], None],
        log: logging.Logger,
    ) -> None:
        self._runtime = runtime
        self._add_event = add_event
        self._log = log

    def initialise(self) -> None:
        """An empty repository in the workspace. Raises AgentRuntimeError."""
        root = shlex.quote(self._runtime.workspace)
        self._must(f"cd {root} && git init && git config --global --add safe.directory {root}", "git init")

    def clone(self, url: str, name: str, branch: str | None) -> None:
        """Clones `url` into the workspace's directory `name`, on `branch` or on a new one of its own.

        Raises AgentRuntimeError.
        """
        where = shlex.quote(str(PurePosixPath(self._runtime.workspace) / name))
        chosen = shlex.quote(branch) if branch else f"-b openhands-workspace-{secrets.token_hex(4)}"
        self._must(f"GIT_TERMINAL_PROMPT=0 git clone -- {shlex.quote(url)} {where}", "git clone")
        self._must(f"cd {where} && git checkout {chosen}", "git checkout")

    def run_setup_script(self) -> Observation | None:
        """Sources the repository's set-up script in the agent's shell, once; None if there is none."""
        if self._read(SETUP_SCRIPT) is None:
            return None
        action = CmdRunAction(SETUP_COMMAND, blocking=True, hidden=True, timeout=SETUP_TIMEOUT_S)
        self._add_event(action, EventSource.ENVIRONMENT)
        observation = self._runtime.run_action(action)
        self._add_event(observation, EventSource.ENVIRONMENT)
        return observation

    def install_hook(self) -> bool:
        """Makes git run the repository's pre-commit script; a hook of the user's own is kept and run after it."""
        old = self._read(".git/hooks/pre-commit")
        keep = "mv .git/hooks/pre-commit .git/hooks/pre-commit.local && chmod +x .git/hooks/pre-commit.local"
        steps = ["mkdir -p .git/hooks", f"chmod +x {PRE_COMMIT}"]
        if old is not None and HOOK_MARK not in old:
            steps.append(keep)
        if not self._done(" && ".join(steps)):
            return False
        written = self._runtime.run_action(FileWriteAction(".git/hooks/pre-commit", HOOK))
        return written.observation == "write" and self._done("chmod +x .git/hooks/pre-commit")

    def branch(self, cwd: str) -> str | None:
        """The current branch, None where there is none."""
        found = self._static("git branch --show-current", cwd)
        return found.content.strip() or None if found is not None and found.exit_code == 0 else None

    def changes(self, cwd: str) -> list[dict[str, str]] | None:
        """`{"status": "A" | "M" | "D" | "U", "path"}` for every changed file, sorted; None without a repository."""
        found = self._static(CHANGES, cwd)
        return None if found is None or found.exit_code != 0 else parse_changes(found.content)

    def diff(self, file_path: str, cwd: str) -> dict[str, str]:
        """`original` and `modified` text of a file. Raises ValueError: too large, or in no repository."""
        path = str(PurePosixPath(cwd) / file_path)
        found = self._static(shlex.join(["bash", "-c", ORIGINAL, "atoll", path, str(MAX_DIFF_BYTES)]), cwd)
        if found is None or found.exit_code not in (0, 30, 31):
            raise ValueError("error_in_git_diff")
        if found.exit_code:
            raise ValueError("no_repository" if found.exit_code == 30 else "file_to_large")
        modified = self._read(path)
        return {"modified": "\n".join((modified or "").splitlines()), "original": found.content.rstrip("\n")}

    def microagents(self, repository: str | None) -> list[Microagent]:
        """Those of the workspace, or of the repository in the workspace's directory of that name.

        A file that cannot be read is logged and left out.
        """
        root = PurePosixPath(self._runtime.workspace)
        roots = [root] if repository is None else [root / repository.split("/")[-1], root]
        found: list[Microagent] = []
        for one in dict.fromkeys(reversed(roots)):
            if (text := self._read(str(one / LEGACY))) is not None:
                found.append(load(text, LEGACY))
                break
        top = roots[0]
        for name in (".cursorrules", "AGENTS.md", "agents.md", "AGENT.md", "agent.md"):
            if (text := self._read(str(top / name))) is not None:
                found.append(load(text, name))
                if name != ".cursorrules":
                    break
        return found + self._microagents_in(str(top / ".openhands/microagents"))

    def microagents_of_owner(self, url: str) -> list[Microagent]:
        """Those that an organisation or user keeps for all its repositories, in `microagents/` of the one at `url`.

        None where it cannot be cloned: most owners have no such repository.
        """
        where = f"/tmp/.atoll-owner-{secrets.token_hex(8)}"
        clone = f"timeout {OWNER_TIMEOUT_S} git clone -q --depth 1 -- {shlex.quote(url)} {where}"
        cloned = self._static(f"GIT_TERMINAL_PROMPT=0 {clone}", "/tmp")
        if cloned is None or cloned.exit_code != 0:
            output = cloned.content.strip() if cloned is not None else "git could not be run"
            self._log.debug("no micro-agents of the repository's owner: %s", output)
            return []
        try:
            return self._microagents_in(f"{where}/microagents")
        finally:
            self._static(f"rm -rf -- {where}", "/tmp")

    def _microagents_in(self, directory: str) -> list[Microagent]:
        listed = self._static(shlex.join(["bash", "-c", LIST, "atoll", directory]), "/")
        names = listed.content.split("\0") if listed is not None and listed.exit_code == 0 else []
        texts = [(name, self._read(f"{directory}/{name}")) for name in sorted(filter(None, names))]
        more, problems = load_all((name, text) for name, text in texts if text is not None)
        for problem in problems:
            self._log.error("a micro-agent was left out: %s", problem)
        return more

    def _static(self, command: str, cwd: str) -> CmdOutputObservation | None:
        action = CmdRunAction(command, is_static=True, hidden=True, cwd=cwd, timeout=GIT_TIMEOUT_S)
        found = self._runtime.run_action(action)
        return found if isinstance(found, CmdOutputObservation) else None

    def _read(self, path: str) -> str | None:
        found = self._runtime.run_action(FileReadAction(path))
        return found.content if isinstance(found, FileReadObservation) else None

    def _done(self, command: str) -> bool:
        found = self._runtime.run_action(CmdRunAction(command, hidden=True, blocking=True, timeout=GIT_TIMEOUT_S))
        good = isinstance(found, CmdOutputObservation) and found.exit_code == 0
        if not good:
            self._log.error("the git hook could not be set up: %s", found.content.strip())
        return good

    def _must(self, command: str, what: str) -> None:
        found = self._runtime.run_action(CmdRunAction(command, hidden=True, blocking=True, timeout=SETUP_TIMEOUT_S))
        if not isinstance(found, CmdOutputObservation) or found.exit_code != 0:
            raise AgentRuntimeError(f"{what} failed: {found.content.strip()}")


def is_setup(event: Any) -> bool:
    """Whether an event of a log, ours or OpenHands', is the set-up script's action. It is run by who put it there."""
    by_environment = getattr(event.source, "value", event.source) == EventSource.ENVIRONMENT.value
    return by_environment and getattr(event, "command", None) == SETUP_COMMAND


def parse_changes(text: str) -> list[dict[str, str]]:
    """The pairs that CHANGES prints, as paths from its directory; each path once, sorted."""
    words = text.split("\0")
    repository, pairs = ".", []
    for letter, path in zip(words[0::2], words[1::2], strict=False):
        if letter.strip() == "R":
            repository = path
        else:
            pairs.append((path if repository == "." else f"{repository}/{path}", letter.strip()[:1], repository))
    inner = {repository for _, _, repository in pairs if repository != "."} | {
        path for letter, path in zip(words[0::2], words[1::2], strict=False) if letter.strip() == "R" and path != "."
    }
    kept = {
        path: status
        for path, status, repository in pairs
        if repository != "." or not any(path == name or path.startswith(f"{name}/") for name in inner)
    }
    return [{"status": "M" if status == "T" else status, "path": path} for path, status in sorted(kept.items())]


def owner_repository(repository: str) -> str | None:
    """Where the owner of a repository keeps micro-agents for all of them: `owner/.openhands`, or beside the URL.

    `owner/openhands-config` at GitLab, where no name begins with a dot; None for a repository without an owner.
    """
    parts = repository.rstrip("/").split("/")
    first = 3 if "://" in repository else 1 if repository.startswith("/") else 0  # where the path begins
    if len(parts) - first < 2:
        return None
    return "/".join([*parts[:-1], "openhands-config" if "gitlab" in repository.lower() else ".openhands"])


class CloneSource(NamedTuple):
    """`url`: as git inside the sandbox gets it, without credentials. `name`: of the directory."""

    url: str
    name: str
    authorization: Authorization | None = None


def clone_source(repository: str, tokens: Mapping[Any, Any] | None = None) -> CloneSource:
    """Of a URL, or of `owner/name` at GitHub with the token given for it. Raises ValueError for what is neither."""
    kept, authorization = without_credentials(repository)
    name = PurePosixPath(kept.rstrip("/")).name.removesuffix(".git")
    if not re.fullmatch(r"\.?[\w][\w.-]*", name):
        raise ValueError(f"{kept!r} does not end in the name of a repository")
    if "://" in repository or repository.startswith("/"):
        return CloneSource(kept, name, authorization)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"{repository!r} is neither a URL nor owner/name")
    url = f"https://github.com/{repository}.git"
    for provider, token in (tokens or {}).items():
        if str(getattr(provider, "value", provider)).lower() == "github":
            secret = getattr(token, "token", token)
            text = secret.get_secret_value() if hasattr(secret, "get_secret_value") else secret
            if text:
                return CloneSource(url, name, basic("github.com", "x-access-token", str(text)))
    return CloneSource(url, name)
