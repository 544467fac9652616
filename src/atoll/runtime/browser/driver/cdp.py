"""Chromium's DevTools protocol over its pipe: starting the program, requests, events. Owns the process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chromium-headless-shell")
CALL_S = 30.0
START_S = 60.0

OPTIONS = (
    "--headless=new",
    # Chromium's own sandbox needs a user namespace inside the sandbox's, which is denied; it stands in one already.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--disable-popup-blocking",
    "--disable-prompt-on-repost",
    "--disable-hang-monitor",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
    "--password-store=basic",
    "--use-mock-keychain",
    "--mute-audio",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    # All frames of a page in one process: one snapshot and one tree cover them.
    "--disable-site-isolation-trials",
    "--disable-features=IsolateOrigins,site-per-process,Translate,OptimizationHints,MediaRouter,HttpsUpgrades",
    "--window-size=1280,720",
)


class CDPError(Exception):
    """Chromium refused a request, or is gone."""


def find_program() -> str:
    """Raises CDPError where there is no Chromium."""
    for name in PROGRAMS:
        if path := shutil.which(name):
            return path
    raise CDPError(f"no browser is installed: none of {', '.join(PROGRAMS)} is on the PATH")


Listener = Callable[[str, dict[str, Any], str], None]
"""(event, its data, the session that it is of)"""


class Connection:
    """One Chromium. `listener` is called for every event, in order, and must not block."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self._writer: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    async def start(self, profile: Path, extra: Sequence[str] = ()) -> None:
        """Raises CDPError."""
        to_chromium, our_end = os.pipe()
        their_answers, from_chromium = os.pipe()

        def place() -> None:
            # Numbers 3 and 4 are Chromium's. Both are copied out of the way first: one may sit on the other's number.
            ends = os.dup2(to_chromium, 103), os.dup2(from_chromium, 104)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        try:
            self._process = await asyncio.create_subprocess_exec(
                find_program(),
                *OPTIONS,
                f"--user-data-dir={profile}",
                *extra,
                "about:blank",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=(profile / "chromium.log").open("wb"),
                preexec_fn=place,
                close_fds=False,
                start_new_session=True,
            )
        finally:
            os.close(to_chromium)
            os.close(from_chromium)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=2**30)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(their_answers, "rb", 0))
        self._writer, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(our_end, "wb", 0))
        self._reading = asyncio.create_task(self._read(reader))
        try:
            await self.send("Browser.getVersion", timeout_s=START_S)
        except CDPError as error:
            log = (profile / "chromium.log").read_text(errors="replace")[-2000:]
            raise CDPError(f"the browser did not start: {error}\n{log}") from error

    async def send(
        self, method: str, params: dict[str, Any] | None = None, session: str = "", timeout_s: float = CALL_S
    ) -> dict[str, Any]:
        """The answer's `result`. Raises CDPError."""
        if self.closed.is_set() or self._writer is None:
            raise CDPError("the browser has ended")
        self._next += 1
        number = self._next
        message: dict[str, Any] = {"id": number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._writer.write(json.dumps(message).encode() + b"\0")
        try:
            answer = await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise CDPError(f"{method}: no answer within {timeout_s:g} seconds") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise CDPError(f"{method}: {answer['error'].get('message', answer['error'])}")
        result: dict[str, Any] = answer.get("result", {})
        return result

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                raw = await reader.readuntil(b"\0")
                message = json.loads(raw[:-1])
                if "id" in message:
                    waiting = self._waiting.get(message["id"])
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message)
                else:
                    self._listener(message["method"], message.get("params", {}), message.get("sessionId", ""))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.set()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(CDPError("the browser has ended"))

    async def stop(self) -> None:
        """Ends Chromium. Idempotent."""
        if self._process is None or self._process.returncode is not None:
            return
        try:
            await self.send("Browser.close", timeout_s=3)
            await asyncio.wait_for(self._process.wait(), 3)
        except (CDPError, TimeoutError):
            os.killpg(self._process.pid, 9)
            await self._process.wait()
