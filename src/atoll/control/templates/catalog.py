"""Which templates exist and on which nodes, as the nodes tell it. Kept for a moment, so that a create asks nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from atoll.control.nodes.registry import NodeRegistry
from atoll.model.errors import NodeUnreachable, TemplateNotFound
from atoll.model.seams import NodeClient
from atoll.model.template import Template

_FRESH_S = 2.0
_ANSWER_WITHIN_S = 10.0

DEFAULT_TAG = ":default"
"""E2B's name for the build that a name without a tag means."""


@dataclass(frozen=True, slots=True)
class _Listing:
    taken_at: float
    by_name: Mapping[str, Template] = field(default_factory=dict)
    holders: Mapping[str, frozenset[str]] = field(default_factory=dict)


class TemplateService:
    """Look-ups by id or name."""

    def __init__(self, nodes: NodeRegistry) -> None:
        self._nodes = nodes
        self._of_node: dict[str, Sequence[Template]] = {}
        self._listing = _Listing(taken_at=float("-inf"))

    async def all(self) -> list[Template]:
        """By id, each once."""
        listing = await self._fresh()
        return sorted({one.template_id: one for one in listing.by_name.values()}.values(), key=lambda t: t.template_id)

    async def find(self, name: str) -> Template:
        """By id, or by a name with or without the default tag. Raises TemplateNotFound naming those that exist."""
        plain = name.removesuffix(DEFAULT_TAG)
        found = (await self._fresh()).by_name.get(plain)
        if found is None:
            # It may have been built a moment ago.
            self._listing = await self._ask()
            found = self._listing.by_name.get(plain)
        if found is None:
            raise TemplateNotFound(name[:200], tuple(sorted({t.template_id for t in self._listing.by_name.values()})))
        return found

    async def prepare(self, name: str, wait_s: float) -> None:
        """Has a built-in template that is missing made. One that nobody can make is left for `find` to miss.

        Raises TemplateNotReady when that takes longer than `wait_s`, BuildFailed.
        """
        plain = name.removesuffix(DEFAULT_TAG)
        if plain in (await self._fresh()).by_name:
            return
        for node in self._nodes.worth_asking().values():
            with contextlib.suppress(TemplateNotFound):
                await node.make_template(plain, wait_s)
                return

    async def build_of(self, template_id: str) -> str:
        """The id of its build; "" if it is not there any more."""
        found = (await self._fresh()).by_name.get(template_id)
        return found.build_id if found is not None else ""

    def holders(self, template_id: str) -> frozenset[str]:
        """The nodes that have it, as of the last look."""
        return self._listing.holders.get(template_id, frozenset())

    async def _fresh(self) -> _Listing:
        if asyncio.get_running_loop().time() - self._listing.taken_at > _FRESH_S:
            self._listing = await self._ask()
        return self._listing

    async def _ask_one(self, node_id: str, node: NodeClient) -> NodeUnreachable | None:
        """What it said last counts where it does not answer now."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                self._of_node[node_id] = await node.templates()
        except TimeoutError:
            return NodeUnreachable(f"node {node_id!r} does not answer")
        except NodeUnreachable as error:
            return error
        return None

    async def _ask(self) -> _Listing:
        by_name: dict[str, Template] = {}
        by_id: dict[str, Template] = {}
        holders: dict[str, set[str]] = {}
        asked = self._nodes.worth_asking()
        failures = await asyncio.gather(*(self._ask_one(*one) for one in asked.items()))
        known = {node_id: found for node_id, found in self._of_node.items() if self._nodes.find(node_id) is not None}
        self._of_node = known
        if not known:
            raise next((one for one in failures if one is not None), NodeUnreachable("no node has registered"))
        for node_id, found in known.items():
            for template in found:
                holders.setdefault(template.template_id, set()).add(node_id)
                by_id.setdefault(template.template_id, template)
                for name in template.names:
                    by_name.setdefault(name, template)
        kept = {template_id: frozenset(node_ids) for template_id, node_ids in holders.items()}
        return _Listing(asyncio.get_running_loop().time(), by_name | by_id, kept)
