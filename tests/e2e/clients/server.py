"""A server made with the Python SDK, with names that the conformance suite calls: on stdio, or on a port of 127.0.0.1."""

import sys

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("python-sdk-server", version="1.0.0", instructions="A server for tests.")


@server.tool()
def test_simple_text() -> str:
    """Answers with text."""
    return "This is a simple text response for testing."


@server.tool()
async def test_tool_with_progress(context: Context) -> str:
    """Reports progress before it answers."""
    for step in (0, 50, 100):
        await context.report_progress(step, 100)
    return "done"


@server.tool()
def test_error_handling() -> str:
    """Always fails."""
    raise ValueError("This tool intentionally returns an error for testing")


@server.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    """A resource that never changes."""
    return "This is the content of the static text resource."


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    """A resource for each id."""
    return f'{{"id": "{id}", "templateTest": true, "data": "Data for ID: {id}"}}'


@server.prompt()
def test_simple_prompt() -> str:
    """A prompt without arguments."""
    return "This is a simple prompt for testing."


@server.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """A prompt with arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


if sys.argv[1] == "stdio":
    server.run("stdio")
else:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
