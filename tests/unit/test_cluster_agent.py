"""What the watcher of a machine's agent says of its certificate, without a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.cluster.agent_process import AgentProcess
from atoll.tls.authority import Authority
from atoll.tls.peers import node_identity


@pytest.mark.parametrize(("days", "is_good"), [(365, True), (31, True), (29, False)])
def test_a_certificate_that_ends_soon_is_none(days: int, is_good: bool, tmp_path: Path) -> None:
    authority = Authority.kept_in(tmp_path / "tls", "nodes")
    agent = AgentProcess(tmp_path / "agent")
    assert agent.report().authority == ""
    agent.certify(node_identity(authority, ["127.0.0.1"], days))
    assert agent.report().authority == (authority.pem.strip() if is_good else "")


def test_a_file_that_is_no_certificate_is_none(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "agent")
    agent.certify("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    assert agent.report().authority == ""
