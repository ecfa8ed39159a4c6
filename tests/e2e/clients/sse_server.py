"""A server made with an old or a new Python SDK that speaks HTTP+SSE of 2024-11-05 on a port of 127.0.0.1."""

import sys

port = int(sys.argv[1])
try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Context

    server = MCPServer("sse-server")
    where = {"host": "127.0.0.1", "port": port}
except ImportError:
    from mcp.server.fastmcp import Context, FastMCP

    server = FastMCP("sse-server", host="127.0.0.1", port=port)
    where = {}


@server.tool()
def say(text: str) -> str:
    """Says it again."""
    return f"said: {text}"


@server.tool()
async def count(context: Context, to: int) -> str:
    """Reports progress before it answers."""
    for step in range(to):
        await context.report_progress(step, to)
    return f"counted to {to}"


server.run("sse", **where)
