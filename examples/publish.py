#!/usr/bin/env python3
"""Publishes a run request with nothing but NATS: python3 examples/publish.py hello '{"name": "Ada"}'

Needs nats-py: `make tools` has brought it to .tools/venv, so `.tools/venv/bin/python examples/publish.py ...` works.
What travels is protobuf: the message RunRequest of proto/errand/v1/run.proto. Of protobuf's wire format it needs one
kind of field, which is a few lines here; with generated code it is RunRequest(...).SerializeToString().
"""

import argparse
import asyncio
import json
import os
import uuid

import nats


def varint(number):
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def field(number, value):
    """A string, bytes or an embedded message: wire type 2, length-delimited."""
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def run_request(task, value, metadata):
    """RunRequest: task_id = 2, input = 3 (JSON), metadata = 8 (a map is a repeated message of key = 1, value = 2)."""
    task_id = task if task.startswith("task_") else f"name:{task}"
    encoded = field(2, task_id) + field(3, json.dumps(value))
    for key, text in metadata.items():
        encoded += field(8, field(1, key) + field(2, text))
    return encoded


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="a task's name or id")
    parser.add_argument("input", nargs="?", default="null", type=json.loads, help="JSON")
    parser.add_argument("--tenant", default=os.environ.get("ERRAND_TENANT", "default"))
    parser.add_argument("--url", default=os.environ.get("ERRAND_NATS_URL", "nats://127.0.0.1:4222"))
    parser.add_argument("--order", default=uuid.uuid4().hex, help="what it is for: publishing it twice makes one run")
    args = parser.parse_args()

    client = await nats.connect(args.url)
    try:
        # The ack says that the broker keeps the request until a dispatcher has taken it. Where none comes, publish
        # again: under the same Nats-Msg-Id it is still one run.
        ack = await client.jetstream().publish(
            f"errand.v1.submit.{args.tenant}",
            run_request(args.task, args.input, {"order": args.order}),
            headers={"Nats-Msg-Id": args.order},
        )
        print(f"order {args.order} is accepted{', as before' if ack.duplicate else ''}")
    finally:
        await client.drain()


if __name__ == "__main__":
    asyncio.run(main())
