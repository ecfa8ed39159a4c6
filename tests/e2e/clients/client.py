"""A client made with the Python SDK: lists tools, makes the calls of a plan, prints what came back as JSON.

Usage: client.py auto|legacy http URL TOKEN | client.py auto|legacy stdio PROGRAM [ARG ...]
The plan is read from stdin: [{"tool": NAME, "arguments": {...}}, ...]
"""

import asyncio
import json
import os
import sys

from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client


async def main() -> None:
    mode, kind, *rest = sys.argv[1:]
    plan = json.load(sys.stdin)
    if kind == "http":
        url, token = rest
        http = create_mcp_http_client(headers={"Authorization": f"Bearer {token}"})
        server = streamable_http_client(url, http_client=http)
    else:
        server = StdioServerParameters(command=rest[0], args=rest[1:], env=dict(os.environ))
    async with Client(server, mode=mode) as client:
        tools, cursor = [], None
        while True:
            page = await client.list_tools(cursor=cursor)
            tools += [tool.name for tool in page.tools]
            cursor = page.next_cursor
            if not cursor:
                break
        answers = []
        for call in plan:
            result = await client.call_tool(call["tool"], call["arguments"])
            text = "\n".join(part.text for part in result.content if part.type == "text")
            answers.append({"tool": call["tool"], "isError": bool(result.is_error), "text": text})
    print(json.dumps({"tools": tools, "answers": answers}))


asyncio.run(main())
