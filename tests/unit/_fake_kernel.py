"""A small Jupyter kernel for tests of the guest: speaks real ZMTP over TCP, does what the cell's first word says.

Run as `python _fake_kernel.py CONNECTION_FILE`. Not a mock of our code: the far side of the wire, with the faults
that a real kernel shows only on a bad day.

    echo TEXT · value TEXT · wait (until interrupted) · stubborn N (ignores N interrupts) · die · pid
    noise TEXT (garbage first) · no-idle TEXT (the end on iopub is lost) · flood N (N kilobytes)
    late TEXT (after half a second) · cut (closes its connections)
    afterwards TEXT (a value that is published after the end) · unparsed (an error that only the reply tells)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
from typing import Any

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def frame(flags: int, body: bytes) -> bytes:
    return struct.pack(">BQ", flags | 2, len(body)) + body


def message(frames: list[bytes]) -> bytes:
    return b"".join(frame(1 if i < len(frames) - 1 else 0, body) for i, body in enumerate(frames))


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    flags = (await reader.readexactly(1))[0]
    size = struct.unpack(">Q", await reader.readexactly(8))[0] if flags & 2 else (await reader.readexactly(1))[0]
    return flags, await reader.readexactly(size)


class Kernel:
    def __init__(self) -> None:
        self.listeners: list[asyncio.StreamWriter] = []
        self.count = 0
        self.interrupted = asyncio.Event()
        self.cells: asyncio.Queue[tuple[Any, asyncio.StreamWriter]] = asyncio.Queue()

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: bytes) -> None:
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        writer.write(GREETING + bytes([4, len(ready)]) + ready)
        await reader.readexactly(64)
        await read_frame(reader)

    async def iopub(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.greet(reader, writer, b"XPUB")
        await read_frame(reader)
        self.listeners.append(writer)

    async def shell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.greet(reader, writer, b"ROUTER")
        while True:
            frames, flags = [], 1
            while flags & 1:
                flags, body = await read_frame(reader)
                frames.append(body)
            self.cells.put_nowait(([json.loads(frames[2]), json.loads(frames[5])], writer))

    def publish(self, parent: Any, kind: str, content: Any) -> None:
        parts = [
            json.dumps({"msg_type": kind}).encode(),
            json.dumps(parent).encode(),
            b"{}",
            json.dumps(content).encode(),
        ]
        self.send_all(message([b"topic", b"<IDS|MSG>", b"sig", *parts]))

    def send_all(self, data: bytes) -> None:
        for writer in self.listeners:
            writer.write(data)

    async def serve(self) -> None:
        while True:
            (header, content), writer = await self.cells.get()
            self.publish(header, "status", {"execution_state": "busy"})
            idle = True
            if header["msg_type"] == "execute_request":
                idle = await self.cell(header, content)
                writer.write(self.reply(header, content["code"]))
            if idle:
                self.publish(header, "status", {"execution_state": "idle"})
            if content.get("code", "").startswith("afterwards "):
                await asyncio.sleep(0.005)
                value = content["code"].removeprefix("afterwards ")
                self.publish(header, "execute_result", {"data": {"text/plain": value}, "metadata": {}})

    def reply(self, header: Any, code: str) -> bytes:
        failed = {"status": "error", "ename": "Error", "evalue": "Execution failed", "traceback": []}
        outcome = failed if code == "unparsed" else {"status": "ok"}
        parts = [json.dumps(part).encode() for part in ({"msg_type": "execute_reply"}, header, {}, outcome)]
        return message([b"<IDS|MSG>", b"sig", *parts])

    async def cell(self, parent: Any, content: Any) -> bool:
        if content["silent"]:
            return True
        self.count += 1
        self.interrupted.clear()
        self.publish(parent, "execute_input", {"execution_count": self.count, "code": content["code"]})
        word, _, text = content["code"].partition(" ")
        match word:
            case "value":
                self.publish(parent, "execute_result", {"data": {"text/plain": text}, "metadata": {}})
            case "wait" | "stubborn":
                self.publish(parent, "stream", {"name": "stdout", "text": "waiting"})
                for _ in range(int(text or 0) + 1):
                    await self.interrupted.wait()
                    self.interrupted.clear()
                error = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["line 1", "line 2"]}
                self.publish(parent, "error", error)
            case "die":
                os._exit(3)
            case "cut":
                for writer in self.listeners:
                    writer.transport.abort()
                await asyncio.sleep(60)
            case "noise":
                self.send_all(message([b"not", b"a", b"message"]))
                self.send_all(message([b"<IDS|MSG>", b"s", b"{", b"[]", b"\xff", b"7"]))
                self.publish(parent, "stream", {"name": "stdout", "text": text})
            case "late":
                await asyncio.sleep(0.5)
                self.publish(parent, "stream", {"name": "stdout", "text": text})
            case "flood":
                for _ in range(int(text)):
                    self.publish(parent, "stream", {"name": "stdout", "text": "x" * 1024})
            case "afterwards" | "unparsed":
                pass
            case "pid":
                self.publish(parent, "stream", {"name": "stdout", "text": str(os.getpid())})
            case _:
                self.publish(parent, "stream", {"name": "stdout", "text": text})
        return word != "no-idle"


async def main() -> None:
    with open(sys.argv[1]) as file:
        ports = json.load(file)
    kernel = Kernel()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, kernel.interrupted.set)
    await asyncio.start_server(kernel.shell, "127.0.0.1", ports["shell_port"])
    await asyncio.start_server(kernel.iopub, "127.0.0.1", ports["iopub_port"])
    await kernel.serve()


asyncio.run(main())
