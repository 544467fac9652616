"""`browse` and `browse_interactive`: a Chromium inside the sandbox, and its observations in OpenHands' words.

Owns bringing the driver (`driver/`) into the sandbox through the public SDK, one request at a time, and the
text that an agent reads. The browser lives as long as the sandbox: a runtime that attaches later finds its tabs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from atoll.runtime.browser.accessibility_tree import tree_text
from atoll.runtime.browser.action_language import BadActions, Call, parse_actions
from atoll.runtime.browser.page_text import page_text
from atoll.runtime.errors import AgentRuntimeError, lost_sandbox_raises
from atoll.runtime.events.actions import BrowseInteractiveAction, BrowseURLAction
from atoll.runtime.events.base import Observation
from atoll.runtime.events.observations import BrowserOutputObservation, ErrorObservation, FileDownloadObservation
from atoll.runtime.sandbox.box import E2BBox

BROWSER_TEMPLATE = "browser"
NO_BROWSER = "Browser functionality is not supported or disabled."
STEP_S = 120.0
"""How long the actions of one observation may take when nobody says otherwise: OpenHands' limit."""
SLACK_S = 90.0
MAX_TREE = 1_000_000

NOBODY_SERVES, DID_NOT_START, BROWSER_ENDED, NO_PYTHON = 5, 3, 4, 127
_COMPLETE = "Accessibility tree of the COMPLETE webpage:"
_VISIBLE = (
    "Accessibility tree of the VISIBLE portion of the webpage (accessibility tree of complete webpage is too large and "
    "you may need to scroll to view remaining portion of the webpage):"
)
_NOTE = (
    "Note: [bid] is the unique alpha-numeric identifier at the beginning of lines for each element in the AXTree. "
    "Always use bid to refer to elements in your actions."
)


class NoBrowser(AgentRuntimeError):
    """The sandbox has no browser, or it does not start."""


@cache
def driver_archive() -> bytes:
    """The driver as a zip that Python runs; the same bytes for the same source."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((Path(__file__).parent / "driver").glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"atoll_browser/{path.name}"), path.read_bytes())
        start = "import sys\nfrom atoll_browser.main import main\nsys.exit(main(sys.argv[1:]))\n"
        archive.writestr(zipfile.ZipInfo("__main__.py"), start)
    return out.getvalue()


class Browser:
    """The browser of one sandbox. Raises AgentRuntimeDisconnectedError when the sandbox is lost."""

    def __init__(self, box: E2BBox, workspace: str) -> None:
        self._box = box
        self._workspace = workspace
        mark = hashlib.sha256(driver_archive()).hexdigest()[:12]
        self._folder = f"/tmp/.atoll-browser-{box.user or 'user'}-{mark}"
        self._shipped = False

    def browse(self, action: BrowseURLAction | BrowseInteractiveAction) -> Observation:
        """What is to be seen after the action. A page that does not answer, an element that is not there: `error`."""
        try:
            text, calls, refused = _requested(action)
            answer = self._step(calls, refused, action.timeout or STEP_S)
        except NoBrowser as error:
            return ErrorObservation(str(error))
        if (failed := answer.get("failed")) is not None:
            return _failure(action, str(failed))
        kept = [file["kept"] for file in answer.get("downloads", ()) if file.get("kept")]
        if kept:
            return FileDownloadObservation(
                f"Execution of the previous action {text} resulted in a file download. "
                f"The downloaded file is saved at location: {kept[-1]}",
                file_path=kept[-1],
            )
        return _observation(action, text, answer)

    def close(self) -> None:
        """Ends the browser if one runs; the sandbox's end does as well."""
        if self._shipped:
            self._run("act", "stop", timeout_s=10)

    # ------------------------------------------------------------------------------------------------ within

    def _step(self, calls: list[Call], refused: str, timeout_s: float) -> dict[str, Any]:
        self._ship()
        name = uuid4().hex
        stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S_%f")
        request = {
            "calls": [[call.name, dict(call.arguments)] for call in calls],
            "error": refused,
            "timeout_s": timeout_s,
            "screenshot_path": f"{self._workspace}/.browser_screenshots/screenshot_{stamp}.png",
        }
        with lost_sandbox_raises():
            self._box.filesystem.write(f"{self._folder}/{name}.request", json.dumps(request), user=self._box.user)
        code, output = self._run("act", name, timeout_s=timeout_s + SLACK_S)
        if code == NOBODY_SERVES:
            self._serve()
            code, output = self._run("act-wait", name, timeout_s=timeout_s + SLACK_S)
        if code == BROWSER_ENDED:
            return {"failed": "the browser ended; the next action starts it anew"}
        if code == -1:
            return {"failed": f"Browser environment took too long to respond ({timeout_s:g} seconds)."}
        if code != 0:
            raise NoBrowser(
                f"{NO_BROWSER} {output.strip()}",
                hint=f"the template {BROWSER_TEMPLATE!r} has a browser",
            )
        path = f"{self._folder}/{name}.answer"
        with lost_sandbox_raises():
            data = bytes(self._box.filesystem.read(path, format="bytes", user=self._box.user))
            self._box.filesystem.remove(path, user=self._box.user)
        found: dict[str, Any] = json.loads(data)
        return found

    def _ship(self) -> None:
        """Puts the driver into the sandbox. Its directory is the user's alone: what lies there is run."""
        if self._shipped:
            return
        folder = shlex.quote(self._folder)
        made = self._box.execute(
            f"umask 077; [ -d {folder} ] || mkdir {folder}; [ -O {folder} ] && [ ! -L {folder} ] && chmod 700 {folder}",
            timeout=30,
        )
        if made.exit_code != 0:
            raise NoBrowser(f"the browser's directory {self._folder} cannot be used: {made.output.strip()}")
        with lost_sandbox_raises():
            self._box.filesystem.write(f"{self._folder}/driver.pyz", driver_archive(), user=self._box.user)
        self._shipped = True

    def _line(self, *words: str) -> str:
        return shlex.join(["python3", f"{self._folder}/driver.pyz", *words])

    def _run(self, program: str, name: str, *, timeout_s: float) -> tuple[int, str]:
        done = self._box.execute(self._line(program, self._folder, name), timeout=timeout_s, cwd="/")
        return done.exit_code, done.output

    def _serve(self) -> None:
        with lost_sandbox_raises():
            self._box.sandbox.commands.run(
                self._line("serve", self._folder, self._workspace),
                background=True,
                user=self._box.user,
                cwd="/",
                timeout=0,
            ).disconnect()


def address(url: str) -> str:
    """What a person would type: a path of the sandbox is a file, a bare name is a web site."""
    url = url.strip()
    if url.startswith("/"):
        return f"file://{url}"
    head = url.partition(":")[0].lower()
    if "://" in url or head in ("about", "data", "javascript", "blob", "view-source"):
        return url
    return f"http://{url}"


def _requested(action: BrowseURLAction | BrowseInteractiveAction) -> tuple[str, list[Call], str]:
    """The action's text, its calls, and why they cannot be done ("" if they can)."""
    if isinstance(action, BrowseURLAction):
        url = address(action.url)
        return f"goto({json.dumps(url)})", [Call("goto", {"url": url})], ""
    try:
        return action.browser_actions, parse_actions(action.browser_actions), ""
    except BadActions as error:
        return action.browser_actions, [], str(error)


def _observation(
    action: BrowseURLAction | BrowseInteractiveAction, text: str, answer: Mapping[str, Any]
) -> BrowserOutputObservation:
    error = str(answer.get("last_action_error") or "")
    seen = _Seen(
        url=str(answer.get("url", "")),
        focused=str(answer.get("focused_element_bid") or ""),
        screenshot_path=answer.get("screenshot_path"),
        error=error,
    )
    tree, properties = answer["axtree_object"], answer["extra_element_properties"]
    if isinstance(action, BrowseURLAction):
        content, visible_only = seen.page(page_text(answer["dom_object"])), False
    else:
        shown = tree_text(tree, properties)
        visible_only = len(shown) > MAX_TREE
        content = seen.interaction(
            tree_text(tree, properties, visible_only=True) if visible_only else shown, visible_only
        )
    return BrowserOutputObservation(
        content,
        url=seen.url,
        trigger_by_action=action.action,
        screenshot=f"data:image/png;base64,{answer['screenshot']}",
        screenshot_path=seen.screenshot_path,
        set_of_marks=f"data:image/png;base64,{answer['set_of_marks']}" if answer.get("set_of_marks") else "",
        error=bool(error),
        open_pages_urls=list(answer.get("open_pages_urls", ())),
        active_page_index=int(answer.get("active_page_index", -1)),
        axtree_object=tree if action.return_axtree else {},
        extra_element_properties=properties if action.return_axtree else {},
        last_browser_action=text,
        last_browser_action_error=error,
        focused_element_bid=seen.focused,
        filter_visible_only=visible_only,
    )


class _Seen:
    """The frame that OpenHands puts around what a page shows."""

    def __init__(self, *, url: str, focused: str = "", screenshot_path: str | None = None, error: str = "") -> None:
        self.url = url
        self.focused = focused
        self.screenshot_path = screenshot_path
        self.error = error

    def _failed(self, when: str) -> str:
        return (
            "================ BEGIN error message ===============\n"
            f"The following error occurred when {when}:\n"
            f"{self.error}\n"
            "================ END error message ===============\n"
        )

    def interaction(self, tree: str, visible_only: bool) -> str:
        text = f"[Current URL: {self.url}]\n[Focused element bid: {self.focused}]\n"
        if self.screenshot_path:
            text += f"[Screenshot saved to: {self.screenshot_path}]\n"
        text += "\n"
        text += self._failed("executing the last action") if self.error else "[Action executed successfully.]\n"
        return text + (
            f"{_VISIBLE if visible_only else _COMPLETE}\n{_NOTE}\n"
            "============== BEGIN accessibility tree ==============\n"
            f"{tree}\n"
            "============== END accessibility tree ==============\n"
        )

    def page(self, content: str) -> str:
        text = f"[Current URL: {self.url}]\n"
        if self.error:
            text += self._failed("trying to visit the URL")
        return text + (
            "============== BEGIN webpage content ==============\n"
            f"{content}"
            "\n============== END webpage content ==============\n"
        )


def _failure(action: BrowseURLAction | BrowseInteractiveAction, error: str) -> BrowserOutputObservation:
    """What OpenHands answers when there is nothing to look at."""
    url = address(action.url) if isinstance(action, BrowseURLAction) else ""
    seen = _Seen(url=url, error=error)
    content = seen.page(error) if isinstance(action, BrowseURLAction) else seen.interaction("", False)
    return BrowserOutputObservation(
        content, url=url, trigger_by_action=action.action, error=True, last_browser_action_error=error
    )


def png_of(data_url: str) -> bytes:
    """The bytes of a screenshot of an observation."""
    return base64.b64decode(data_url.partition(",")[2])
