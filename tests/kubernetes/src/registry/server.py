"""A tiny MCP server of the legacy era on stdio."""
import json
import sys


def answer(method, params):
    if method == "initialize":
        info = {"name": "told-by-python", "version": "1.0.0"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": [{"name": "tell", "inputSchema": {"type": "object"}}]}
    if method == "tools/call":
        words = ["python tells", params["arguments"]["text"], *sys.argv[1:]]
        return {"content": [{"type": "text", "text": " ".join(words)}]}
    return {} if method == "ping" else None


def main():
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        result = answer(request["method"], request.get("params"))
        rest = {"error": {"code": -32601, "message": "unknown"}} if result is None else {"result": result}
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **rest}), flush=True)
