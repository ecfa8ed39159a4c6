"""A client made with an old Python SDK (1.x), used as `client.py` is.

Usage: client_1x.py http URL TOKEN | client_1x.py stdio PROGRAM [ARG ...]
"""

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client


async def main() -> None:
    kind, *rest = sys.argv[1:]
    plan = json.load(sys.stdin)
    async with AsyncExitStack() as stack:
        if kind == "http":
            url, token = rest
            door = streamablehttp_client(url, headers={"Authorization": f"Bearer {token}"})
            read, write, _ = await stack.enter_async_context(door)
        else:
            server = StdioServerParameters(command=rest[0], args=rest[1:], env=dict(os.environ))
            read, write = await stack.enter_async_context(stdio_client(server))
        session = await stack.enter_async_context(ClientSession(read, write))
        await session.initialize()
        # This release asks for no second page.
        tools = [tool.name for tool in (await session.list_tools()).tools]
        answers = []
        for call in plan:
            result = await session.call_tool(call["tool"], call["arguments"])
            text = "\n".join(part.text for part in result.content if part.type == "text")
            answers.append({"tool": call["tool"], "isError": bool(result.isError), "text": text})
    print(json.dumps({"tools": tools, "answers": answers}))


asyncio.run(main())
