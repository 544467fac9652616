"""Which versions of the published clients the matrix runs: a rule over the list of what is published. Pure.

`published.json` is that list; `python tests/matrix/run.py --refresh` asks the registries for a newer one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

PUBLISHED = Path(__file__).with_name("published.json")
FIRST = {"python": (2, 7, 0), "js": (2, 7, 0)}
JS_LINES = 12
"""About so many minor lines of the JavaScript SDK are run: evenly spread, with the first and the last."""

Version = tuple[int, int, int]


def published() -> dict[str, list[str]]:
    """Language → every published version."""
    listed = json.loads(PUBLISHED.read_text())
    return {language: listed[language] for language in FIRST}


def js_interpreter(version: str) -> str:
    """The newest `@e2b/code-interpreter` that was made for this or an older `e2b`: npm would give all the newest."""
    minimums: dict[str, str] = json.loads(PUBLISHED.read_text())["js_interpreter"]
    return max(
        (name for name, least in minimums.items() if parse_strict(least) <= parse_strict(version)), key=parse_strict
    )


def parse_strict(text: str) -> Version:
    """Raises ValueError for what is no release."""
    version = parse(text)
    if version is None:
        raise ValueError(f"{text!r} is not a release")
    return version


def parse(text: str) -> Version | None:
    """None for what is no release (betas)."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def lines(texts: Iterable[str], first: Version) -> list[list[Version]]:
    """The releases from `first` on, by minor line, each in order."""
    releases = sorted({version for text in texts if (version := parse(text)) and version >= first})
    return [list(line) for _, line in groupby(releases, key=lambda version: version[:2])]


def ends(line: list[Version]) -> list[Version]:
    """Oldest and newest patch."""
    return [line[0]] if len(line) == 1 else [line[0], line[-1]]


def chosen(language: str) -> list[str]:
    """The versions to run, oldest first."""
    found = lines(published()[language], FIRST[language])
    if language == "js":
        last = len(found) - 1
        kept = sorted({round(n * last / (JS_LINES - 1)) for n in range(JS_LINES)})
        found = [[found[n][-1]] for n in kept[:-1]] + [found[-1]]
        return [told(line[-1]) for line in found]
    return [told(version) for line in found for version in ends(line)]


def sample(language: str) -> list[str]:
    """The few that every test run tries: the oldest, and one from the middle."""
    every = chosen(language)
    return [every[0], every[len(every) // 2]]


def told(version: Version) -> str:
    return ".".join(map(str, version))
