"""The threat model's tables name what shows each claim: those tests and attempts exist, and no attempt is left out."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from atoll_attacks import attempts

ROOT = Path(__file__).parents[2]
TIERS = ("namespaces", "gvisor")
AROUND = "In either tier, and around it"


def _evidence(heading: str) -> list[str]:
    """What the last column of a table names."""
    text = (ROOT / "docs/threat-model.md").read_text()
    section = text.partition(f"### {heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    assert all(len(row) == 3 for row in rows)
    return [name for _, _, shown in rows[1:] for name in re.findall(r"`([^`]+)`", shown)]


def _attempts(tier: str) -> set[str]:
    return {f"{one.family}-{one.name}" for one in attempts() if tier not in dict(one.not_in)}


@pytest.mark.parametrize("wall", [*TIERS, ""])
def test_what_a_table_names_exists(wall: str) -> None:
    for name in _evidence(f"In the {wall} tier" if wall else AROUND):
        place, _, test = name.partition("::")
        if test:
            assert re.search(rf"^(async )?def {test}\(", (ROOT / place).read_text(), re.M), f"there is no {name}"
        else:
            assert any(fnmatch(one, name) for one in _attempts(wall)), f"{wall}: no attempt is called {name}"


def test_no_row_is_without_evidence() -> None:
    text = (ROOT / "docs/threat-model.md").read_text().partition("## Threats, and what")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| threat ")]
    assert len(rows) > 50
    assert [row for row in rows if "`" not in row.rpartition(" | ")[2]] == []


@pytest.mark.parametrize("wall", TIERS)
def test_every_attempt_stands_in_its_tiers_table(wall: str) -> None:
    patterns = [name for name in _evidence(f"In the {wall} tier") if "::" not in name]
    left_out = {one for one in _attempts(wall) if not any(fnmatch(one, pattern) for pattern in patterns)}
    assert left_out == set()
