"""Filters, order and pages of lists; page tokens and metadata queries as the SDKs write them."""

from __future__ import annotations

import urllib.parse
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.sandboxes.listing import (
    ListQuery,
    page_token,
    parse_metadata,
    parse_offset_token,
    parse_page_token,
    select_page,
    slice_page,
)
from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import Limits, SandboxRecord, SandboxState
from support.raising import raised

START = datetime(2030, 1, 1, tzinfo=UTC)


def _record(number: int, *, at: int | None = None, state: SandboxState = SandboxState.RUNNING, **metadata: str):
    started = START + timedelta(seconds=number if at is None else at)
    return SandboxRecord(
        sandbox_id=f"i{number:04d}",
        team_id="t",
        template_id="tid",
        template_alias="base",
        node_id="n",
        tier="x",
        state=state,
        started_at=started,
        end_at=started,
        limits=Limits(),
        metadata=metadata,
    )


def _ids(records) -> list[str]:
    return [record.sandbox_id for record in records]


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_together_are_the_list_without_gaps_or_repeats(ascending: bool, limit: int) -> None:
    records = [_record(n, at=n // 3) for n in range(10)]  # several start at the same moment
    seen: list[str] = []
    after = None
    while True:
        page = select_page(records, ListQuery(ascending=ascending, limit=limit, after=after))
        seen += _ids(page.items)
        assert page.total_running == 10
        if page.next_token is None:
            break
        after = parse_page_token(page.next_token)
    assert seen == sorted(_ids(records), reverse=not ascending)


def test_a_sandbox_that_ends_between_two_pages_shifts_nothing() -> None:
    records = [_record(n) for n in range(6)]
    first = select_page(records, ListQuery(ascending=True, limit=3))
    assert first.next_token is not None
    left = [record for record in records if record.sandbox_id not in ("i0000", "i0002")]
    rest = select_page(left, ListQuery(ascending=True, limit=3, after=parse_page_token(first.next_token)))
    assert _ids(rest.items) == ["i0003", "i0004", "i0005"]


def test_filters_narrow_the_list_together() -> None:
    records = [_record(1, a="1", b="2"), _record(2, a="1"), _record(3, state=SandboxState.PAUSED, a="1")]
    assert _ids(select_page(records, ListQuery(metadata={"a": "1", "b": "2"})).items) == ["i0001"]
    assert _ids(select_page(records, ListQuery(states=frozenset({SandboxState.PAUSED}))).items) == ["i0003"]
    assert _ids(select_page(records, ListQuery(template="base", ascending=True)).items) == ["i0001", "i0002", "i0003"]
    assert _ids(select_page(records, ListQuery(template="other")).items) == []
    assert _ids(select_page(records, ListQuery(started_after=START + timedelta(seconds=2))).items) == ["i0003", "i0002"]


def test_the_count_of_running_ones_leaves_out_the_paused() -> None:
    records = [_record(1), _record(2, state=SandboxState.PAUSED)]
    assert select_page(records, ListQuery()).total_running == 1


@given(st.integers(min_value=-(10**17), max_value=10**17), st.from_regex(r"[a-z0-9]{4,64}", fullmatch=True))
def test_a_page_token_comes_back_as_it_was(micros: int, sandbox_id: str) -> None:
    assert parse_page_token(page_token((micros, sandbox_id))) == (micros, sandbox_id)


@given(st.text(max_size=300))
def test_a_foreign_page_token_is_the_callers_fault_and_nothing_worse(token: str) -> None:
    assert raised(parse_page_token, token) in (None, InvalidRequest)


def _as_the_python_sdk_sends(metadata: dict[str, str]) -> str:
    return urllib.parse.urlencode({urllib.parse.quote(k): urllib.parse.quote(v) for k, v in metadata.items()})


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=20), max_size=5))
def test_metadata_survives_the_double_encoding(metadata: dict[str, str]) -> None:
    try:
        sent = _as_the_python_sdk_sends(metadata)
    except UnicodeEncodeError:
        return  # lone surrogates cannot be sent at all
    assert parse_metadata(sent) == metadata


@pytest.mark.parametrize("text", ["novalue", "a=1&b", "&".join(f"k{n}=v" for n in range(100))])
def test_a_malformed_metadata_query_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_metadata(text)


def test_pages_by_offset() -> None:
    assert slice_page([1, 2, 3], 2, 0) == ([1, 2], "2")
    assert slice_page([1, 2, 3], 2, 2) == ([3], None)
    assert slice_page([1, 2], 2, 0) == ([1, 2], None)
    for bad in ("-1", "x", "9" * 30, "１"):
        with pytest.raises(InvalidRequest):
            parse_offset_token(bad)
