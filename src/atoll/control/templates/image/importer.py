"""Turns an image of a registry, or an archive of one, into images of ours: one for each of its layers, and one on top.

    sandbox of the template `image-import`
      fetch   skopeo: registry, credentials, digests ──► blobs        (by the team's policy, and registries' networks)
      unpack  each layer into a directory, and one with what a sandbox needs
    node: commit_layers ──► images, each on the one before

A stranger's bytes are read inside that sandbox alone. A layer is known by what lies below it and by its own digest, and
shared by all images of the team that have it. An image is known by its name until a build skips the cache.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from atoll.control.store.layers import ImportedImage, LayerTables
from atoll.control.templates.build_log import BuildLog
from atoll.control.templates.image.answers import MAX_ANSWER, Fetched, ImportRefused, answer_of, fetched, user_of
from atoll.control.templates.image.reference import Reference
from atoll.control.templates.key_locks import KeyLocks
from atoll.control.templates.sandboxes import BuildSandbox, BuildSandboxes, Wanted
from atoll.control.templates.steps import Command
from atoll.control.templates.uploads import read_pieces
from atoll.model.errors import SandboxGone
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import Limits
from atoll.model.seams import NodeClient
from atoll.model.template import Template

TOOLS = "image-import"
"""The built-in template that imports run in."""
DIRECTORY = "layers"
STALL_S = 60.0
"""A registry that sends next to nothing for so long is given up."""
MAX_ENTRIES = 2_000_000
_LEAST = Limits(cpu_count=2, memory_mib=1024)
_INSIDE = Path(__file__).parent / "inside"
_PACKAGE = "atoll.control.templates.image.inside"
_PLACE = "/tmp/import"


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """What is to be imported: an image by its name, or an archive (`name` names it in logs)."""

    node: NodeClient
    team_id: str
    tools: Template
    name: str
    limits: Limits
    reference: Reference | None = None
    archive: Path | None = None
    archive_hash: str = ""
    credentials: Mapping[str, str] | None = field(default=None, repr=False)
    force: bool = False


class ImageImporter:
    """`insecure`: registries that are spoken to without TLS, as HOST:PORT, or HOST for all of its ports."""

    def __init__(self, sandboxes: BuildSandboxes, index: LayerTables, insecure: Collection[str] = ()) -> None:
        self._sandboxes = sandboxes
        self._index = index
        self._insecure = frozenset(insecure)
        self._making = KeyLocks()

    async def known(self, order_key: str, node: NodeClient) -> ImportedImage | None:
        """What was imported under that key, if its image is still there."""
        found = await self._index.find_imported(order_key)
        return found if found is not None and await node.has_image(found.image_id) else None

    async def make(self, order: ImageOrder, log: BuildLog) -> ImportedImage:
        """Raises ImportRefused, and AtollError where the platform is to blame."""
        source = order.reference.source if order.reference is not None else f"archive {order.archive_hash}"
        key = _key("name", order.team_id, source)
        async with self._making.held(key):
            known = None if order.force else await self.known(key, order.node)
            if known is not None:
                log.write(f"CACHED FROM {order.name} (a build that skips the cache fetches it again)")
                return known
            log.write(f"FROM {order.name}")
            found = await self._import(order, log)
            await self._index.put_imported(key, found)
            return found

    async def _import(self, order: ImageOrder, log: BuildLog) -> ImportedImage:
        limits = replace(
            order.limits,
            cpu_count=max(order.limits.cpu_count, _LEAST.cpu_count),
            memory_mib=max(order.limits.memory_mib, _LEAST.memory_mib),
        )
        network = NetworkPolicy(registries=True) if order.reference is not None else NetworkPolicy(allow_internet=False)
        tools = order.tools
        wanted = Wanted(order.node, order.team_id, tools.template_id, tools, limits, network=network)
        async with self._sandboxes.open(wanted) as sandbox:
            image = fetched(await self._fetch(order, sandbox, limits, log))
            log.write(f"image {image.digest[:12]}, {len(image.blobs)} layers")
            if image.command:
                command = " ".join(image.command)[:200]
                log.write(f"the image's own command ({command}) is not started: a template has a start command")
            key = _key("digest", order.team_id, image.digest)
            known = await self.known(key, order.node)
            if known is not None:
                log.write("an image of the same digest is here already")
                return known
            user = user_of(await self._unpack(sandbox, image, limits, log))
            image_id = await self._keep(order, sandbox, image, log)
        workdir = image.workdir if image.workdir.startswith("/") and image.workdir != "/" else None
        found = ImportedImage(image_id, image.env, user, workdir)
        await self._index.put_imported(key, found)
        return found

    async def _fetch(self, order: ImageOrder, sandbox: BuildSandbox, limits: Limits, log: BuildLog) -> dict[str, Any]:
        given: dict[str, Any] = {
            "into": f"{_PLACE}/fetched",
            "max_bytes": limits.disk_mib << 20,
            "stall_s": STALL_S,
        }
        if order.reference is not None:
            given |= {
                "source": order.reference.source,
                "registry": order.reference.registry,
                "insecure": not self._insecure.isdisjoint({order.reference.registry, order.reference.host}),
                "credentials": dict(order.credentials) if order.credentials else None,
            }
        else:
            assert order.archive is not None
            inside = f"{_PLACE}/archive"
            await sandbox.guest.store(inside, read_pieces(order.archive), order.archive.stat().st_size)
            given["source"] = f"archive:{inside}"
        return await self._program("fetch", given, sandbox, log)

    async def _unpack(self, sandbox: BuildSandbox, image: Fetched, limits: Limits, log: BuildLog) -> dict[str, Any]:
        order = {
            "blobs": image.blobs,
            "diff_ids": image.diff_ids,
            "from": f"{_PLACE}/fetched",
            "into": f"/{DIRECTORY}",
            "user": image.user,
            "limits": {"bytes": limits.disk_mib << 20, "entries": MAX_ENTRIES},
        }
        return await self._program("unpack", order, sandbox, log)

    async def _keep(self, order: ImageOrder, sandbox: BuildSandbox, image: Fetched, log: BuildLog) -> str:
        """The images of its layers, those that are here already taken as they are; the id of the topmost one."""
        key, below, first = _key("layers", order.team_id), None, 0
        keys = [key := _key(key, diff_id) for diff_id in image.diff_ids]
        for key in keys:
            known = await self._index.find_layer(key)
            if known is None or not await order.node.has_image(known):
                break
            below, first = known, first + 1
        if first:
            log.write(f"{first} of {len(keys)} layers are here already")
        made = [secrets.token_hex(20) for _ in range(len(keys) + 1 - first)]
        await order.node.commit_layers(sandbox.sandbox_id, DIRECTORY, first, below, made)
        for key, image_id in zip(keys[first:], made, strict=False):
            await self._index.put_layer(key, image_id)
        return made[-1]

    async def _program(
        self, name: str, order: Mapping[str, Any], sandbox: BuildSandbox, log: BuildLog
    ) -> dict[str, Any]:
        guest, files = sandbox.guest, {**_programs(), f"{_PLACE}/{name}.json": json.dumps(order).encode()}
        for path, content in files.items():
            await guest.store(path, _once(content), len(content))
        argv = ("/usr/bin/python3", "-s", "-B", "-m", f"{_PACKAGE}.{name}", f"{_PLACE}/{name}.json")
        output, lines = bytearray(), log.output()

        def take(data: bytes, is_error: bool) -> None:
            if is_error:
                lines.take(data, False)
            elif len(output) < 2 * MAX_ANSWER:
                output.extend(data)

        try:
            await guest.run(Command(argv, "root", "/", {"PYTHONPATH": _PLACE}), take)
        except SandboxGone as error:
            raise ImportRefused("bad", f"its sandbox ended: out of memory? {error}") from error
        finally:
            lines.end()
        return answer_of(bytes(output))


@cache
def _programs() -> Mapping[str, bytes]:
    """By their path inside."""
    folder = f"{_PLACE}/{_PACKAGE.replace('.', '/')}"
    return {f"{folder}/{path.name}": path.read_bytes() for path in sorted(_INSIDE.glob("*.py"))}


@cache
def _revision() -> str:
    """Of the programs: an image that others have unpacked is another one."""
    return hashlib.sha256(b"\0".join(_programs().values())).hexdigest()


def _key(*parts: str) -> str:
    """Of one team only, see `steps.layer_key`."""
    return hashlib.sha256(json.dumps([_revision(), *parts]).encode()).hexdigest()[:40]


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
