#!/usr/bin/env python3
"""The smallest useful agent for the exec runner: greets. The protocol: docs/exec-agents.md."""

import json
import sys


def send(type, **fields):
    print(json.dumps({"type": type, **fields}), flush=True)


def fail(message):
    send("error", error={"type": "task", "code": "agent_error", "message": message})
    sys.exit(1)


def main():
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "input":
            name = (message["input"] or {}).get("name")
            if not name:
                fail("the input has no name")
            send("progress", message=f"Greeting {name}", percent=50)
            send("output", output={"greeting": f"Hello, {name}!"})
            return
        if message["type"] == "stop":
            return
        # "start" tells nothing that this agent needs; what it does not know, it passes over.


if __name__ == "__main__":
    main()
