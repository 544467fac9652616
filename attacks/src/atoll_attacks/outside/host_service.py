"""Services of the host that no sandbox may reach, run as a script; every contact is one JSON line on stdout."""

from __future__ import annotations

import asyncio
import json
import sys

PLACES = (("0.0.0.0", 8099), ("127.0.0.1", 8098), ("::", 8097))


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says what came, answers, and ends the connection."""
    address, port = writer.get_extra_info("sockname")[:2]
    data = await reader.read(4096)
    print(json.dumps({"kind": "host", "address": address, "port": port, "data": data.decode("latin-1")}), flush=True)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\nhost service")
    await writer.drain()
    writer.close()


async def main() -> None:
    """Until standard input ends."""
    for host, port in PLACES:
        await asyncio.start_server(serve, host, port)
    print(json.dumps({"kind": "ready"}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
