"""What was said to one sandbox is in the memory of no other, nor of what others are made from.

The host looks, as root, at every page of every zygote, of what waits to become a sandbox, and of every sandbox. The
control is the sandbox to which it was said: there it is found.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import Sandbox

from atoll.testing import footprint
from support.host import TOOLS, fault
from support.server import ServerProcess

TIERS = ("namespaces", "gvisor")
LATER = 3
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PIECE = 1 << 20


class World:
    """A server of one tier alone, and its processes."""

    def __init__(self, server: ServerProcess, mark: str, tier: str) -> None:
        self.server = server
        self.mark = mark
        self.tier = tier

    def create(self, **options: object) -> Sandbox:
        url, key = self.server.url, self.server.api_key
        return Sandbox.create(timeout=300, api_key=key, api_url=url, sandbox_url=url, **options)  # type: ignore[arg-type]

    def group_of(self, sandbox: Sandbox) -> str:
        state = self.server.data_dir / "sandboxes" / sandbox.sandbox_id / "state.json"
        return str(json.loads(state.read_text())["handle"]["group"])

    def processes(self, group: str) -> dict[int, str]:
        """pid → the text of its groups: of whatever sandboxes are or are made from.

        By where `group` lies, and the zygotes by name. The server's own processes have to know what is asked for.
        """
        groups = dict(_groups())
        base = next(_base(text, group) for text in groups.values() if group in text)
        zygotes = {pid for pid in footprint.processes_of(self.mark) if _name(pid) == "atoll-zygote"}
        return {pid: text for pid, text in groups.items() if pid in zygotes or base in text}


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # ended meanwhile
        return ""


def _groups() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                yield int(name), Path(f"/proc/{name}/cgroup").read_text()


def _base(text: str, group: str) -> str:
    """The directory that a server's groups lie in."""
    path = next(line.split(":", 2)[2] for line in text.splitlines() if group in line)
    return path[: path.index(group)]


@pytest.fixture(params=TIERS)
def world(request: pytest.FixtureRequest, templates_dir: Path, tmp_path: Path) -> Iterator[World]:
    tier = request.param
    for need in ("root", tier):
        if reason := fault(need):
            pytest.skip(reason)
    mark = footprint.new_mark()
    runsc = next((str(path) for path in TOOLS.rglob("runsc") if path.is_file()), "")
    server = ServerProcess.start(
        tmp_path / "data",
        templates_dir=templates_dir,
        options=["--end-sandboxes", "--isolation", tier],
        environ={footprint.MARKER: mark, **({"ATOLL_RUNSC": runsc} if tier == "gvisor" and runsc else {})},
    )
    try:
        yield World(server, mark, tier)
    finally:
        server.stop()


def _pages(pid: int) -> Iterator[bytes]:
    """What is in memory, by pieces that overlap by less than a secret's length; nothing is brought in for it."""
    with (
        open(f"/proc/{pid}/maps") as maps,
        open(f"/proc/{pid}/pagemap", "rb", 0) as table,
        open(f"/proc/{pid}/mem", "rb", 0) as memory,
    ):
        for line in maps:
            start, end = (int(text, 16) for text in line.split()[0].split("-"))
            if "[v" in line or end - start > 8 << 30:  # [vvar], [vsyscall]; reservations
                continue
            for piece in range(start, end, _PIECE):
                pages = (min(end, piece + _PIECE) - piece) // _PAGE
                table.seek(piece // _PAGE * 8)
                present = array("Q", table.read(pages * 8))
                if any(entry >> 62 for entry in present):
                    try:
                        memory.seek(piece)
                        yield memory.read(pages * _PAGE)
                    except OSError:
                        continue


def _knows(pid: int, words: list[str]) -> list[str]:
    """Which of the secrets are somewhere in its memory."""
    found: set[str] = set()
    try:
        for piece in _pages(pid):
            found |= {word for word in words if word.encode() in piece}
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        pass
    return sorted(found)


@pytest.mark.timeout(300)
def test_what_one_sandbox_was_told_is_in_no_other_and_in_nothing_that_others_are_made_from(world: World) -> None:
    world.create().kill()  # so that some are kept ready
    canary = f"canary{secrets.token_hex(16)}"
    traffic = {"allow_public_traffic": False}
    first = world.create(envs={"CANARY": canary}, network=traffic)
    token, traffic_token = first._envd_access_token, first.traffic_access_token
    assert token is not None
    assert traffic_token is not None
    assert first.commands.run("echo $CANARY").stdout.strip() == canary
    later = [world.create() for _ in range(LATER)]
    for one in later:
        assert one.commands.run("echo hi").stdout == "hi\n"
    own = world.group_of(first)
    groups = world.processes(own)
    inside = [pid for pid, text in groups.items() if own in text]
    others = [pid for pid, text in groups.items() if own not in text]
    assert {group for group in map(world.group_of, later) if any(group in groups[pid] for pid in others)}
    assert {word for pid in inside for word in _knows(pid, [canary, token])} == {canary, token}, "the control"
    assert ("atoll-zygote" in map(_name, others)) == (world.tier == "namespaces")
    leaks = {(pid, _name(pid)): known for pid in others if (known := _knows(pid, [canary, token, traffic_token]))}
    assert not leaks
    assert not {word for pid in inside for word in _knows(pid, [traffic_token])}, "the edge's alone"
