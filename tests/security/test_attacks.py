"""Every attack is blocked on every tier, and every attack works without the wall.

An attempt that is blocked proves something only if the same attempt would have been noticed: its control must be a
breach. The host decides both, by its canaries (`atoll_attacks.judges`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll_attacks import Attempt, Controls, Family, Impossible, Outcome, Range, attempts
from atoll_attacks.run import Ended, beside_others
from support.host import TOOLS, fault
from support.server import ServerProcess
from support.tiers import TIERS

ALL = attempts()
HERE = [attempt for attempt in ALL if attempt.family is not Family.EGRESS]
"""That one needs networks around its server: test_egress_attacks.py."""


@pytest.fixture(scope="module")
def controls() -> Controls:
    """What was tried without the wall: once for all tiers."""
    return {}


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> list[Attempt]:
    """Those that this run of pytest tries."""
    wanted = {item.callspec.params.get("attempt") for item in request.session.items if hasattr(item, "callspec")}
    return [attempt for attempt in HERE if attempt in wanted]


@pytest.fixture(scope="module", params=TIERS)
def field(
    request: pytest.FixtureRequest, controls: Controls, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Range]]:
    """(tier, the place where attacks are run): a server of that tier alone, with a secret of the host's about it."""
    tier = request.param
    for need in ("root", tier):
        if reason := fault(need):
            pytest.skip(reason)
    data_dir = tmp_path_factory.mktemp(f"attacks-{tier}") / "data"
    runsc = next((path for path in TOOLS.rglob("runsc") if path.is_file()), None)
    server = ServerProcess.start(
        data_dir,
        templates_dir=templates_dir,
        options=["--end-sandboxes", "--isolation", tier],
        environ={"ATOLL_RUNSC": str(runsc)} if tier == "gvisor" and runsc is not None else {},
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in server.environ.items():
                patch.setenv(name, value)
            with Range(data_dir=data_dir, controls=controls) as found:
                yield tier, found
    finally:
        server.stop()


@pytest.fixture(scope="module")
def several(field: tuple[str, Range], chosen: list[Attempt]) -> dict[str, Ended]:
    """Those that may run beside one another, with their controls: some at a time."""
    tier, place = field
    here = [one for one in chosen if beside_others(one) and tier not in dict(one.not_in)]
    return place.attack_all(here, controls=True)


@pytest.mark.timeout(400)  # the first waits for several
@pytest.mark.parametrize("attempt", HERE, ids=lambda attempt: f"{attempt.family}-{attempt.name}")
def test_an_attack_is_blocked_and_works_without_the_wall(
    attempt: Attempt, field: tuple[str, Range], several: dict[str, Ended]
) -> None:
    tier, place = field
    if reason := dict(attempt.not_in).get(tier):
        pytest.skip(f"not in {tier}: {reason}")
    outcome, control = several.get(attempt.name) or (place.attack(attempt), place.control(attempt))
    assert outcome.breach is None, f"{attempt.goal}: {outcome.breach}\n{outcome.said}"
    if isinstance(control, Outcome):
        assert control.breach is not None, f"the control of {attempt.name} was not noticed:\n{control.said}"


def test_there_are_a_hundred_attempts_and_their_names_tell_them_apart() -> None:
    names = [attempt.name for attempt in ALL]
    assert len(set(names)) == len(names)
    assert len(names) >= 100
    assert {attempt.family for attempt in ALL} == set(Family)


def test_a_control_is_left_out_only_with_a_reason() -> None:
    without = [attempt for attempt in ALL if isinstance(attempt.control, Impossible)]
    assert all(len(attempt.control.reason) > 20 for attempt in without if isinstance(attempt.control, Impossible))
    assert len(without) <= len(ALL) // 3


def test_the_range_asks_for_root(monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionError, match="root"), Range():
        pass
