"""The browser as a whole: its tabs and which one is active, dialogs, downloads, and one step of an agent."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from .actions import ACTIONS
from .cdp import CDPError, Connection
from .marks import draw_marks, element_properties
from .observation import observe
from .page import ActionError, Page

SETTLE_S = 0.5
"""After an action scripts get this long before the page is looked at: BrowserGym's own delay."""
DOCUMENT_S = 10.0
DOWNLOAD_S = 60.0


class Browser:
    """Chromium with its tabs in the order of their opening. `downloads` is a directory that is made when needed."""

    def __init__(self, downloads: Path) -> None:
        self._connection = Connection(self._on_event)
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        self._downloads = downloads
        self._pages: list[Page] = []
        self._active: Page | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._files: dict[str, dict[str, Any]] = {}
        self._finished: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.timeout_s = 30.0

    @property
    def closed(self) -> asyncio.Event:
        return self._connection.closed

    async def start(self) -> None:
        """Raises CDPError."""
        await self._connection.start(self._profile)
        self._downloads.mkdir(parents=True, exist_ok=True)
        await self._connection.send(
            "Browser.setDownloadBehavior",
            {"behavior": "allowAndName", "downloadPath": str(self._downloads), "eventsEnabled": True},
        )
        await self._connection.send(
            "Target.setAutoAttach", {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": True}
        )
        end = time.monotonic() + 20
        while self._active is None:
            if time.monotonic() > end:
                raise CDPError("the browser opened no page")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        await self._connection.stop()
        shutil.rmtree(self._profile, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------ events

    def _on_event(self, method: str, params: dict[str, Any], session: str) -> None:
        if method == "Target.attachedToTarget":
            if params["targetInfo"]["type"] == "page":
                self._spawn(self._opened(params["sessionId"], params["targetInfo"]))
            return
        if method == "Target.detachedFromTarget":
            self._closed(params["sessionId"])
            return
        if method == "Browser.downloadWillBegin":
            self._files[params["guid"]] = {"name": params.get("suggestedFilename") or "", "url": params.get("url", "")}
            return
        if method == "Browser.downloadProgress":
            self._progress(params)
            return
        page = next((page for page in self._pages if page.session == session), None)
        if page is None:
            return
        if method == "Page.loadEventFired":
            page.loaded.set()
        elif method == "Page.javascriptDialogOpening":
            # A page may always be left; any other question is answered as if it was closed.
            accept = params.get("type") == "beforeunload"
            self._spawn(self._quietly(page, "Page.handleJavaScriptDialog", accept=accept))
        elif method == "Page.fileChooserOpened" and page.chooser is not None and not page.chooser.done():
            page.chooser.set_result(params)
        elif method == "Input.dragIntercepted" and page.drag is not None and not page.drag.done():
            page.drag.set_result(params["data"])

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _quietly(self, page: Page, method: str, **params: Any) -> None:
        try:
            await page.send(method, **params)
        except CDPError:
            return

    async def _opened(self, session: str, info: dict[str, Any]) -> None:
        page = Page(self._connection, session, info["targetId"], info.get("url", ""))
        self._pages.append(page)
        try:
            await page.prepare()
        except CDPError:
            return
        if page in self._pages:
            self._active = page

    def _closed(self, session: str) -> None:
        self._pages = [page for page in self._pages if page.session != session]
        if self._active is not None and self._active.session == session:
            self._active = self._pages[-1] if self._pages else None

    def _progress(self, params: dict[str, Any]) -> None:
        file = self._files.get(params["guid"])
        if file is None:
            return
        file["state"] = params["state"]
        if params["state"] == "completed":
            path = self._downloads / params["guid"]
            self._finished.append({"path": str(path), "name": file["name"], "url": file["url"]})
        if params["state"] != "inProgress":
            del self._files[params["guid"]]

    # ------------------------------------------------------------------------------------------------ tabs

    @property
    def page(self) -> Page:
        if self._active is None:
            raise ActionError("Error", "there is no open tab")
        return self._active

    async def new_tab(self) -> None:
        made = await self._connection.send("Target.createTarget", {"url": "about:blank"})
        end = time.monotonic() + 10
        while self._active is None or self._active.target != made["targetId"]:
            if time.monotonic() > end:
                raise ActionError("TimeoutError", "the new tab did not open")
            await asyncio.sleep(0.01)

    async def close_tab(self) -> None:
        page = self.page
        if len(self._pages) == 1:
            # The last tab's end would be the browser's: its successor comes first, as the order of tabs is the same.
            await self.new_tab()
        await self._connection.send("Target.closeTarget", {"targetId": page.target})
        end = time.monotonic() + 5
        while page in self._pages and time.monotonic() < end:  # noqa: ASYNC110 (events come from one reader)
            await asyncio.sleep(0.01)
        self._active = self._pages[-1] if self._pages else None

    async def focus_tab(self, index: int) -> None:
        try:
            page = self._pages[index]
        except IndexError:
            raise ActionError("IndexError", "list index out of range") from None
        await page.send("Page.bringToFront")
        self._active = page

    # ------------------------------------------------------------------------------------------------ one step

    async def step(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does the request's actions; returns what is to be seen then. Raises CDPError when the browser is lost."""
        self.timeout_s = float(request["timeout_s"])
        self.messages = []
        self._finished = []
        error = str(request.get("error") or "")
        if not error:
            error = await self._act(request["calls"])
        await asyncio.sleep(SETTLE_S)
        if self._opening:  # a tab that an action opened is the one to be looked at
            await asyncio.wait(set(self._opening), timeout=DOCUMENT_S)
        await self._downloaded()
        seen = await self._observe()
        properties = element_properties(seen["dom_object"])
        return {
            **seen,
            "extra_element_properties": properties,
            "set_of_marks": draw_marks(seen["screenshot"], properties),
            "open_pages_urls": await self._urls(),
            "active_page_index": self._pages.index(self.page),
            "last_action_error": error,
            "messages": self.messages,
            "downloads": self._finished,
        }

    async def _act(self, calls: list[Any]) -> str:
        deadline = time.monotonic() + self.timeout_s
        for name, arguments in calls:
            if time.monotonic() > deadline:
                return f"TimeoutError: the actions took longer than {self.timeout_s:g} seconds"
            try:
                await asyncio.wait_for(ACTIONS[name](self, **arguments), deadline - time.monotonic())
            except ActionError as failed:
                return str(failed)
            except CDPError as failed:
                if self.closed.is_set():
                    raise
                return f"Error: {failed}"
            except TimeoutError:
                return f"TimeoutError: {name} took longer than {self.timeout_s:g} seconds"
        return ""

    async def _downloaded(self) -> None:
        """Waits for downloads under way. What lasts longer goes on, and is reported by a later step."""
        end = time.monotonic() + min(DOWNLOAD_S, self.timeout_s)
        while self._files and time.monotonic() < end:  # noqa: ASYNC110 (events come from one reader)
            await asyncio.sleep(0.05)

    async def _observe(self) -> dict[str, Any]:
        last: Exception | None = None
        for _ in range(4):
            if self._active is None:
                await self.new_tab()
            page = self.page
            try:
                await page.send("Page.bringToFront")
                await page.settle(DOCUMENT_S)
                return await observe(page)
            except (CDPError, KeyError) as error:
                # The page went elsewhere while it was looked at.
                if self.closed.is_set():
                    raise CDPError("the browser has ended") from error
                last = error
                await asyncio.sleep(SETTLE_S)
        raise CDPError(f"the page could not be looked at: {last}")

    async def _urls(self) -> list[str]:
        found = (await self._connection.send("Target.getTargets"))["targetInfos"]
        urls = {info["targetId"]: info["url"] for info in found}
        return [urls.get(page.target, page.url) for page in self._pages]


def keep_download(file: dict[str, Any], folder: Path, number: int) -> str:
    """Copies a download to `folder`/file_N with its own suffix, never over a file that is there; returns the path."""
    suffix = os.path.splitext(os.path.basename(str(file["name"])))[1]
    while True:
        target = folder / f"file_{number}{suffix}"
        try:
            with target.open("xb") as out, open(file["path"], "rb") as source:
                shutil.copyfileobj(source, out)
            return str(target)
        except FileExistsError:
            number += 1


def save_screenshot(png: str, path: str) -> str | None:
    """Writes a screenshot (base64) where the agent finds it; None where that cannot be done."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(base64.b64decode(png))
    except OSError:
        return None
    return path
