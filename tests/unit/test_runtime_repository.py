"""Micro-agents' format, what git prints, URLs to clone: the pure parts of repository work."""

from __future__ import annotations

import base64

import pytest

from atoll.runtime.repository.credentials import Authorization
from atoll.runtime.repository.microagents import MicroagentError, MicroagentType, load, load_all, parse_head
from atoll.runtime.repository.repository import clone_source, owner_repository, parse_changes
from atoll.runtime.sandbox.vscode import parse_listening


def test_the_kind_of_a_microagent_follows_from_its_head() -> None:
    plain = load("be kind", "a.md", "a")
    assert (plain.type, plain.name, plain.content) == (MicroagentType.REPO_KNOWLEDGE, "a", "be kind")
    known = load("---\nname: x\ntriggers:\n- Docker\n- 'k8s # not'\n---\n\nText\n---\nmore", "b.md", "sub/b")
    assert (known.type, known.triggers, known.content) == (
        MicroagentType.KNOWLEDGE,
        ("Docker", "k8s # not"),
        "Text\n---\nmore",
    )
    assert known.match_trigger("use DOCKER please") == "Docker"
    assert known.match_trigger("no") is None
    task = load("---\nname: fix\ninputs:\n  - name: REPO\n    description: which one\n---\nDo ${REPO}", "c.md")
    assert (task.type, task.triggers) == (MicroagentType.TASK, ("/fix",))
    assert task.inputs == ({"name": "REPO", "description": "which one"},)
    assert "ask the user to provide them" in task.content
    assert load("x", ".openhands_instructions").name == "repo_legacy"
    assert load("x", "AGENTS.md").name == "agents"


def test_heads_are_read_or_refused_with_the_line() -> None:
    head = parse_head("name: a\nversion: 1.0.0\nagent: CodeActAgent # who\nflag: true\nlist: [x, 'y']\nnone:\n")
    assert head == {
        "name": "a",
        "version": "1.0.0",
        "agent": "CodeActAgent",
        "flag": True,
        "list": ["x", "y"],
        "none": None,
    }
    for wrong in ("just text", "a: b\n  c: d", "key: {a: 1}\n- x", "- x"):
        with pytest.raises(MicroagentError, match="line"):
            parse_head(wrong)


def test_one_broken_file_does_not_hide_the_others() -> None:
    found, problems = load_all([("a.md", "---\nnonsense\n---\n"), ("d/b.md", "fine")])
    assert [one.name for one in found] == ["d/b"]
    assert len(problems) == 1
    assert problems[0].startswith("a.md")


def test_changes_are_told_once_with_the_path_from_the_directory() -> None:
    text = "R\0.\0M\0a b\nc\0A\0inner/x\0A\0inner\0R\0inner\0D\0x\0T\0link\0"
    assert parse_changes(text) == [
        {"status": "M", "path": "a b\nc"},
        {"status": "M", "path": "inner/link"},
        {"status": "D", "path": "inner/x"},
    ]


def test_clone_urls() -> None:
    assert clone_source("o/r") == ("https://github.com/o/r.git", "r", None)
    assert clone_source("https://h/x/y.git/") == ("https://h/x/y.git/", "y", None)
    assert clone_source("ssh://git@h/x/y.git").url == "ssh://git@h/x/y.git"
    for wrong in ("x", "o/-r", "--upload-pack=x", "a/b/c", "o/.."):
        with pytest.raises(ValueError, match=r"repository|neither"):
            clone_source(wrong)


def test_a_token_is_in_no_url_that_the_sandbox_gets() -> None:
    def added(user: str, password: str) -> str:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    for source, origin, header in (
        (clone_source("o/r", {"github": "t/k"}), "github.com", added("x-access-token", "t/k")),
        (clone_source("https://me:t%2Fk@git.test/o/r.git"), "git.test", added("me", "t/k")),
        (clone_source("https://t@git.test:443/o/r"), "git.test", added("t", "")),
        (clone_source("https://me:k@git.test:8443/o/r"), "https://git.test:8443", added("me", "k")),
        (clone_source("http://me:k@git.test/o/r"), "http://git.test", added("me", "k")),
    ):
        assert source.authorization == Authorization(origin, header)
        assert "@" not in source.url
        assert header not in repr(source)
    with pytest.raises(ValueError, match="name of a repository") as refused:
        clone_source("https://me:k3y@git.test/-")
    assert "k3y" not in str(refused.value)


def test_where_an_owner_keeps_microagents() -> None:
    assert owner_repository("o/r") == "o/.openhands"
    assert owner_repository("https://github.com/o/r.git") == "https://github.com/o/.openhands"
    assert (
        owner_repository("https://gitlab.example/group/sub/r/") == "https://gitlab.example/group/sub/openhands-config"
    )
    assert owner_repository("/srv/git/r") == "/srv/git/.openhands"
    for without in ("r", "/r", "https://host/r", ""):
        assert owner_repository(without) is None
    assert clone_source("o/.openhands")[:2] == ("https://github.com/o/.openhands.git", ".openhands")


def test_listening_ports_are_read_from_procs_table() -> None:
    table = (
        "  sl  local_address rem_address   st\n"
        "   0: 00000000:1F40 00000000:0000 0A 0\n"
        "   1: 0100007F:C33F 00000000:0000 0A 0\n"
        "   2: 0100007F:0050 0100007F:0051 01 0\n"
        "   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A\n"
    )
    assert parse_listening(table) == [3000, 8000]
