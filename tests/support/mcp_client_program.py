"""Runs in an environment with the official `mcp` package: calls tools of a gateway; what it saw as JSON.

Its argument: JSON with the URL, the headers, and the calls `[tool, arguments]`.
"""

import asyncio
import json
import sys

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client


async def main(given):
    async with (
        httpx2.AsyncClient(headers=given["headers"], timeout=30) as http,
        Client(streamable_http_client(given["url"], http_client=http)) as client,
    ):
        tools = sorted(tool.name for tool in (await client.list_tools()).tools)
        told = []
        for name, arguments in given["calls"]:
            found = await client.call_tool(name, arguments)
            told.append([bool(found.is_error), found.content[0].text])
        print(json.dumps({"tools": tools, "told": told}))


asyncio.run(main(json.loads(sys.argv[1])))
