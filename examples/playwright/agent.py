#!/usr/bin/env python3
"""An agent for the browser runner that drives the session's Chromium with Playwright: docs/browser-agents.md.

Input: url. Output: the page's URL, title and text; a screenshot becomes a file. It needs the package `playwright`, and
no browser of Playwright's own.
"""

import json
import os
import sys

from playwright.sync_api import Error, sync_playwright


def send(type, **fields):
    print(json.dumps({"type": type, **fields}), flush=True)


def receive(type):
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "stop":
            # What Playwright holds open is the browser's; it lives on without us.
            os._exit(0)
        if message["type"] == type:
            return message
    sys.exit("stdin was closed")


def main():
    start, task = receive("start"), receive("input")["input"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.connect_over_cdp(start["cdp_url"])
        # The session's own context: its cookies are those of the runs before.
        page = browser.contexts[0].pages[0]
        send("progress", message="Opening the page", percent=10)
        page.goto(task["url"])
        page.screenshot(path=os.path.join(start["files_directory"], "page.png"))
        send("file", path="page.png", kind="screenshot")
        send("output", output={"url": page.url, "title": page.title(), "text": page.inner_text("body")})


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        # Its first line has no page's content.
        send("error", error={"type": "source", "code": "source_error", "message": str(error).splitlines()[0]})
        sys.exit(1)
