"""Who may take more of a file system that fills up: shares, an honest refusal, and the end of what goes on growing."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.isolation.base import DiskUse
from atoll.model.errors import QuotaExceeded
from atoll.node.disk_space import SPARE, DiskSpace, decide

GIB = 1 << 30
RESERVE = 10 * GIB


def _use(allocated: int, taken: int | None = None) -> DiskUse:
    return DiskUse(allocated * GIB, (allocated if taken is None else taken) * GIB, 100 * GIB)


def test_with_room_everybody_may_take_what_its_limit_says() -> None:
    decision = decide(50 * GIB, RESERVE, {"a": _use(90), "b": _use(0)}, {}, frozenset())
    assert decision.room
    assert decision.more == {"a": None, "b": None}


def test_with_little_room_only_the_small_get_more_and_never_more_than_there_is() -> None:
    uses = {"big": _use(90), "small": _use(1), "other": _use(2)}
    decision = decide(16 * GIB, RESERVE, uses, {}, frozenset())
    assert not decision.room
    assert decision.more == {"big": 0, "small": 3 * GIB, "other": 3 * GIB}


def test_what_was_allocated_and_is_not_written_yet_counts_as_taken() -> None:
    decision = decide(50 * GIB, RESERVE, {"a": _use(45, taken=5), "b": _use(1)}, {}, frozenset())
    assert not decision.room
    assert decision.more == {"a": 0, "b": 0}


def test_below_the_reserve_nobody_gets_more_and_who_still_grows_is_frozen_until_there_is_room() -> None:
    before = {"liar": _use(90, taken=50), "small": _use(1)}
    now = {"liar": _use(90, taken=60), "small": _use(1)}
    enough = decide(6 * GIB, RESERVE, now, before, frozenset())
    assert set(enough.more.values()) == {0}
    assert enough.frozen == frozenset()
    low = decide(4 * GIB, RESERVE, now, before, frozenset())
    assert low.frozen == {"liar"}
    assert decide(8 * GIB, RESERVE, now, now, low.frozen).frozen == {"liar"}
    assert decide(12 * GIB, RESERVE, now, now, low.frozen).frozen == frozenset()
    assert decide(8 * GIB, RESERVE, {"small": _use(1)}, now, low.frozen).frozen == frozenset(), "it was killed"


def test_without_a_sandbox_nothing_is_divided() -> None:
    assert decide(0, RESERVE, {}, {}, frozenset()).more == {}


def test_no_new_disk_where_little_is_free(tmp_path: Path) -> None:
    DiskSpace(tmp_path, 0).check_room()
    DiskSpace(tmp_path, 1).check_room()
    with pytest.raises(QuotaExceeded, match=r"MiB free.*ATOLL_DISK_RESERVE_MIB"):
        DiskSpace(tmp_path, 1 << 60).check_room()
    assert not (tmp_path / SPARE).exists()
