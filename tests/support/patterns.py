"""Finds regular expressions whose matching may take more than linear time: pure, over the parse tree of `re` itself.

Three shapes are refused, wherever what stands behind them can fail:

adjacent     two unbounded repeats that can share characters, with nothing certain between them: `[ \\t]*(.*?)[ \\t]*x`
unanchored   a search that begins anew at each character of a run that a repeat then walks again: `\\s+#`, `<[^>]*>`
nested       a repeat of a repeat (or of alternatives that overlap): `(?:a+)*x`, `(?:a|[a-z])*x`

Possessive repeats (`\\s++`) and atomic groups give nothing back, so they count only for the second shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MANY = 64
"""A repeat of more than this counts as unbounded beside another one."""
WIDE = 256
"""A repeat of more than this counts as unbounded where a search begins it anew at each character."""
WHOLE = "fullmatch"
SEARCHES = frozenset({"search", "findall", "finditer", "sub", "subn", "split"})
METHODS = SEARCHES | {"match", WHOLE}

Characters = frozenset[int]
_SAMPLE = [*range(256), 0x3B1, 0x4E2D, 0x1F600]
ALL: Characters = frozenset(_SAMPLE)


@dataclass(frozen=True)
class Item:
    """One element of a linear run through a pattern. `body`: what a repeat repeats, one run per alternative."""

    characters: Characters
    certain: bool = True
    unbounded: bool = False
    wide: bool = False
    """Unbounded for a search too."""
    possessive: bool = False
    body: tuple[tuple[Item, ...], ...] = ()
    forked: bool = False
    """The body's alternatives may begin alike."""
    end: bool = False
    """Matches nothing, but can fail: `$`."""
    start: bool = False
    """Matches at the beginning of the text only."""
    not_after: Characters = frozenset()
    """Matches only where none of these stands before."""


Run = tuple[Item, ...]


def problems(pattern: str | bytes, flags: int, methods: Iterable[str]) -> list[str]:
    """What is wrong with a pattern used by these methods of `re`; empty if nothing is."""
    tree = parser.parse(pattern, flags)
    found: list[str] = []
    for run in _runs(tree, tree.state.flags):
        for method in methods:
            whole = run if method not in SEARCHES or (run and run[0].start) else (_ANYWHERE, *run)
            found += _in_run(whole, method == WHOLE)
    return sorted(set(found))


_ANYWHERE = Item(ALL, certain=False, unbounded=True, wide=True)


def _in_run(run: Run, must_end: bool) -> Iterator[str]:
    for j, second in enumerate(run):
        can_fail = must_end or any(item.certain or item.end for item in run[j + 1 :])
        if not second.unbounded or not can_fail:
            continue
        if not second.possessive and (_nested(second) or second.forked):
            yield "nested repeats"
        for i in range(j):
            first = run[i]
            if not first.unbounded or first.possessive or not _run_together(first, run[i + 1 : j], second):
                continue
            if first is _ANYWHERE and not second.wide:
                continue
            yield "unanchored repeat" if first is _ANYWHERE else "adjacent repeats"


def _run_together(first: Item, between: Run, second: Item) -> bool:
    shared = first.characters & second.characters
    if any(second.characters <= item.not_after for item in between if item.not_after):
        return False
    return bool(shared) and all(item.characters & shared for item in between if item.certain)


def _nested(outer: Item) -> bool:
    for run in outer.body:
        for inner in run:
            others = [item for item in run if item is not inner and item.certain]
            if inner.unbounded and not inner.possessive and all(item.characters & inner.characters for item in others):
                return True
    return False


# -- the parse tree ----------------------------------------------------------------------------------------------------


def _runs(tree: Any, flags: int) -> list[Run]:
    """Every way through the pattern, alternatives and optional parts written out (the first few hundred)."""
    runs: list[Run] = [()]
    for code, argument in tree:
        steps = _steps(code, argument, flags)
        runs = [run + step for run in runs for step in steps][:500]
    return runs


def _steps(code: Any, argument: Any, flags: int) -> list[Run]:
    if code is op.SUBPATTERN:
        _, add, remove, inner = argument
        return _runs(inner, (flags | add) & ~remove)
    if code is op.ATOMIC_GROUP:
        return [(_repeat(1, 1, _runs(argument, flags), True),)]
    if code is op.BRANCH:
        return [run for part in argument[1] for run in _runs(part, flags)]
    if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        return _repeated(*argument, flags, possessive=code is op.POSSESSIVE_REPEAT)
    if code is op.AT:
        return [(_place(argument, flags),)]
    if code in (op.ASSERT, op.ASSERT_NOT):
        return [_around(code, argument, flags)]
    if code is op.GROUPREF:
        return [(Item(ALL, certain=False),)]
    if code is op.GROUPREF_EXISTS:
        return [run for part in argument[1:] if part is not None for run in _runs(part, flags)]
    return [(Item(_characters(code, argument, flags)),)]


def _repeated(low: int, high: int, inner: Any, flags: int, *, possessive: bool) -> list[Run]:
    body = _runs(inner, flags)
    if high == 1:
        return body if low else [(), *body]
    forked = any(_forked(code, argument, flags) for code, argument in inner)
    item = _repeat(low, high, body, possessive)
    return [(replace(item, forked=forked and item.unbounded),)]


def _repeat(low: int, high: int, body: list[Run], possessive: bool) -> Item:
    union = frozenset().union(*(item.characters for run in body for item in run))
    certain = low > 0 and all(any(item.certain for item in run) for run in body)
    inner = any(item.unbounded for run in body for item in run)
    many, wide = (int(high) > most or (high == 1 and inner) for most in (MANY, WIDE))
    return Item(union, certain, many, wide, possessive, tuple(body))


def _forked(code: Any, argument: Any, flags: int) -> bool:
    if code is op.SUBPATTERN:
        return any(_forked(*inner, flags) for inner in argument[3])
    return code is op.BRANCH and _alike(argument[1], flags)


def _alike(parts: Any, flags: int) -> bool:
    firsts: list[Characters] = []
    for part in parts:
        first: Characters = frozenset()
        for run in _runs(part, flags):
            for item in run:
                first |= item.characters
                if item.certain:
                    break
        if any(first & other for other in firsts):
            return True
        firsts.append(first)
    return False


def _place(where: Any, flags: int) -> Item:
    if where is op.AT_BEGINNING_STRING or (where is op.AT_BEGINNING and not flags & re.MULTILINE):
        return Item(frozenset(), certain=False, start=True)
    if where is op.AT_BEGINNING:
        return Item(frozenset({10}))
    if where is op.AT_BOUNDARY:
        return Item(frozenset(), certain=False, end=True, not_after=_category("CATEGORY_WORD"))
    return Item(frozenset(), certain=False, end=True)


def _around(code: Any, argument: Any, flags: int) -> Run:
    direction, inner = argument
    runs = _runs(inner, flags)
    if direction > 0:
        return (Item(frozenset(), certain=False, end=True),)
    last = frozenset().union(*(run[-1].characters for run in runs if run))
    if code is op.ASSERT:
        return (Item(last),)
    single = all(len(run) == 1 for run in runs)
    return (Item(frozenset(), certain=False, end=True, not_after=last if single else frozenset()),)


def _characters(code: Any, argument: Any, flags: int) -> Characters:
    if code is op.ANY:
        return ALL if flags & re.DOTALL else ALL - {10}
    if code is op.LITERAL:
        return _cased({argument}, flags)
    if code is op.NOT_LITERAL:
        return ALL - _cased({argument}, flags)
    if code is op.IN:
        return _set(argument, flags)
    raise AssertionError(f"an element that this does not know: {code}")


def _set(parts: Any, flags: int) -> Characters:
    found: set[int] = set()
    negated = False
    for code, argument in parts:
        if code is op.NEGATE:
            negated = True
        elif code is op.RANGE:
            found |= {one for one in _SAMPLE if argument[0] <= one <= argument[1]}
        elif code is op.CATEGORY:
            found |= _category(str(argument))
        else:
            found |= {argument}
    cased = _cased(found, flags)
    return ALL - cased if negated else cased


def _category(name: str) -> Characters:
    text = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}[name.rsplit("_", 1)[1]]
    inside = frozenset(one for one in _SAMPLE if re.match(text, chr(one)))
    return ALL - inside if "NOT" in name else inside


def _cased(characters: set[int], flags: int) -> Characters:
    if not flags & re.IGNORECASE:
        return frozenset(characters)
    return frozenset(ord(one) for c in characters for one in (chr(c).lower(), chr(c).upper(), chr(c)) if len(one) == 1)
