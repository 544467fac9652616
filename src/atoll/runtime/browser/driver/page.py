"""One tab: finding elements, mouse and keyboard, navigation. What is seen of it is `observation.py`'s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import scripts
from .cdp import CDPError, Connection
from .keys import KEYS, MODIFIERS, split_combination

ACT_S = 0.5
"""How long an element may take to become ready for an action: BrowserGym's limit."""
VIEWPORT = (1280, 720)


class ActionError(Exception):
    """An action could not be done. `kind` is the exception's name that agents know from BrowserGym."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")


@dataclass(frozen=True)
class Point:
    x: float
    y: float


@dataclass
class Page:
    """A tab. `bids` are the elements of its last observation: identifier → Chromium's number of the node."""

    connection: Connection
    session: str
    target: str
    url: str = "about:blank"
    bids: dict[str, int] = field(default_factory=dict)
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    chooser: asyncio.Future[dict[str, Any]] | None = None
    drag: asyncio.Future[dict[str, Any]] | None = None
    _dragged: dict[str, Any] | None = None
    _mouse: Point = Point(0, 0)
    _buttons: str = "none"
    _modifiers: int = 0

    async def send(self, method: str, timeout_s: float = 30.0, **params: Any) -> dict[str, Any]:
        return await self.connection.send(method, params, self.session, timeout_s)

    async def prepare(self) -> None:
        """What a new tab needs before anything is done in it."""
        width, height = VIEWPORT
        for domain in ("Page", "DOM", "Runtime"):
            await self.send(f"{domain}.enable")
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        await self.send("Input.setInterceptDrags", enabled=True)

    # ------------------------------------------------------------------------------------------------ navigation

    async def goto(self, url: str, timeout_s: float) -> None:
        self.loaded.clear()
        answer = await self.send("Page.navigate", timeout_s, url=url)
        if failed := answer.get("errorText"):
            note = f'Call log:\n  - navigating to "{url}", waiting until "load"\n'
            raise ActionError("Error", f"Page.goto: {failed} at {url}\n{note}")
        if answer.get("loaderId"):
            await self._loaded(timeout_s, "Page.goto")

    async def history(self, step: int, timeout_s: float) -> None:
        """Does nothing at the end of the history, as BrowserGym."""
        found = await self.send("Page.getNavigationHistory")
        index = found["currentIndex"] + step
        if not 0 <= index < len(found["entries"]):
            return
        await self.send("Page.navigateToHistoryEntry", entryId=found["entries"][index]["id"])
        # A page kept alive in the history does not load again: what counts is where the history stands.
        end = time.monotonic() + min(timeout_s, 30.0)
        while time.monotonic() < end:
            if (await self.send("Page.getNavigationHistory"))["currentIndex"] == index:
                return
            await asyncio.sleep(0.05)

    async def _loaded(self, timeout_s: float, what: str) -> None:
        try:
            await asyncio.wait_for(self.loaded.wait(), timeout_s)
        except TimeoutError:
            raise ActionError("TimeoutError", f"{what}: Timeout {timeout_s * 1000:g}ms exceeded.") from None

    async def settle(self, limit_s: float) -> None:
        """Waits until the document is read, at most `limit_s`."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            try:
                found = await self.send("Runtime.evaluate", 5, expression="document.readyState", returnByValue=True)
                if found.get("result", {}).get("value") in ("interactive", "complete"):
                    return
            except CDPError:
                pass  # between two documents
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------------------------------------------ elements

    async def element(self, bid: str) -> str:
        """The object of an element of the last observation. Raises ActionError."""
        node = self.bids.get(bid)
        if node is not None:
            try:
                resolved = await self.send("DOM.resolveNode", backendNodeId=node)
                found = str(resolved["object"]["objectId"])
                if (await self.call(found, scripts.STATE))["connected"]:
                    return found
            except CDPError:
                pass
        raise ActionError("ValueError", f'Could not find element with bid "{bid}"')

    async def call(self, element: str, function: str, *arguments: Any) -> Any:
        """Calls a function of ours with the element as `this`."""
        given = [a if isinstance(a, dict) and "objectId" in a else {"value": a} for a in arguments]
        answer = await self.send(
            "Runtime.callFunctionOn",
            functionDeclaration=function,
            objectId=element,
            arguments=given,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise CDPError(str(answer["exceptionDetails"].get("exception", {}).get("description", "script failed")))
        return answer["result"].get("value")

    async def ready(self, element: str, what: str, *, enabled: bool = True, hit: bool = True) -> Point:
        """Where the element can be acted upon, once it is visible, enabled and on top. Raises ActionError."""
        end = time.monotonic() + ACT_S
        while True:
            problem, point = await self._readiness(element, enabled=enabled, hit=hit)
            if point is not None:
                return point
            if time.monotonic() > end:
                raise timed_out(what, problem)
            await asyncio.sleep(0.05)

    async def _readiness(self, element: str, *, enabled: bool, hit: bool) -> tuple[str, Point | None]:
        state = await self.call(element, scripts.STATE)
        if not state["visible"]:
            return "element is not visible", None
        if enabled and state["disabled"]:
            return "element is not enabled", None
        try:
            await self.send("DOM.scrollIntoViewIfNeeded", objectId=element)
            quads = (await self.send("DOM.getContentQuads", objectId=element))["quads"]
        except CDPError as error:
            return str(error), None
        if not quads:
            return "element is not visible", None
        points = [_middle(quad) for quad in quads]
        point = next((p for p in points if 0 <= p.x < VIEWPORT[0] and 0 <= p.y < VIEWPORT[1]), points[0])
        if not hit:
            return "", point
        try:
            at = await self.send("DOM.getNodeForLocation", x=int(point.x), y=int(point.y))
            other = (await self.send("DOM.resolveNode", backendNodeId=at["backendNodeId"]))["object"]["objectId"]
            in_the_way = await self.call(element, scripts.HIT, {"objectId": other})
        except CDPError:
            return "", point  # an element of another frame's world: the click decides
        return (f"{in_the_way} intercepts pointer events", None) if in_the_way else ("", point)

    # ------------------------------------------------------------------------------------------------ mouse

    async def _mouse_event(self, kind: str, **more: Any) -> None:
        await self.send(
            "Input.dispatchMouseEvent",
            type=kind,
            x=self._mouse.x,
            y=self._mouse.y,
            modifiers=self._modifiers,
            **more,
        )

    async def _drag_event(self, kind: str) -> None:
        await self.send(
            "Input.dispatchDragEvent",
            type=kind,
            x=self._mouse.x,
            y=self._mouse.y,
            data=self._dragged,
            modifiers=self._modifiers,
        )

    async def move(self, to: Point) -> None:
        """With the left button down this may begin or continue a drag."""
        self._mouse = to
        if self._dragged is not None:
            await self._drag_event("dragOver")
            return
        if self._buttons == "left":
            self.drag = asyncio.get_running_loop().create_future()
        await self._mouse_event("mouseMoved", button=self._buttons)
        if self.drag is not None:
            try:
                self._dragged = await asyncio.wait_for(self.drag, 0.15)
                await self._drag_event("dragEnter")
                await self._drag_event("dragOver")
            except TimeoutError:
                pass
            self.drag = None

    async def down(self, button: str = "left", count: int = 1) -> None:
        self._buttons = button
        await self._mouse_event("mousePressed", button=button, clickCount=count)

    async def up(self, button: str = "left", count: int = 1) -> None:
        self._buttons = "none"
        if self._dragged is not None:
            await self._drag_event("drop")
            self._dragged = None
        await self._mouse_event("mouseReleased", button=button, clickCount=count)

    async def click(self, at: Point, button: str = "left", modifiers: Sequence[str] = (), times: int = 1) -> None:
        before = self._modifiers
        for name in modifiers:
            self._modifiers |= MODIFIERS["Control" if name == "ControlOrMeta" else name]
        try:
            await self.move(at)
            for count in range(1, times + 1):
                await self.down(button, count)
                await self.up(button, count)
        finally:
            self._modifiers = before

    async def wheel(self, dx: float, dy: float) -> None:
        await self._mouse_event("mouseWheel", deltaX=dx, deltaY=dy)

    # ------------------------------------------------------------------------------------------------ keyboard

    async def key_down(self, name: str) -> None:
        key = KEYS.get(name)
        if key is None:
            await self.send("Input.insertText", text=name)
            return
        self._modifiers |= key.modifier
        shift = bool(self._modifiers & MODIFIERS["Shift"])
        held = self._modifiers & ~MODIFIERS["Shift"]
        text = "" if held else (key.shifted if shift else key.text)
        shown = key.shifted if shift and key.shifted and len(key.key) == 1 else key.key
        more: dict[str, Any] = {"text": text, "unmodifiedText": text} if text else {}
        await self.send(
            "Input.dispatchKeyEvent",
            type="keyDown" if text else "rawKeyDown",
            key=shown,
            code=key.code,
            windowsVirtualKeyCode=key.number,
            modifiers=self._modifiers,
            **more,
        )

    async def key_up(self, name: str) -> None:
        key = KEYS.get(name)
        if key is None:
            return
        self._modifiers &= ~key.modifier
        await self.send(
            "Input.dispatchKeyEvent",
            type="keyUp",
            key=key.key,
            code=key.code,
            windowsVirtualKeyCode=key.number,
            modifiers=self._modifiers,
        )

    async def press(self, combination: str) -> None:
        try:
            names = split_combination(combination)
        except ValueError as error:
            raise ActionError("Error", f"Keyboard.press: {error}") from None
        for name in names:
            await self.key_down(name)
        for name in reversed(names):
            await self.key_up(name)

    async def insert(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    # ------------------------------------------------------------------------------------------------ files

    async def choose_files(self, click: Callable[[], Awaitable[None]], files: list[str], timeout_s: float) -> None:
        """Clicks and gives `files` to the chooser that opens. Raises ActionError when none does."""
        await self.send("Page.setInterceptFileChooserDialog", enabled=True)
        self.chooser = asyncio.get_running_loop().create_future()
        try:
            await click()
            opened = await asyncio.wait_for(self.chooser, timeout_s)
            if len(files) > 1 and opened.get("mode") != "selectMultiple":
                raise ActionError("Error", "FileChooser.set_files: Non-multiple file input can only accept single file")
            await self.send("DOM.setFileInputFiles", files=files, backendNodeId=opened["backendNodeId"])
        except TimeoutError:
            raise ActionError("TimeoutError", f"Timeout {timeout_s * 1000:g}ms exceeded while waiting for event "
                              '"filechooser"') from None  # fmt: skip
        finally:
            self.chooser = None
            await self.send("Page.setInterceptFileChooserDialog", enabled=False)


def timed_out(what: str, why: str) -> ActionError:
    return ActionError("TimeoutError", f"{what}: Timeout {ACT_S * 1000:g}ms exceeded.\nCall log:\n  - {why}\n")


def _middle(quad: Sequence[float]) -> Point:
    return Point(sum(quad[0::2]) / 4, sum(quad[1::2]) / 4)
