"""docs/compatibility.md says what packages and tests say: no public method without a row, no row without a test."""

from __future__ import annotations

import re

import pytest

from atoll.control.access.client_versions import TESTED, clients_of
from compatibility import table
from matrix import versions
from support import tiers
from support.npm import install_node_modules


@pytest.fixture
def npm_packages() -> None:
    """The published packages of npm; skips where they cannot be installed."""
    install_node_modules()


def test_every_python_method_works_or_has_a_reason() -> None:
    rows = list(table.python_rows())
    assert len(rows) > 100
    assert [row for row in rows if not row.told] == []


@pytest.mark.slow
@pytest.mark.usefixtures("npm_packages")
@pytest.mark.timeout(400)
def test_every_javascript_method_and_command_works_or_has_a_reason() -> None:
    rows = [*table.js_rows(), *table.cli_rows()]
    assert len(rows) > 80
    assert [row for row in rows if not row.told] == []


@pytest.mark.slow
@pytest.mark.usefixtures("npm_packages")
@pytest.mark.timeout(400)
def test_the_document_has_exactly_the_rows_that_the_packages_call_for() -> None:
    expected = {(row.client, row.method): bool(row.test) for row in table.rows()}
    told = {(row.client, row.method): bool(row.test) for row in table.written()}
    assert told == expected, "run: python tests/compatibility/table.py --write"


def test_the_document_has_the_differences_between_tiers() -> None:
    assert table.part(table.DIFFERENCES) == tiers.table(), "run: python tests/compatibility/table.py --write"


def test_every_row_is_filled_and_every_named_test_exists() -> None:
    named = {row.test for row in table.written() if row.test}
    assert len(named) > 50
    assert named <= set(table.python_tests()) | set(table.js_tests())
    assert [row for row in table.written() if not row.told] == []


@pytest.mark.slow
@pytest.mark.usefixtures("npm_packages")
@pytest.mark.timeout(400)
def test_reasons_are_given_for_methods_that_exist_only() -> None:
    methods = [row.method for row in (*table.python_rows(), *table.js_rows(), *table.cli_rows())]
    unused = [pattern for pattern, _ in table.NOT_OFFERED if not any(re.fullmatch(pattern, name) for name in methods)]
    assert unused == []


def test_the_matrix_takes_both_ends_of_every_minor_line_from_2_7_on() -> None:
    lines = versions.lines(["2.6.9", "2.7.0", "2.8.0", "2.8.1", "2.8.2", "2.9.0-beta.1"], (2, 7, 0))
    assert [versions.ends(line) for line in lines] == [[(2, 7, 0)], [(2, 8, 0), (2, 8, 2)]]
    chosen = versions.chosen("python")
    assert chosen[0] == "2.7.0"
    assert len(chosen) > 60


def test_the_matrix_table_has_every_chosen_version() -> None:
    text = table.DOCUMENT.read_text().partition("<!-- matrix: begin -->")[2]
    for language in versions.FIRST:
        for version in versions.chosen(language):
            assert f"| {version} |" in text, f"{language} {version}: run `make matrix`"


def test_the_newest_tested_versions_are_those_that_the_server_knows() -> None:
    newest = {language: versions.parse(versions.chosen(language)[-1]) for language in versions.FIRST}
    assert (TESTED["e2b-python-sdk"], TESTED["e2b-js-sdk"]) == (newest["python"], newest["js"])
    assert f"@e2b/cli {versions.told(TESTED['e2b-cli'])}" in table.versions()


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({b"user-agent": b"e2b-python-sdk/2.99.1 (x)"}, [("e2b-python-sdk", (2, 99, 1))]),
        ({b"user-agent": b"e2b-cli/3.0.0 e2b-js-sdk/2.49.0"}, [("e2b-cli", (3, 0, 0)), ("e2b-js-sdk", (2, 49, 0))]),
        ({b"publisher": b"e2b", b"lang": b"python", b"package_version": b"2.7.0"}, [("e2b-python-sdk", (2, 7, 0))]),
        ({b"publisher": b"x", b"lang": b"python", b"package_version": b"2.7.0"}, []),
        ({b"user-agent": b"e2b-python-sdk/99999.1.1"}, []),
        ({b"user-agent": b"curl/8"}, []),
    ],
)
def test_a_client_is_known_by_its_fields(
    fields: dict[bytes, bytes], found: list[tuple[str, tuple[int, int, int]]]
) -> None:
    assert clients_of(fields.items()) == found
