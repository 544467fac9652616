"""Which templates there are for a team: the built-in ones, as the nodes list them, and those that teams have built.

The nodes' answers are kept for a moment, so that a create of a built-in template asks nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from atoll.control.nodes.registry import NodeRegistry
from atoll.control.store.keys import KeyTables
from atoll.control.store.templates import BuildRow, TemplateRow, TemplateTables
from atoll.control.templates.names import DEFAULT_TAG, RESERVED, Reference, parse_reference, slug
from atoll.model.errors import Forbidden, InvalidRequest, NodeUnreachable, TemplateNotFound
from atoll.model.sandbox import SandboxRecord
from atoll.model.seams import NodeClient
from atoll.model.template import Template

_FRESH_S = 2.0
_ANSWER_WITHIN_S = 10.0

_DEFAULT_SUFFIX = f":{DEFAULT_TAG}"


@dataclass(frozen=True, slots=True)
class _Listing:
    taken_at: float
    by_name: Mapping[str, Template] = field(default_factory=dict)
    holders: Mapping[str, frozenset[str]] = field(default_factory=dict)


class TemplateService:
    """Look-ups by id or name."""

    def __init__(self, nodes: NodeRegistry, tables: TemplateTables, teams: KeyTables) -> None:
        self._nodes = nodes
        self._teams = teams
        self._tables = tables
        self._of_node: dict[str, Sequence[Template]] = {}
        self._listing = _Listing(taken_at=float("-inf"))

    async def built_in(self) -> list[Template]:
        """By id, each once."""
        listing = await self._fresh()
        return sorted({one.template_id: one for one in listing.by_name.values()}.values(), key=lambda t: t.template_id)

    async def find(self, name: str, team_id: str) -> Template:
        """For that team: a built-in one, one of its own, or a public one of another team, by id or name, with a tag.

        Raises TemplateNotFound naming those that exist.
        """
        plain = name.removesuffix(_DEFAULT_SUFFIX)
        found = (await self._fresh()).by_name.get(plain)
        if found is None:
            found = await self._find_built(name, team_id)
        if found is None:
            # It may have been built a moment ago.
            self._listing = await self._ask()
            found = self._listing.by_name.get(plain)
        if found is None:
            raise TemplateNotFound(name[:200], tuple(sorted({t.template_id for t in self._listing.by_name.values()})))
        return found

    async def find_row(self, name: str, team_id: str) -> TemplateRow | None:
        """The team's own template, or a public one of another team's. Raises InvalidRequest: not a template's name."""
        reference = parse_reference(name)
        owner = team_id if reference.namespace is None else await self.team_of(reference.namespace, team_id)
        row = await self._tables.find_named(owner, reference.name)
        if row is None and reference.namespace is None:
            row = await self._tables.find(reference.name)
        return row if row is not None and (row.public or row.team_id == team_id) else None

    async def own_reference(self, text: str, team_id: str) -> Reference:
        """What a team may call something of its own. Raises InvalidRequest, Forbidden (another team's name)."""
        reference = parse_reference(text)
        if reference.namespace and await self.team_of(reference.namespace, team_id) != team_id:
            raise Forbidden(f"the namespace {reference.namespace!r} is not this team's", hint=f"yours: {team_id}")
        if reference.name in RESERVED or any(reference.name in one.names for one in await self.built_in()):
            raise InvalidRequest(
                f"the name {reference.name!r} is that of a built-in template", hint="choose another name"
            )
        return reference

    async def namespace(self, team_id: str) -> str:
        """What stands before a team's names: its slug."""
        return slug(await self._teams.team_name(team_id) or team_id)

    async def team_of(self, namespace: str, asking: str) -> str:
        """The team of that slug or id: the one that asks, else the oldest; "" if there is none."""
        if namespace in (asking, await self.namespace(asking)):
            return asking
        teams = await self._teams.teams()
        return next((team.team_id for team in teams if namespace in (team.team_id, slug(team.name))), "")

    async def _find_built(self, name: str, team_id: str) -> Template | None:
        try:
            row, reference = await self.find_row(name, team_id), parse_reference(name)
        except InvalidRequest:
            return None
        if row is None:
            return None
        for tag in await self._tables.tags(row.template_id):
            if tag.tag == reference.tag_or_default and (build := await self._tables.find_build(tag.build_id)):
                return template_of(row, build, await self.namespace(row.team_id))
        raise TemplateNotFound(
            name[:200], hint=f"no finished build of it has the tag {reference.tag_or_default!r}; see Template.get_tags"
        )

    async def prepare(self, name: str, wait_s: float) -> None:
        """Has a built-in template that is missing made. One that nobody can make is left for `find` to miss.

        Raises TemplateNotReady when that takes longer than `wait_s`, BuildFailed.
        """
        plain = name.removesuffix(_DEFAULT_SUFFIX)
        if plain in (await self._fresh()).by_name:
            return
        for node in self._nodes.worth_asking().values():
            with contextlib.suppress(TemplateNotFound):
                await node.make_template(plain, wait_s)
                return

    async def build_of(self, template_id: str) -> str:
        """The id of its build; "" if it is not there any more."""
        found = (await self._fresh()).by_name.get(template_id)
        if found is not None:
            return found.build_id
        tags = await self._tables.tags(template_id)
        return next((tag.build_id for tag in tags if tag.tag == DEFAULT_TAG), "")

    def holders(self, template: Template) -> frozenset[str]:
        """The nodes that have it, as of the last look."""
        if template.node_id:
            return frozenset({template.node_id})
        return self._listing.holders.get(template.template_id, frozenset())

    async def newest_shared(self, record: SandboxRecord) -> Template | None:
        """The newest snapshot of a sandbox that any node can get, as a template; None: there is none."""
        found: list[tuple[datetime, Template]] = []
        for row in await self._tables.of_team(record.team_id):
            for tag in await self._tables.tags(row.template_id) if row.sandbox_id == record.sandbox_id else ():
                build = await self._tables.find_build(tag.build_id)
                if build is not None and build.settings.get("shared"):
                    found.append((build.created_at, template_of(row, build, "")))
        return max(found, key=lambda one: one[0])[1] if found else None

    async def _fresh(self) -> _Listing:
        if asyncio.get_running_loop().time() - self._listing.taken_at > _FRESH_S:
            self._listing = await self._ask()
        return self._listing

    async def _ask_one(self, node_id: str, node: NodeClient) -> NodeUnreachable | None:
        """Its last answer counts where it does not answer now."""
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


def template_of(row: TemplateRow, build: BuildRow, namespace: str) -> Template:
    """A build that is ready, as a template of which sandboxes can be made."""
    settings = build.settings
    return Template(
        template_id=row.template_id,
        names=(row.name, f"{namespace}/{row.name}"),
        build_id=build.build_id,
        layers=(),
        limits=build.limits,
        created_at=row.created_at,
        env_vars=settings.get("env", {}),
        default_user=settings.get("user", "user"),
        default_workdir=settings.get("workdir"),
        start_cmd=settings.get("start_cmd"),
        ready_cmd=settings.get("ready_cmd"),
        interpreter=bool(settings.get("interpreter")),
        image_id=build.images[-1] if build.images else None,
        node_id=build.node_id or "",
        shared=bool(settings.get("shared")),
        public=row.public,
        tier=settings.get("tier"),
        gpu=settings.get("gpu"),
        no_new_privileges=bool(settings.get("no_new_privileges")),
    )
