"""What a test may need of the machine, and the reason for a skip when it is not there."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@cache
def _tier_fault(name: str) -> str | None:
    from atoll.cli.doctor import examine
    from atoll.config import Settings
    from atoll.isolation.base import Verdict

    report = examine(Settings.from_environ(os.environ))
    if report.tiers.get(name):
        return None
    found = report.sections.get(name)
    if found is None:
        return f"the isolation tier {name!r} is not installed"
    return f"the tier {name!r} does not work here: " + "; ".join(
        f"{finding.subject}: {finding.detail}" for finding in found if finding.verdict is Verdict.FAIL
    )


TOOLS = Path(sys.prefix) / "atoll-tools"
"""Where `make setup` unpacks runsc for the tests: apart from a user's data directory, whose `auto` it would change."""


@cache
def _gvisor_fault() -> str | None:
    from atoll.isolation.base import BackendConfig, Verdict
    from atoll.isolation.registry import load

    with tempfile.TemporaryDirectory() as scratch:
        backend = load("gvisor")(BackendConfig(Path(scratch), tools_dir=TOOLS, environ=os.environ))
        found = asyncio.run(backend.doctor())
    failed = [f"{one.subject}: {one.detail}" for one in found if one.verdict is Verdict.FAIL]
    return f"the tier 'gvisor' does not work here: {'; '.join(failed)}" if failed else None


def _root_fault() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _local_names_fault() -> str | None:
    try:
        socket.getaddrinfo("8000-abcd.sbx.localhost", 443, type=socket.SOCK_STREAM)
    except OSError:
        return "this system does not resolve *.localhost: install libnss-myhostname"
    return None


_NEEDS: dict[str, Callable[[], str | None]] = {
    "root": _root_fault,
    "namespaces": lambda: _tier_fault("namespaces"),
    "gvisor": _gvisor_fault,
    "*.localhost": _local_names_fault,
}


def fault(need: str) -> str | None:
    """Why `need` is not met on this machine, or None. `program:NAME` asks for a program on the PATH."""
    kind, _, name = need.partition(":")
    if kind == "program":
        return None if shutil.which(name) else f"the program {name!r} is not installed"
    return _NEEDS[kind]()


def requires(*needs: str) -> pytest.MarkDecorator:
    """Marks a test that this machine may not be able to run; the skip names what is missing."""
    faults = [text for need in needs if (text := fault(need)) is not None]
    return pytest.mark.skipif(bool(faults), reason="; ".join(faults) or "met")


def skip_without(*needs: str) -> None:
    """The same inside a fixture."""
    faults = [text for need in needs if (text := fault(need)) is not None]
    if faults:
        pytest.skip("; ".join(faults))
