"""Rows → files and tables. Goals stand beside what was reached; nothing fails for missing one."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import Row, Summary, summarise


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: what was measured beside which floor, and the goal in words."""

    benchmark: str
    floor: str
    goal: str
    subject: str = "atoll"


TABLE = (
    Line("create → first command", "bwrap + bash", "≤ 15 ms, ≤ 2×"),
    Line('commands.run("true")', "plain bash", "≤ 4 ms, ≤ 2.5×"),
    Line('run_code("1+1")', "raw jupyter_client", "≤ 1.2×"),
    Line("create → first cell", "without a pool", "≤ 60 ms"),
    Line("import numpy, pandas, matplotlib", "without a pool", "≤ 100 ms"),
    Line("read 4 KiB", "bare file server", "≤ 1.3×"),
    Line("write 4 KiB", "bare file server", "≤ 1.3×"),
    Line("read 100 MB", "bare file server", "≥ 0.6×"),
    Line("write 100 MB", "bare file server", "≥ 0.6×"),
    Line("10 creates at once", "bwrap + bash", "≥ 100 /s"),
    Line("10 creates at once", "bwrap + bash", "", subject="atoll through the SDK"),
    Line("private memory per idle sandbox, 100 live", "bwrap + sleep", "≤ 3 MB"),
)


def write(directory: Path, facts: dict[str, object], rows: Sequence[Row], name: str = "latest") -> None:
    """`{name}.csv` with every raw row, `{name}.json` with the machine and the summary."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("benchmark", "subject", "n", "value", "unit"))
        writer.writerows((row.benchmark, row.subject, row.n, f"{row.value:.4f}", row.unit) for row in rows)
    summary = [asdict(line) for line in summarise(rows)]
    (directory / f"{name}.json").write_text(
        json.dumps({"machine": facts, "summary": summary}, indent=1, ensure_ascii=False) + "\n"
    )


def table(facts: dict[str, object], rows: Sequence[Row]) -> str:
    """Markdown: the goals' table."""
    found = {(line.benchmark, line.subject): line for line in summarise(rows)}
    lines = [
        f"Measured on {facts['cores']} cores ({facts['cpu']}), {facts['memory_gb']} GB, {facts['system']}, "
        f"kernel {facts['kernel']}, cgroup {facts['cgroups']}, load {facts['load_before']} before and "
        f"{facts['load_after']} after; p50 / p95; each floor in the same run, in turns (`make bench`; raw rows in "
        f"`benchmarks/results/`).",
        "",
        "| | Atoll | floor | Atoll ÷ floor | goal |",
        "|---|---|---|---|---|",
    ]
    for line in TABLE:
        mine, floor = found.get((line.benchmark, line.subject)), found.get((line.benchmark, line.floor))
        if mine is None or floor is None:
            continue
        name = line.benchmark + ("" if line.subject == "atoll" else f" ({line.subject.removeprefix('atoll ')})")
        ratio = mine.p50 / floor.p50 if floor.p50 else float("nan")
        lines.append(f"| {name} | {_shown(mine)} | {_shown(floor)} ({line.floor}) | {ratio:.2f}× | {line.goal} |")
    return "\n".join(lines)


def breakdown(rows: Sequence[Row]) -> str:
    """Markdown: where the time goes, every subject of the benchmarks that were peeled; empty without them."""
    summaries = summarise(rows)
    peeled = ("create → first command", "steps: create → first command", 'commands.run("true")', 'run_code("1+1")')
    lines = ["Of the same run as the README's table; p50 / p95 ms.", ""]
    for benchmark in peeled:
        parts = [f"{line.subject} {line.p50:.2f} / {line.p95:.2f}" for line in summaries if line.benchmark == benchmark]
        if parts:
            name, steps = benchmark.removeprefix("steps: "), " in steps" if benchmark.startswith("steps: ") else ""
            lines.append(f"- **{name}**{steps}: " + "; ".join(parts))
    return "\n".join(lines) if len(lines) > 2 else ""


def _shown(line: Summary) -> str:
    digits = 0 if line.unit in ("MB/s", "/s") else 2 if line.p50 < 10 else 1
    return f"{line.p50:.{digits}f} / {line.p95:.{digits}f} {line.unit}"


def into_readme(readme: Path, text: str, mark: str = "benchmarks") -> bool:
    """Replaces what stands between the markers. False when the README has no markers."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    content = readme.read_text()
    if begin not in content or end not in content:
        return False
    head, _, rest = content.partition(begin)
    _, _, tail = rest.partition(end)
    readme.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
    return True
