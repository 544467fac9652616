"""`atoll stress`: scenarios, a table as they end, a report as HTML and JSON. Exit code 1: a threshold was missed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from atoll.cli.run import ensure, platform_environ
from atoll.config import Settings
from atoll.model.errors import InvalidRequest
from atoll.stress import SCENARIOS, ScenarioReport, Sizes, as_json, html, parse_thresholds, run, table_rows
from atoll.stress.runner import FULL, QUICK


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    scenarios: Sequence[str] = ()
    quick: bool = False
    at_once: int | None = None
    jobs: int | None = None
    thresholds: Sequence[str] = ()
    thresholds_file: Path | None = None
    report: Path | None = None
    json_file: Path | None = None
    template: str | None = None
    embedded: bool = False
    as_json: bool = False


def stress(settings: Settings, options: Options) -> int:
    """0 when every threshold was met. Raises AtollError, OSError."""
    lines = options.thresholds_file.read_text().splitlines() if options.thresholds_file is not None else []
    try:
        thresholds = parse_thresholds([*lines, *options.thresholds])
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    names = list(options.scenarios) or list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        raise InvalidRequest(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    sizes = _sizes(options)
    console = Console(stderr=options.as_json, highlight=False)
    with platform_environ(settings, embedded=options.embedded):
        ensure(options.template or "base")
        if "actions" in names:
            ensure("code-interpreter-v1")
        load = os.getloadavg()[0]
        report = run(names, sizes, thresholds, lambda one: _show(console, one))
    shown = {
        "machine": f"{os.cpu_count()} processors, Linux {platform.release()}, load {load:.1f} before",
        "sizes": "quick" if options.quick else "full",
    }
    path = options.report or Path("atoll-stress.html")
    path.write_text(html(report, shown), "utf-8")
    if options.json_file is not None:
        options.json_file.write_text(json.dumps({**as_json(report), "settings": shown}, indent=2), "utf-8")
    if options.as_json:
        print(json.dumps({**as_json(report), "settings": shown}, indent=2))
    word = "[bold green]every threshold was met[/]" if report.ok else "[bold red]thresholds were missed[/]"
    console.print(f"\n{word} in {report.seconds:.0f} s; report: {escape(str(path))}")
    return 0 if report.ok else 1


def _sizes(options: Options) -> Sizes:
    sizes = QUICK if options.quick else FULL
    return replace(
        sizes,
        at_once=options.at_once or sizes.at_once,
        jobs=options.jobs or sizes.jobs,
        template=options.template,
    )


def _show(console: Console, one: ScenarioReport) -> None:
    mark = "[green]✓[/]" if one.ok else "[red]✗[/]"
    console.print(f"\n{mark} [bold]{one.name}[/]: {escape(one.title)} ({one.seconds:.1f} s)")
    table = Table("figure", "value", "threshold", box=None, padding=(0, 2))
    table.columns[1].justify = "right"
    for name, value, threshold, met in table_rows(one):
        colour = "" if met is None else "[green]" if met else "[bold red]"
        table.add_row(name, value, f"{colour}{threshold}")
    console.print(table)
    for note in filter(str.strip, one.notes):
        console.print(f"  [dim]{escape(note.strip())}[/]")
    if one.error:
        console.print(f"  [red]{escape(one.error)}[/]")
