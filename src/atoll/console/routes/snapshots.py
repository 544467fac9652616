"""Snapshots as a tree: each below the one that its sandbox was made of. An agent's run that branches is such a tree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.console.gate import PREFIX
from atoll.console.view import caller, page, parts, to
from atoll.control.sandboxes.snapshots import SnapshotOrigin

_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of the tree, in the order of reading: whether others stand below it, and how many levels end after it."""

    snapshot: SnapshotOrigin
    has_more: bool
    ends: int


def tree(found: Iterable[SnapshotOrigin]) -> list[Branch]:
    """Oldest first on each level. A loop cannot be: a sandbox is older than a snapshot of it."""
    known = {one.template_id: one for one in found}
    below: dict[str | None, list[SnapshotOrigin]] = defaultdict(list)
    for one in sorted(known.values(), key=lambda each: each.created_at):
        parent = known.get(one.made_of) if one.made_of is not None else None
        # A name that was given again may stand for something older than itself.
        is_below = parent is not None and parent.created_at < one.created_at
        below[one.made_of if is_below else None].append(one)
    lines: list[Branch] = []
    pending: list[tuple[SnapshotOrigin, int]] = _level(below[None], 0)
    while pending:
        one, ends = pending.pop()
        inner = below[one.template_id]
        lines.append(Branch(one, bool(inner), 0 if inner else ends))
        pending += _level(inner, ends + 1)
    return lines


def _level(snapshots: Sequence[SnapshotOrigin], ends: int) -> list[tuple[SnapshotOrigin, int]]:
    """To be popped from the end; the last one of a level ends that level and those around it that end with it."""
    return [(one, ends if place == len(snapshots) - 1 else 0) for place, one in enumerate(snapshots)][::-1]


async def show(request: Request) -> Response:
    """The team's, by what they were made of."""
    found, total = await parts(request).services.snapshots.origins(caller(request), _SHOWN)
    return page(request, "snapshots.html", lines=tree(found), more=total - len(found))


async def remove(request: Request) -> Response:
    """Those below it stay."""
    await parts(request).services.builds.remove(caller(request), request.path_params["template"])
    return to("/snapshots")


ROUTES = [
    Route(f"{PREFIX}/snapshots", show),
    Route(f"{PREFIX}/snapshots/{{template}}/remove", remove, methods=["POST"]),
]
