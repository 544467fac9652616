"""Limits: the template's, unless the call asks for others within the operator's maximum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.sandboxes.sizing import limits_for
from atoll.model.disk_sizes import rounded_disk_mib
from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import Limits

TEMPLATE = Limits(cpu_count=2, memory_mib=1024, disk_mib=10240, pids=2048)


def test_without_a_word_the_templates_limits_hold() -> None:
    assert limits_for(TEMPLATE, {"colour": "red"}, None) == TEMPLATE


def test_a_call_asks_by_metadata() -> None:
    asked = {"atoll.cpu": "1", "atoll.memory": "256", "atoll.disk": "64", "atoll.pids": "100"}
    assert limits_for(TEMPLATE, asked, None) == Limits(1, 256, 64, 100)


def test_a_template_above_the_maximum_is_made_at_the_maximum() -> None:
    assert limits_for(TEMPLATE, {}, Limits(64, 512, 99999, 4096)) == Limits(2, 512, 10240, 2048)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e3", "many", "０", "9" * 30, " 256", "0x100"])
def test_what_is_no_number_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"atoll\.memory"):
        limits_for(TEMPLATE, {"atoll.memory": text}, None)


@pytest.mark.parametrize(("key", "text"), [("atoll.cpu", "0"), ("atoll.memory", "63"), ("atoll.pids", "3")])
def test_too_little_to_start_anything_is_refused(key: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match="least"):
        limits_for(TEMPLATE, {key: text}, None)


def test_more_than_the_maximum_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than this server allows one sandbox, 2048"):
        limits_for(TEMPLATE, {"atoll.memory": "2049"}, Limits(memory_mib=2048))


@pytest.mark.parametrize(
    ("asked", "made"), [(16, 16), (17, 20), (32, 32), (33, 40), (41, 48), (49, 64), (10000, 10240), (10240, 10240)]
)
def test_a_disk_has_one_of_few_sizes_and_the_limits_say_which(asked: int, made: int) -> None:
    assert limits_for(TEMPLATE, {"atoll.disk": str(asked)}, None).disk_mib == made


@given(st.integers(16, 999_999_999))
def test_every_size_is_rounded_up_by_a_third_at_most_to_a_size_that_stays(asked: int) -> None:
    made = rounded_disk_mib(asked)
    assert asked <= made <= asked * 4 / 3
    assert rounded_disk_mib(made) == made
    assert rounded_disk_mib(asked, most_mib=asked) == asked


def test_the_sizes_are_few() -> None:
    assert len({rounded_disk_mib(asked) for asked in range(16, 1 << 14)}) == 31
    assert limits_for(TEMPLATE, {"atoll.disk": "1000"}, Limits(disk_mib=1000)).disk_mib == 1000
