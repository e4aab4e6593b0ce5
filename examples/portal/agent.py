#!/usr/bin/env python3
"""An agent for the exec runner: fetches the bills of a Brightwater customer. The protocol: docs/exec-agents.md.

Input: portal_url, email (or the run's credential has it), limit (12), download (true), and for demonstrations pause_seconds (0) and hang (false).
Output: the account, its newest bills and the sum of their amounts; their PDFs and the CSV export become files.
"""

import hashlib
import json
import os
import queue
import re
import sys
import threading
import time
from decimal import Decimal
from html.parser import HTMLParser
from http.client import HTTPException
from http.cookiejar import LoadError, LWPCookieJar
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, ProxyHandler, build_opener

SECONDS_PER_REQUEST = 30
MAX_PAGE_BYTES, MAX_FILE_BYTES = 2 * 1024 * 1024, 16 * 1024 * 1024
MAX_PAGES, MAX_SIGN_INS = 50, 3
COLUMNS = ("Bill", "Period", "Issued", "Due", "Amount", "Status")
VOID = {"br", "hr", "img", "input", "link", "meta"}


class Failure(Exception):
    """The run's failure: an error type and code of the contract, and a message without secrets."""

    def __init__(self, type, code, message):
        super().__init__(message)
        self.type, self.code, self.message = type, code, message


# --- the runner ------------------------------------------------------------------------------------------------------

class Runner:
    """The other end of stdin and stdout."""

    def __init__(self):
        self.inbox, self.writing, self.questions = queue.Queue(), threading.Lock(), 0
        # Unbuffered and by descriptor: this thread may still be reading when the interpreter shuts down.
        threading.Thread(target=self.read, args=(open(0, "rb", buffering=0, closefd=False),), daemon=True).start()

    def read(self, stdin):
        rest = b""
        while True:
            chunk = stdin.read(65536)
            if not chunk:
                self.inbox.put(None)
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(bytes.strip, lines):
                message = json.loads(line)
                if message.get("type") == "stop":
                    self.stop(message.get("reason"))
                self.inbox.put(message)

    def stop(self, reason):
        """Leaves at once, whatever the work is waiting for: nothing is left to tidy up, since a file counts only once
        it is reported. Waits for a line that is being written, but not for a runner that does not read."""
        print(f"stopping: {reason}", file=sys.stderr, flush=True)
        self.writing.acquire(timeout=1)
        os._exit(0)

    def send(self, type, **fields):
        with self.writing:
            print(json.dumps({"type": type, **fields}), flush=True)

    def progress(self, message, step=None, percent=None):
        told = {"step": step, "percent": percent}
        self.send("progress", message=message, **{key: value for key, value in told.items() if value is not None})

    def receive(self, type):
        """The next message of this type; others, known or not, are passed over."""
        while True:
            message = self.inbox.get()
            if message is None:
                raise Failure("task", "agent_error", "stdin was closed before the agent was done")
            if message.get("type") == type:
                return message

    def ask(self, kind, message, *fields):
        """Asks the user; answers with {field: value}."""
        self.questions += 1
        own = f"{kind}-{self.questions}"
        self.send("interaction", id=own, interaction={"type": kind, "message": message, "fields": list(fields)})
        while True:
            answer = self.receive("interaction")
            if answer.get("id") == own:
                return answer["input"]

    def hang(self):
        """Reports nothing more, until it is stopped or stdin is closed."""
        self.receive("nothing")


# --- pages -----------------------------------------------------------------------------------------------------------

class Node:
    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    def walk(self):
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child.walk()

    def all(self, tag=None, **attributes):
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [node for node in self.walk() if tag in (None, node.tag)
                and all(node.attributes.get(name) == value for name, value in wanted.items())]

    def first(self, tag=None, **attributes):
        return next(iter(self.all(tag, **attributes)), None)

    def need(self, tag=None, **attributes):
        node = self.first(tag, **attributes)
        if node is None:
            what = " ".join(filter(None, [tag, *(f'{name.replace("_", "-")}={value}' for name, value in attributes.items())]))
            raise not_understood(f"no element {what}")
        return node

    def text(self):
        parts = [child.text() if isinstance(child, Node) else child for child in self.children]
        return " ".join(" ".join(parts).split())


class Tree(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.root = Node("", ())
        self.open = [self.root]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        node = Node(tag, attributes)
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        for depth in range(len(self.open) - 1, 0, -1):
            if self.open[depth].tag == tag:
                del self.open[depth:]
                return

    def handle_data(self, data):
        self.open[-1].children.append(data)


def not_understood(what):
    return Failure("source", "source_error", f"the portal's page is not as expected: {what}")


def matched(pattern, text, what):
    match = re.fullmatch(pattern, text or "")
    if match is None:
        raise not_understood(f"{what} is missing or has another form")
    return match[0]


# --- the portal ------------------------------------------------------------------------------------------------------

class SameOrigin(HTTPRedirectHandler):
    def redirect_request(self, request, fp, code, message, headers, url):
        if urlsplit(url)[:2] != urlsplit(request.full_url)[:2]:
            raise Failure("source", "source_error", "the portal redirects to another host")
        return super().redirect_request(request, fp, code, message, headers, url)


class Portal:
    def __init__(self, url, cookie_file=None):
        self.url, self.cookie_file = url.rstrip("/") + "/", cookie_file
        if not re.fullmatch(r"https?://[^\s/?#\[\]]+/?", url):
            raise Failure("source", "source_invalid", "portal_url must be http(s)://host:port")
        self.cookies = LWPCookieJar(cookie_file)
        if cookie_file:
            try:
                self.cookies.load(ignore_discard=True)
            except (OSError, LoadError):
                pass
        self.opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(self.cookies), SameOrigin())

    def request(self, path, form=None, limit=MAX_PAGE_BYTES):
        """Status, final URL and body. Raises what keeps any page from being read."""
        url = urljoin(self.url, path)
        if urlsplit(url)[:2] != urlsplit(self.url)[:2]:
            raise not_understood("a link leads to another host")
        try:
            try:
                answer = self.opener.open(url, form and urlencode(form).encode(), timeout=SECONDS_PER_REQUEST)
            except HTTPError as error:
                answer = error
            with answer:
                status, final, body = answer.status, answer.url, answer.read(limit + 1)
        except ValueError:
            raise Failure("source", "source_invalid", "portal_url is not a URL that can be asked")
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Failure("source", "source_not_available", f"the portal does not answer: {type(reason).__name__}")
        if status >= 500:
            wait = answer.headers.get("Retry-After", "")
            later = f", asks to come back in {wait} s" if wait.isdigit() else ""
            raise Failure("source", "source_not_available", f"the portal answers {status}{later}")
        if status == 429:
            raise Failure("source", "source_blocked", "the portal answers 429: too many requests")
        if len(body) > limit:
            raise Failure("storage", "file_too_large", f"the portal sent more than {limit} bytes")
        return status, final, body

    def page(self, path, form=None):
        """A page, or the form's errors on it; also the path where it was found."""
        status, final, body = self.request(path, form)
        page = Tree(body.decode("utf-8", "replace")).root
        if status >= 400 and not page.first(id="error"):
            code = "source_blocked" if status == 403 else "source_error"
            raise Failure("source", code, f"the portal answers {status}")
        return page, urlsplit(final).path

    def file(self, path, begins):
        status, _, body = self.request(path, limit=MAX_FILE_BYTES)
        if status != 200 or not body.startswith(begins):
            raise Failure("source", "source_error", "the portal does not give the file that it offers")
        return body

    def keep_cookies(self):
        if self.cookie_file:
            self.cookies.save(ignore_discard=True)
            os.chmod(self.cookie_file, 0o600)


def send_form(portal, page, id, **values):
    form = page.need("form", id=id)
    hidden = {field.attributes.get("name"): field.attributes.get("value") for field in form.all("input", type="hidden")}
    return portal.page(form.attributes.get("action", ""), {**hidden, **values})


def error_on(page):
    """(word, text) of the form's error, if there is one."""
    node = page.first(id="error")
    return (node.attributes.get("data-testid", "").replace("error-", "", 1), node.text()) if node else (None, None)


def sign_in(runner, portal, email, credential):
    """Ends with the first page of bills."""
    page, path = portal.page("/bills")
    for number in range(MAX_SIGN_INS):
        if path == "/bills":
            if number and credential:
                runner.send("auth_ok")
            return page
        runner.progress("Signing in", "sign-in", 5)
        page, path = portal.page("/sign-in")
        page, path = send_form(portal, page, "sign-in-form", email=email)
        refuse_final(*error_on(page))
        page, path = enter_password(portal, page, path, credential)
        page, path = enter_code(runner, portal, page, path, email)
    if path == "/bills":
        if credential:
            runner.send("auth_ok")
        return page
    raise Failure("auth", "auth_invalid", f"{MAX_SIGN_INS} one-time codes have expired")


def refuse_final(why, text):
    if why in ("email-invalid", "password-refused", "code-spent"):
        raise Failure("auth", "auth_invalid", f"the portal refuses the sign-in: {text}")
    if why == "locked":
        raise Failure("auth", "auth_locked", f"the portal refuses the sign-in: {text}")


def enter_password(portal, page, path, credential):
    """Where the customer has one. It comes from the run's credential; nobody is asked for it."""
    if path != "/sign-in/password":
        return page, path
    if "password" not in credential:
        raise Failure("auth", "auth_unsupported", "the portal wants a password, and the run has no credential with one")
    page, path = send_form(portal, page, "password-form", password=credential["password"])
    refuse_final(*error_on(page))
    return page, path


def enter_code(runner, portal, page, path, email):
    """Asks for the code until the portal takes it, or gives up on it."""
    hint, why = f"{email[0]}***@{email.rsplit('@', 1)[-1]}", None
    while path == "/sign-in/code" and why != "code-expired":
        reference = page.need(id="reference").text()
        refused = "That code was not right. " if why == "code-refused" else ""
        answer = runner.ask("mfa", f"{refused}Brightwater sent a code to {hint}, reference {reference}.",
                            {"name": "code", "type": "code", "label": "One-time code"})
        runner.progress("Checking the code", "sign-in", 10)
        page, path = send_form(portal, page, "code-form", code=str(answer.get("code", "")))
        why, text = error_on(page)
        refuse_final(why, text)
    return page, path


def read_account(page):
    account = page.need(id="account")
    return {key: account.need(data_testid=f"account-{key}").text() for key in ("number", "name", "address")}


def read_bills(page):
    """The table's rows, columns found by their headings."""
    table = page.need("table", id="bills")
    heads = [head.text() for head in table.need("thead").all("th")]
    for column in COLUMNS:
        if column not in heads:
            raise not_understood(f"the bills have no column {column}")
    for row in table.need("tbody").all("tr"):
        cells = [cell for cell in row.children if isinstance(cell, Node) and cell.tag in ("th", "td")]
        if len(cells) != len(heads):
            raise not_understood("a bill has more or fewer cells than there are columns")
        yield read_bill(row, dict(zip(heads, cells)))


def read_bill(row, cells):
    """(what the run reports, where the PDF is)"""
    amount, currency = matched(r"[0-9]+\.[0-9]{2} [A-Z]{3}", cells["Amount"].text(), "a bill's amount").split()
    pdf = row.first("a", data_testid="bill-pdf")
    return {
        "number": matched(r"[A-Za-z0-9-]{1,64}", cells["Bill"].text(), "a bill's number"),
        "period": matched(r"\d{4}-\d{2}", cells["Period"].need("time").attributes.get("datetime"), "a bill's period"),
        "issued": matched(r"\d{4}-\d{2}-\d{2}", cells["Issued"].text(), "a bill's date of issue"),
        "due": matched(r"\d{4}-\d{2}-\d{2}", cells["Due"].text(), "a bill's due date"),
        "amount": amount, "currency": currency,
        "status": matched(r"open|paid|overdue", cells["Status"].text().lower(), "a bill's status"),
    }, pdf and pdf.attributes.get("href")


def collect(runner, portal, page, limit):
    """The newest bills, following the pages as far as needed."""
    found = []
    for number in range(1, MAX_PAGES + 1):
        found += read_bills(page)
        runner.progress(f"Read page {number}: {min(len(found), limit)} bills", "bills", 30)
        further = page.need(data_testid="pages").first("a", rel="next")
        if len(found) >= limit or further is None:
            return found[:limit]
        page, path = portal.page(further.attributes.get("href", ""))
        if path != "/bills":
            raise Failure("source", "source_error", "the portal ended the sign-in")
    raise not_understood(f"more than {MAX_PAGES} pages of bills")


def download(runner, portal, page, bills, folder):
    def save(name, body, **data):
        try:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(body)
        except OSError as error:
            raise Failure("storage", "storage_error", f"{name} could not be written: {error.strerror}")
        runner.send("file", path=name, name=name, kind="file", **data)

    for index, (bill, link) in enumerate(bills):
        if not link:
            raise not_understood("a bill has no PDF")
        runner.progress(f"Downloading bill {bill['number']}", "files", 40 + 50 * index // len(bills))
        save(f"{bill['number']}.pdf", portal.file(link, b"%PDF-"), data=with_number(bill))
    export = page.need("a", id="export-csv").attributes.get("href", "")
    save("bills.csv", portal.file(export, b"number,"))


def with_number(bill):
    return {**bill, "amount": float(bill["amount"])}


# --- the run ---------------------------------------------------------------------------------------------------------

def cookie_file(start, portal_url, email):
    """A session that is used again is still signed in; each address has its own cookies."""
    folder = (start.get("session") or {}).get("directory") or os.environ.get("ERRAND_SESSION_DIR")
    name = hashlib.sha256(f"{portal_url} {email}".encode()).hexdigest()[:16]
    return folder and os.path.join(folder, f"cookies-{name}.txt")


def pause(runner, seconds):
    """Work that can be canceled."""
    begin, end = time.monotonic(), time.monotonic() + seconds
    while time.monotonic() < end:
        done = int(100 * (time.monotonic() - begin) / seconds)
        runner.progress(f"Working, {end - time.monotonic():.1f} s to go", "pause", done)
        time.sleep(min(0.2, max(0, end - time.monotonic())))


def execute(runner):
    start, value = runner.receive("start"), runner.receive("input").get("input")
    credential = start.get("credential") or {}
    email = isinstance(value, dict) and (value.get("email") or credential.get("username"))
    if not email or not all(isinstance(text, str) for text in (email, value.get("portal_url"))):
        raise Failure("task", "agent_error", "the input must have portal_url, and email where the run has no credential")
    runner.progress("Starting", "start", 0)
    pause(runner, value.get("pause_seconds", 0))
    if value.get("hang"):
        runner.hang()
    portal = Portal(value["portal_url"], cookie_file(start, value["portal_url"], email))
    page = sign_in(runner, portal, email.strip().lower(), credential)
    portal.keep_cookies()
    account, bills = read_account(page), collect(runner, portal, page, value.get("limit", 12))
    if value.get("download", True):
        folder = start.get("files_directory") or os.environ.get("ERRAND_FILES_DIR") or "."
        download(runner, portal, page, bills, folder)
    total = sum((Decimal(bill["amount"]) for bill, _ in bills), Decimal())
    return {"account": account, "bills": [with_number(bill) for bill, _ in bills], "total": float(total)}


def main():
    runner = Runner()
    try:
        runner.send("output", output=execute(runner))
        return 0
    except Failure as failure:
        runner.send("error", error={"type": failure.type, "code": failure.code, "message": failure.message})
        return 1


if __name__ == "__main__":
    sys.exit(main())
