"""A tiny MCP server of the legacy era on stdio. Its first argument says what else it does."""
import json
import os
import sys
import time


def say(line):
    print(line, file=sys.stderr, flush=True)


def attempt(what, act):
    try:
        act()
        say(f"{what}: done")
    except (OSError, MemoryError) as error:
        say(f"{what}: {type(error).__name__}")


def stray():
    """A grandchild that leaves its parent, its process group and its session."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in (0, 1, 2):
                os.close(fd)
            time.sleep(600)
        os._exit(0)


mode, arguments = (sys.argv[1] if len(sys.argv) > 1 else "plain"), sys.argv[2:]
if mode == "exit":
    say("fatal: no configuration")
    sys.exit(3)
if mode == "stray":
    stray()
if mode == "say":
    for number in range(int(arguments[0])):
        say(f"line {number}")
if mode == "allocate":
    attempt("allocating", lambda: bytearray(int(arguments[0])))
if mode == "files":
    for path in arguments:
        attempt(f"reading {path}", lambda: os.listdir(path))
        attempt(f"writing {path}", lambda: open(os.path.join(path, "written"), "w").close())
if mode == "environment":
    for name in arguments:
        say(f"{name}={os.environ.get(name)}")

for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    answer = {"jsonrpc": "2.0", "id": request["id"]}
    if request["method"] == "initialize":
        answer["result"] = {
            "protocolVersion": request["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "tiny", "version": "1"},
        }
    elif request["method"] == "tools/list":
        answer["result"] = {"tools": [{"name": "pid", "inputSchema": {"type": "object"}}]}
    elif request["method"] == "ping":
        answer["result"] = {}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
