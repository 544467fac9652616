"""Stress and performance runs of the agent runtime: scenarios, thresholds, and a report that a person reads."""

from atoll.stress.measure import Figures, Outcome, Series, percentile
from atoll.stress.report import as_json, html, table_rows
from atoll.stress.runner import SCENARIOS, Report, ScenarioReport, Sizes, run
from atoll.stress.thresholds import DEFAULTS, Check, Threshold, checks, parse_thresholds

__all__ = [
    "DEFAULTS",
    "SCENARIOS",
    "Check",
    "Figures",
    "Outcome",
    "Report",
    "ScenarioReport",
    "Series",
    "Sizes",
    "Threshold",
    "as_json",
    "checks",
    "html",
    "parse_thresholds",
    "percentile",
    "run",
    "table_rows",
]
