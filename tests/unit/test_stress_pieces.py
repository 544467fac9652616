"""The stress report's pure parts: percentiles, thresholds, what a failed scenario becomes, the page."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from atoll.stress import (
    DEFAULTS,
    SCENARIOS,
    Outcome,
    Report,
    ScenarioReport,
    Series,
    Threshold,
    as_json,
    checks,
    html,
    parse_thresholds,
    percentile,
    run,
    runner,
    table_rows,
)
from atoll.stress.limits import busy_s, was_stopped
from atoll.stress.report import MAX_POINTS, number, plot
from atoll.stress.runner import QUICK


def test_percentiles_are_values_that_were_measured() -> None:
    values = list(range(1, 101))
    assert [percentile(values, p) for p in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7], 99) == 7
    assert percentile([], 50) == 0


def test_thresholds_are_set_by_name_and_the_last_one_counts() -> None:
    found = parse_thresholds(["# mine", "", "files.edits_per_s>=5", "files.edits_per_s <= 9.5 # slower", "a.b>=1e3"])
    assert found["files.edits_per_s"] == Threshold(9.5, at_least=False)
    assert found["a.b"] == Threshold(1000, at_least=True)
    assert found["memory.stopped"] == DEFAULTS["memory.stopped"]
    for wrong in ("files.edits_per_s=5", "edits>=5", "a.b>=x", "a.b>=--1"):
        with pytest.raises(ValueError, match="is no threshold"):
            parse_thresholds([wrong])


def test_every_default_belongs_to_a_scenario() -> None:
    assert {name.partition(".")[0] for name in DEFAULTS} <= set(SCENARIOS)


def test_a_figure_that_was_not_found_misses_its_threshold() -> None:
    found = checks("files", {"edits_per_s": 10.0}, parse_thresholds(["files.edits_per_s>=10"]))
    assert {check.name: check.ok for check in found} == {"files.correct": False, "files.edits_per_s": True}


def test_a_scenario_that_fails_is_a_finding_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(sizes: Any) -> Outcome:
        """Breaks"""
        raise RuntimeError("no <sandbox>")

    fine = lambda sizes: Outcome({"edits_per_s": 5.0})  # noqa: E731
    monkeypatch.setattr(runner, "SCENARIOS", {"cpu": broken, "files": fine})
    told: list[ScenarioReport] = []
    report = run(["files", "cpu"], QUICK, {"files.edits_per_s": Threshold(1, True)}, told.append)
    assert [(one.name, one.ok) for one in told] == [("cpu", False), ("files", True)]
    assert told[0].error == "RuntimeError: no <sandbox>"
    assert not report.ok
    assert "no &lt;sandbox&gt;" in html(report)
    with pytest.raises(ValueError, match="no such scenario: dance"):
        run(["dance"], QUICK, {})


class Tags(HTMLParser):
    """Counts tags, and what they refer to outside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.outside += [str(value) for name, value in attrs if name in ("src", "href")]


def report(value: float) -> Report:
    thresholds = {"files.edits_per_s": Threshold(10, True), "files.correct": Threshold(1, True)}
    figures = {"edits_per_s": value, "correct": 1.0}
    series = [
        Series("time", "ms", [3.0, 1.0, 2.0], "edit"),
        Series("done", "jobs", [1, 2], "s", [0.5, 0.5]),
        Series("e", "", []),
    ]
    one = ScenarioReport("files", "Edits", 1.0, figures, series, ["note <b>"], checks("files", figures, thresholds))
    return Report(datetime(2026, 1, 2, tzinfo=UTC), 1.0, [one])


def test_the_page_says_first_what_was_missed_and_needs_nothing_else() -> None:
    page = html(report(9), {"machine": "<small>"})
    assert "Missed: files.edits_per_s ≥ 10." in page
    assert page.index("Missed") < page.index("<section>")
    assert "Every threshold was met" in html(report(10))
    assert "<b>" not in page
    assert "<small>" not in page
    tags = Tags()
    tags.feed(page)
    assert (tags.count["svg"], tags.count["table"], tags.outside) == (2, 1, [])


def test_json_and_rows_tell_the_same() -> None:
    found = json.loads(json.dumps(as_json(report(9))))
    assert (found["ok"], found["scenarios"][0]["checks"][0]["ok"]) == (False, False)
    assert table_rows(report(9).scenarios[0]) == [("edits_per_s", "9", "≥ 10", False), ("correct", "1", "≥ 1", True)]
    missing = ScenarioReport("files", "E", 1.0, checks=checks("files", {}, {"files.correct": Threshold(1, True)}))
    assert table_rows(missing) == [("correct", "not found", "≥ 1", False)]


@pytest.mark.parametrize(
    ("exit_code", "output", "stopped"),
    [
        (3, "stress-ng: warn:  [4] process [5] (vm) aborted early, out of system resources", True),
        (3, "a program's own exit code", False),
        (137, "Killed", True),
        (0, "stress-ng: debug: [5] vm: assuming killed by OOM killer, restarting again (instance 0)", True),
        (0, "stress-ng: info:  [4] successful run completed in 9.51s", False),
        (-1, "", False),
    ],
)
def test_whether_a_program_got_the_memory_it_wanted(exit_code: int, output: str, stopped: bool) -> None:
    assert was_stopped(exit_code, output) is stopped


def test_what_the_machine_works_is_read_from_the_kernels_table(tmp_path: Path) -> None:
    table = tmp_path / "stat"
    table.write_text("cpu  100 20 30 99999 7000 4 6 500 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert busy_s(table) == pytest.approx(160 / os.sysconf("SC_CLK_TCK"))


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0.0, 1.0, 12.345, 0.012345, 1234567.0, 123.456, -2.5)] == [
        "0",
        "1",
        "12.3",
        "0.0123",
        "1\u202f234\u202f567",
        "123",
        "-2.50",
    ]


def test_a_long_series_is_thinned_without_losing_its_peak() -> None:
    values = [1.0] * 10_000
    values[5000] = 99.0
    drawn = re.search(r'points="([^"]+)"', plot(Series("t", "ms", values)))
    assert drawn is not None
    points = [float(point.split(",")[1]) for point in drawn[1].split()]
    assert len(points) <= MAX_POINTS
    assert min(points) < sorted(points)[1]
    assert all(0 <= y <= 200 for y in points)
