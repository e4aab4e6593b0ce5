#!/usr/bin/env python3
"""Receives Errand's webhooks and verifies their signatures, with nothing but the standard library.

    python3 examples/webhooks/receiver.py --port 9000 --secret-file whsec.txt

Each event that is verified for the first time is printed as a line. The format is that of Standard Webhooks
(https://www.standardwebhooks.com): an HMAC-SHA256 over `id.timestamp.body`. The secret is what
`errand destinations create` prints; its file is read again for each request, and may hold several, one a line.
"""

import argparse
import base64
import binascii
import collections
import hashlib
import hmac
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Older or younger than this, a request may be a recorded one.
TOLERANCE_SECONDS = 300
MAX_BODY = 1024 * 1024


class Refused(Exception):
    pass


def key_of(secret):
    """The bytes behind `whsec_...`."""
    if not secret.startswith("whsec_"):
        raise Refused("a secret begins with whsec_")
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise Refused("the secret is not base64") from error


def signature(secret, message_id, timestamp, body):
    signed = f"{message_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.new(key_of(secret), signed, hashlib.sha256).digest()).decode()


def verify(secrets, headers, body, now):
    """Raises Refused unless one of the signatures is by one of the secrets, and the request is fresh."""
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not message_id or not timestamp.isascii() or not timestamp.isdigit():
        raise Refused("webhook-id or webhook-timestamp is missing")
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise Refused("the request is too old, or from the future")
    given = [part.split(",", 1)[1] for part in headers.get("webhook-signature", "").split() if part.startswith("v1,")]
    for secret in secrets:
        expected = signature(secret, message_id, timestamp, body)
        if any(hmac.compare_digest(expected.encode(), one.encode()) for one in given):
            return
    raise Refused("no signature fits")


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small answers go out at once.
    disable_nagle_algorithm = True

    def do_POST(self):
        length = int(self.headers.get("content-length") or 0)
        if length > MAX_BODY:
            self.close_connection = True
            return self.answer(413, "too large")
        body = self.rfile.read(length)
        try:
            verify(self.server.secrets(), self.headers, body, time.time())
            event = json.loads(body)
        except (Refused, ValueError) as error:
            return self.answer(401, str(error))
        self.server.show(event)
        self.answer(204)

    def answer(self, status, text=""):
        body = text.encode()
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port, secret_file):
        super().__init__(("127.0.0.1", port), Receiver)
        self.secret_file = secret_file
        self.seen = collections.deque(maxlen=10_000)
        self.lock = threading.Lock()

    def secrets(self):
        try:
            return self.secret_file.read_text().split()
        except OSError as error:
            raise Refused("there is no secret yet") from error

    def show(self, event):
        with self.lock:
            # At least once is the promise: the same event has the same id.
            if event["id"] in self.seen:
                return
            self.seen.append(event["id"])
            data = event["data"]
            print("verified", event["type"], data.get("id", "-"), "seq", event["seq"], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=9000, help="0: any free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port")
    parser.add_argument("--secret-file", type=Path, required=True)
    args = parser.parse_args()
    server = Server(args.port, args.secret_file)
    port = server.server_address[1]
    print(f"listening on http://127.0.0.1:{port}/", flush=True)
    if args.port_file:
        part = args.port_file.with_suffix(".part")
        part.write_text(str(port))
        part.rename(args.port_file)
    server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
