"""A run's report: as JSON, as rows for a terminal, and as one HTML file that needs nothing else. Pure.

The page says first whether every threshold was met, then each scenario with its figures, thresholds and plots. Plots
are SVG drawn here; colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from atoll.stress.measure import Series, percentile
from atoll.stress.runner import Report, ScenarioReport

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
MAX_POINTS = 600

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c2430, #e6e9ee); --soft: light-dark(#66707f, #98a2b1);
  --line: light-dark(#d9dee5, #38404c); --page: light-dark(#ffffff, #14181e); --card: light-dark(#f6f8fa, #1b2028);
  --good: light-dark(#176f43, #5ecb94); --bad: light-dark(#b3261e, #ff8a80); --plot: light-dark(#2459b3, #7fb0ff); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 0; }
p { margin: .25rem 0; } .soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.25rem;
  margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } .number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0 0; } figcaption { color: var(--soft); } svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .data { stroke: var(--plot); fill: none; stroke-width: 1.5; } svg .dot { fill: var(--plot); }
svg .middle { stroke: var(--soft); stroke-dasharray: 4 4; }
"""


def as_json(report: Report) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "ok": report.ok,
        "began": report.began.isoformat(timespec="seconds"),
        "seconds": round(report.seconds, 3),
        "scenarios": [
            {
                "name": one.name,
                "title": one.title,
                "ok": one.ok,
                "seconds": round(one.seconds, 3),
                "error": one.error,
                "figures": dict(one.figures),
                "checks": [
                    {"name": check.name, "threshold": str(check.threshold), "value": check.value, "ok": check.ok}
                    for check in one.checks
                ],
                "notes": list(one.notes),
                "series": [asdict(series) for series in one.series],
            }
            for one in report.scenarios
        ],
    }


def table_rows(one: ScenarioReport) -> list[tuple[str, str, str, bool | None]]:
    """(figure, value, threshold, met or None without a threshold); thresholds whose figure is missing come last."""
    checks = {check.name.partition(".")[2]: check for check in one.checks}
    rows: list[tuple[str, str, str, bool | None]] = []
    for name, value in one.figures.items():
        check = checks.pop(name, None)
        rows.append((name, number(value), str(check.threshold) if check else "", check.ok if check else None))
    rows += [(name, "not found", str(check.threshold), False) for name, check in checks.items()]
    return rows


def number(value: float) -> str:
    """As a person writes it: three significant digits, thousands apart."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}".replace(",", "\u202f")


def html(report: Report, settings: Mapping[str, Any] | None = None) -> str:
    """The page. `settings` are printed as they are: what was asked for, on which machine."""
    missed = [check for one in report.scenarios for check in one.checks if not check.ok]
    broken = [one for one in report.scenarios if one.error]
    if report.ok:
        verdict = '<p class="good"><strong>Every threshold was met.</strong></p>'
    else:
        words = [f"{escape(check.name)} {escape(str(check.threshold))}" for check in missed]
        words += [f"{escape(one.name)} could not be carried out" for one in broken]
        verdict = f'<p class="bad"><strong>Missed: {", ".join(words)}.</strong></p>'
    shown = ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in (settings or {}).items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Atoll under stress</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>Atoll under stress</h1>"
        f'<p class="soft">{report.began:%Y-%m-%d %H:%M} UTC, {report.seconds:.0f} s{", " + shown if shown else ""}</p>'
        f"{verdict}{''.join(_section(one) for one in report.scenarios)}</html>\n"
    )


def _section(one: ScenarioReport) -> str:
    word = '<span class="good">met</span>' if one.ok else '<span class="bad">missed</span>'
    parts = [f"<h2>{escape(one.title)}</h2>"]
    parts.append(f'<p class="soft">{escape(one.name)}, {one.seconds:.1f} s: {word}</p>')
    if one.error:
        parts.append(f'<p class="bad">{escape(one.error)}</p>')
    if rows := table_rows(one):
        body = "".join(
            f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td>'
            f'<td class="{"" if met is None else "good" if met else "bad"}">{escape(threshold)}</td></tr>'
            for name, value, threshold, met in rows
        )
        head = '<tr><th>figure</th><th class="number">value</th><th>threshold</th></tr>'
        parts.append(f"<table>{head}{body}</table>")
    parts += [f'<p class="soft">{escape(note)}</p>' for note in one.notes if note.strip()]
    parts += [plot(series) for series in one.series if series.values]
    return f"<section>{''.join(parts)}</section>"


def plot(series: Series) -> str:
    """A line of the values, from zero on, with their median; dots where there are few."""
    values = [float(value) for value in series.values]
    xs = [float(x) for x in series.xs] if series.xs is not None else [float(n) for n in range(1, len(values) + 1)]
    points = _thinned(list(zip(xs, values, strict=True)))
    top = _round_up(max([*values, 0.0]))
    low, high = min(xs), max(xs)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / (high - low) if high > low else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    grid = []
    ticks = 4 if f"{top:e}"[0] in "24" else 5  # round numbers: tops are 1, 2, 4 or 5 times a power of ten
    for tick in range(ticks + 1):
        value = top * tick / ticks
        y = at(low, value)[1]
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for x, anchor in ((low, "start"), (high, "end")):
        grid.append(f'<text x="{at(x, 0)[0]:.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{number(x)}</text>')
    if series.x_title:
        middle = (LEFT + WIDTH - RIGHT) / 2
        grid.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(series.x_title)}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    drawn = [f'<polyline class="data" points="{line}"/>']
    if len(points) <= 40:
        drawn += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in (at(*p) for p in points)]
    caption = f"{escape(series.title)}, {escape(series.unit)}"
    if series.xs is None:
        median = percentile(values, 50)
        y = at(low, median)[1]
        drawn.append(f'<line class="middle" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        caption += f" (dashed: median {number(median)})"
    label = f'role="img" aria-label="{caption}"'
    body = "".join(grid + drawn)
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" {label}>{body}</svg></figure>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS: of each group the highest, so that no peak is lost."""
    size = -(-len(points) // MAX_POINTS)
    if size <= 1:
        return list(points)
    return [max(points[at : at + size], key=lambda point: point[1]) for at in range(0, len(points), size)]


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 10 times a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 10) if step * power >= value * 0.999999)
