"""The SDK's git commands, every one, against real repositories in a sandbox: synchronous and asynchronous alike.

The asynchronous client runs the same steps: `Later` waits for each call, so that the steps are written once.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from e2b import AsyncSandbox, Sandbox

from support.tiers import one_tier

pytestmark = one_tier("commands of the SDK, run as any other")


class Later:
    """An asynchronous git client, called as if it were the synchronous one."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return Later(value, self._loop)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result

        return call


@pytest.fixture(params=["sync", "async"])
def sandbox(request: pytest.FixtureRequest, server: Any) -> Iterator[Any]:
    """A sandbox through either SDK."""
    if request.param == "sync":
        plain = Sandbox.create(timeout=120)
        yield plain
        plain.kill()
        return
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        later = Later(loop.run_until_complete(AsyncSandbox.create(timeout=120)), loop)
        yield later
        later.kill()


def test_git_repository_from_first_commit_to_branches(sandbox: Any) -> None:
    git = sandbox.git
    git.init("/home/user/repo", initial_branch="main")
    git.configure_user("Ada", "ada@example.com", scope="local", path="/home/user/repo")
    assert git.get_config("user.name", scope="local", path="/home/user/repo") == "Ada"
    git.set_config("pull.rebase", "false", scope="local", path="/home/user/repo")
    assert git.get_config("pull.rebase", scope="local", path="/home/user/repo") == "false"

    sandbox.files.write("/home/user/repo/a.txt", "one\n")
    assert [entry.name for entry in git.status("/home/user/repo").file_status] == ["a.txt"]
    git.add("/home/user/repo", all=True)
    git.commit("/home/user/repo", "first")
    assert git.status("/home/user/repo").is_clean

    git.create_branch("/home/user/repo", "work")
    assert git.branches("/home/user/repo").current_branch == "work"
    git.checkout_branch("/home/user/repo", "main")
    git.delete_branch("/home/user/repo", "work", force=True)
    assert git.branches("/home/user/repo").branches == ["main"]


def test_git_reset_and_restore_undo_what_they_name(sandbox: Any) -> None:
    git, repo = sandbox.git, "/home/user/repo"
    git.init(repo, initial_branch="main")
    git.configure_user("Ada", "ada@example.com", scope="local", path=repo)
    for text in ("one\n", "two\n"):
        sandbox.files.write(f"{repo}/a.txt", text)
        git.add(repo, files=["a.txt"])
        git.commit(repo, f"writes {text.strip()}")
    sandbox.files.write(f"{repo}/a.txt", "spoilt\n")
    git.restore(repo, paths=["a.txt"])
    assert sandbox.files.read(f"{repo}/a.txt") == "two\n"
    git.reset(repo, mode="hard", target="HEAD~1")
    assert sandbox.files.read(f"{repo}/a.txt") == "one\n"


def test_git_clone_push_and_pull_move_commits_between_repositories(sandbox: Any) -> None:
    git, repo, other = sandbox.git, "/home/user/repo", "/home/user/other"
    sandbox.commands.run("git init -q --bare -b main /home/user/bare.git")
    git.init(repo, initial_branch="main")
    git.configure_user("Ada", "ada@example.com", scope="global")
    git.remote_add(repo, "origin", "file:///home/user/bare.git")
    assert git.remote_get(repo, "origin") == "file:///home/user/bare.git"
    sandbox.files.write(f"{repo}/a.txt", "one\n")
    git.add(repo)
    git.commit(repo, "first")
    git.push(repo, remote="origin", branch="main", set_upstream=True)

    git.clone("file:///home/user/bare.git", path=other)
    assert sandbox.files.read(f"{other}/a.txt") == "one\n"
    sandbox.files.write(f"{repo}/a.txt", "two\n")
    git.add(repo)
    git.commit(repo, "second")
    git.push(repo)
    git.pull(other)
    assert sandbox.files.read(f"{other}/a.txt") == "two\n"


def test_git_keeps_the_credentials_that_it_is_told_to_keep(sandbox: Any) -> None:
    sandbox.git.dangerously_authenticate("ada", "s3cret", host="git.example.com")
    told = sandbox.commands.run("printf 'protocol=https\\nhost=git.example.com\\n\\n' | git credential fill").stdout
    assert "username=ada" in told
    assert "password=s3cret" in told
