"""The driver's two programs: `serve` holds the browser, `act` brings one request to it and leaves the answer in a file.

A request and its answer are JSON files in a directory that only the sandbox's user may enter; between the programs goes
one line each way. `serve` ends with its browser, by a `stop`, or when nobody came for an hour.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from .browser import Browser, keep_download, save_screenshot
from .cdp import CDPError

IDLE_S = 3600.0
CONNECT_S = 60.0


async def _serve(folder: Path, workspace: Path) -> None:
    os.chdir(workspace)
    browser = Browser(workspace / ".downloads")
    done = asyncio.Event()
    turn = asyncio.Lock()
    used = time.monotonic()
    kept = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal used, kept
        name = (await reader.readline()).decode().strip()
        if name == "stop":
            done.set()
        else:
            async with turn:
                used = time.monotonic()
                answer: dict[str, Any]
                try:
                    request = json.loads((folder / f"{name}.request").read_text())
                    answer = await browser.step(request)
                    answer["screenshot_path"] = save_screenshot(answer["screenshot"], request["screenshot_path"])
                    for file in answer["downloads"]:
                        kept += 1
                        file["kept"] = keep_download(file, workspace, kept)
                except CDPError as error:
                    answer = {"failed": str(error)}
                except Exception as error:  # the caller gets the error; the browser goes on
                    answer = {"failed": f"{type(error).__name__}: {error}"}
                (folder / f"{name}.request").unlink(missing_ok=True)
                partial = folder / f"{name}.partial"
                partial.write_text(json.dumps(answer))
                partial.rename(folder / f"{name}.answer")
                used = time.monotonic()
            writer.write(b"done\n")
            await writer.drain()
        writer.close()
        if browser.closed.is_set():
            done.set()

    try:
        await browser.start()
        address = folder / "socket"
        address.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(handle, str(address))
        while not done.is_set() and not browser.closed.is_set():
            try:
                await asyncio.wait_for(done.wait(), 5)
            except TimeoutError:
                if time.monotonic() - used > IDLE_S and not turn.locked():
                    break
        server.close()
        address.unlink(missing_ok=True)
    except CDPError as error:
        (folder / "failed").write_text(str(error))
    finally:
        await browser.stop()


def _act(folder: Path, name: str, wait_s: float) -> int:
    end = time.monotonic() + wait_s
    while True:
        failed = folder / "failed"
        if wait_s and failed.exists():
            print(failed.read_text(), file=sys.stderr)
            return 3
        with socket.socket(socket.AF_UNIX) as line:
            try:
                line.connect(str(folder / "socket"))
            except OSError:
                if not wait_s:
                    return 5
                if time.monotonic() > end:
                    print("the browser did not start in time", file=sys.stderr)
                    return 3
                time.sleep(0.05)
                continue
            line.sendall(f"{name}\n".encode())
            return 0 if line.recv(16) else 4


def main(arguments: list[str]) -> int:
    """`serve FOLDER WORKSPACE`, or `act FOLDER NAME` (`act-wait`: until somebody serves).

    Exit codes of `act`: 3 the browser does not start, 4 it ended meanwhile, 5 nobody serves.
    """
    folder = Path(arguments[1])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if arguments[0] == "serve":
        (folder / "failed").unlink(missing_ok=True)
        (folder / "socket").unlink(missing_ok=True)
        asyncio.run(_serve(folder, Path(arguments[2])))
        return 0
    return _act(folder, arguments[2], CONNECT_S if arguments[0] == "act-wait" else 0)
