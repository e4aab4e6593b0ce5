#!/usr/bin/env python3
"""Prints what happens to runs, with nothing but NATS: python3 examples/subscribe.py

Needs nats-py: `make tools` has brought it to .tools/venv, so `.tools/venv/bin/python examples/subscribe.py` works. The
notifier tells each event on as JSON on errand.v1.notify.<tenant>.<object>.<action>; any NATS client can listen.
"""

import argparse
import asyncio
import collections
import json
import os

import nats


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", default="task_run.>", help="task_run.completed, session.>, ...")
    parser.add_argument("--tenant", default=os.environ.get("ERRAND_TENANT", "default"))
    parser.add_argument("--url", default=os.environ.get("ERRAND_NATS_URL", "nats://127.0.0.1:4222"))
    parser.add_argument("--count", type=int, default=0, help="end after so many")
    args = parser.parse_args()

    client = await nats.connect(args.url)
    messages = await client.subscribe(f"errand.v1.notify.{args.tenant}.{args.events}")
    print(f"listening on {messages.subject}", flush=True)
    recent = collections.deque(maxlen=10_000)
    seen = 0
    async for message in messages.messages:
        event = json.loads(message.data)
        # At least once is the promise: the same event has the same id.
        if event["id"] in recent:
            continue
        recent.append(event["id"])
        data = event["data"]
        errors = ", ".join(f"{error['type']}/{error['code']}: {error['message']}" for error in data.get("errors", []))
        order = data.get("metadata", {}).get("order", "")
        print(event["created_at"], event["type"], data["id"], event["seq"], order, errors, flush=True)
        seen += 1
        if seen == args.count:
            break
    await client.drain()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
