"""Limits: the template's, unless the call asks for others within the operator's maximum."""

from __future__ import annotations

import pytest

from atoll.control.sandboxes.sizing import limits_for
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
