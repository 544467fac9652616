"""What is seen of a tab: DOM snapshot, accessibility tree with BrowserGym's identifiers, screenshot, focused element.

Elements get their identifiers by marks in the document, which are there while it is looked at and no longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from . import scripts
from .cdp import CDPError
from .page import Page

PDF_S = 6.0
WORLD = "atoll"


async def observe(page: Page) -> dict[str, Any]:
    """The tab as it is now; `page.bids` are then the elements that were seen."""
    return await _Observer(page).see()


class _Observer:
    def __init__(self, page: Page) -> None:
        self._page = page

    async def see(self) -> dict[str, Any]:
        """Marks the elements, then: DOM snapshot, accessibility tree, screenshot, focused element."""
        frames = (await self._page.send("Page.getFrameTree"))["frameTree"]
        worlds = await self._mark(frames)
        try:
            dom = await self._page.send(
                "DOMSnapshot.captureSnapshot",
                computedStyles=[],
                includeDOMRects=True,
                includePaintOrder=True,
            )
            self._page.bids = dict(_bids(dom))
            tree = await self._tree(frames)
        finally:
            for world in worlds.values():
                await self._evaluate(world, f"({scripts.UNMARK})()")
        shot = await self._picture()
        found = await self._page.send(
            "Runtime.evaluate", expression="[location.href, document.title]", returnByValue=True
        )
        self._page.url, title = found["result"].get("value") or (self._page.url, "")
        return {
            "url": self._page.url,
            "title": title,
            "dom_object": dom,
            "axtree_object": tree,
            "screenshot": shot,
            "focused_element_bid": await self._focused(frames, worlds),
        }

    async def _picture(self) -> str:
        """A screenshot (base64). A PDF is drawn some time after its document is there, and no event says when."""
        shot = str((await self._page.send("Page.captureScreenshot", format="png"))["data"])
        kind = await self._page.send("Runtime.evaluate", expression="document.contentType", returnByValue=True)
        if kind["result"].get("value") != "application/pdf":
            return shot
        first, end = shot, time.monotonic() + PDF_S
        while time.monotonic() < end:
            await asyncio.sleep(0.3)
            before, shot = shot, str((await self._page.send("Page.captureScreenshot", format="png"))["data"])
            if shot == before != first:
                break
        return shot

    async def _mark(self, frames: dict[str, Any]) -> dict[str, int]:
        """Gives every element its identifier; returns the worlds of the frames that could be marked."""
        worlds: dict[str, int] = {}
        for frame in _all_frames(frames):
            prefix = ""
            try:
                if frame["frame"].get("parentId"):
                    owner = await self._page.send("DOM.getFrameOwner", frameId=frame["frame"]["id"])
                    prefix = await self._bid_of(backendNodeId=owner["backendNodeId"])
                    if not prefix:
                        continue
                made = await self._page.send("Page.createIsolatedWorld", frameId=frame["frame"]["id"], worldName=WORLD)
                worlds[frame["frame"]["id"]] = made["executionContextId"]
                await self._evaluate(made["executionContextId"], f"({scripts.MARK})({prefix!r})")
            except CDPError:
                continue  # a frame that went away meanwhile
        return worlds

    async def _evaluate(self, world: int, expression: str) -> dict[str, Any]:
        try:
            return await self._page.send("Runtime.evaluate", expression=expression, contextId=world, awaitPromise=True)
        except CDPError:
            return {}

    async def _bid_of(self, **which: Any) -> str:
        node = (await self._page.send("DOM.describeNode", **which))["node"]
        attributes = node.get("attributes", [])
        return str(dict(zip(attributes[::2], attributes[1::2], strict=False)).get("bid", ""))

    async def _tree(self, frames: dict[str, Any]) -> dict[str, Any]:
        """The accessibility trees of all frames in one, each hung below its frame's element."""
        bid_of = {node: bid for bid, node in self._page.bids.items()}
        nodes: list[dict[str, Any]] = []
        roots: dict[str, str] = {}
        for frame in _all_frames(frames):
            frame_id = frame["frame"]["id"]
            try:
                found = (await self._page.send("Accessibility.getFullAXTree", frameId=frame_id))["nodes"]
            except CDPError:
                continue
            if found:
                roots[frame_id] = found[0]["nodeId"]
                nodes += found
        for node in nodes:
            _clean(node, bid_of)
            if node["role"]["value"] == "Iframe" and "backendDOMNodeId" in node:
                try:
                    owner = await self._page.send("DOM.describeNode", backendNodeId=node["backendDOMNodeId"])
                except CDPError:
                    continue
                if (root := roots.get(owner["node"].get("frameId", ""))) is not None:
                    node["childIds"].append(root)
        return {"nodes": nodes}

    async def _focused(self, frames: dict[str, Any], worlds: dict[str, int]) -> str:
        bid, frame_id = "", frames["frame"]["id"]
        try:
            while frame_id in worlds:
                found = await self._evaluate(worlds[frame_id], f"({scripts.FOCUSED})()")
                element = found.get("result", {}).get("objectId")
                if element is None:
                    break
                bid = await self._bid_of(objectId=element)
                frame_id = (await self._page.send("DOM.describeNode", objectId=element))["node"].get("frameId", "")
        except CDPError:
            return bid
        return bid


def _all_frames(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree.get("childFrames", ()):
        yield from _all_frames(child)


def _bids(dom: dict[str, Any]) -> Iterator[tuple[str, int]]:
    strings = dom["strings"]
    if "bid" not in strings:
        return
    name = strings.index("bid")
    for document in dom["documents"]:
        nodes = document["nodes"]
        for number, attributes in zip(nodes["backendNodeId"], nodes["attributes"], strict=True):
            for at in range(0, len(attributes), 2):
                if attributes[at] == name:
                    yield strings[attributes[at + 1]], number


def _clean(node: dict[str, Any], bid_of: dict[int, str]) -> None:
    """Takes our marks out of a node of the tree and writes its identifier where BrowserGym does."""
    marked = False
    kept = []
    for item in node.get("properties", []):
        if item["name"] == "roledescription":
            marked = True
            item["value"]["value"] = rest = _without_mark(str(item["value"].get("value", "")))
            if not rest:
                continue
        kept.append(item)
    if "properties" in node:
        node["properties"] = kept
    if "description" in node and str(node["description"].get("value", "")).startswith("browsergym_id_"):
        marked = True
        node["description"]["value"] = rest = _without_mark(str(node["description"]["value"]))
        if not rest:
            del node["description"]
    bid = bid_of.get(node.get("backendDOMNodeId", -1))
    if bid is not None and marked:
        node["browsergym_id"] = bid


def _without_mark(text: str) -> str:
    return text.partition(" ")[2] if text.startswith("browsergym_id_") else text
