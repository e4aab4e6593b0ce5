#!/usr/bin/env python3
"""The customer portal of Brightwater Utilities: a small, real web application for agents to work on.

Sign-in by e-mail and one-time code, bills as pages, PDF and CSV. Any e-mail address is a customer; what it sees is
derived from the address, so it repeats. See README.md beside this file.
"""

import argparse
import base64
import calendar
import csv
import hashlib
import hmac
import io
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict, deque, namedtuple
from html import escape
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

MODES = ("normal", "slow", "failing", "changed-layout")
BILLS, PER_PAGE, NEWEST = 14, 7, (2026, 6)
CODE_TRIES = 5
WRONG_CODES, WRONG_CODES_SECONDS = 20, 900
VISIT_SECONDS, MAX_VISITS = 3600, 10_000
MAX_MAILBOXES, MAILS_KEPT = 10_000, 20
MAX_BODY, MAX_EMAIL = 16 * 1024, 254
RETRY_AFTER_SECONDS = 30
COOKIE = "brightwater"

Account = namedtuple("Account", "number name address")
Bill = namedtuple("Bill", "number period label issued due cents status lines")
Response = namedtuple("Response", "status body type headers")
Request = namedtuple("Request", "portal visit mode query form args")


# --- what a customer has ---------------------------------------------------------------------------------------------

def digest(*parts):
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big")


def account_of(email):
    seed = digest("account", email)
    words = re.split(r"[._-]+", email.split("@")[0].split("+")[0])
    name = " ".join(word.capitalize() for word in words if word) or "Customer"
    return Account(f"BW{seed % 10**8:08d}", name, f"{seed % 180 + 1} Reservoir Road, Brightwater")


def bills_of(email):
    """Newest first."""
    bills = []
    for index in range(BILLS):
        month = NEWEST[0] * 12 + NEWEST[1] - 1 - index
        year, month = month // 12, month % 12 + 1
        after = (year, month + 1) if month < 12 else (year + 1, 1)
        seed = digest("bill", email, f"{year}-{month}")
        lines = (("Water supply", 1900 + seed % 3700), ("Waste water", 1100 + seed // 7 % 2100), ("Standing charge", 850))
        status = "open" if index == 0 else "overdue" if index == 1 and seed % 2 else "paid"
        bills.append(Bill(
            number=f"BW-{year}{month:02d}-{seed % 10**5:05d}", period=f"{year}-{month:02d}",
            label=f"{calendar.month_name[month]} {year}",
            issued="%d-%02d-03" % after, due="%d-%02d-24" % after,
            cents=sum(cents for _, cents in lines), status=status, lines=lines,
        ))
    return bills


def money(cents):
    return f"{cents // 100}.{cents % 100:02d}"


def csv_of(bills):
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["number", "period", "issued", "due", "amount", "currency", "status"])
    rows.writerows([b.number, b.period, b.issued, b.due, money(b.cents), "EUR", b.status] for b in bills)
    return out.getvalue().encode()


def pdf_of(account, bill):
    """One page of text, written by hand: objects, their offsets, the trailer."""
    texts = ["Brightwater Utilities", f"Bill {bill.number}", "", f"Account number: {account.number}",
             f"Customer: {account.name}", f"Address: {account.address}", "", f"Period: {bill.label}",
             f"Issued: {bill.issued}", f"Due: {bill.due}", f"Status: {bill.status}", ""]
    texts += [f"{what}: {money(cents)} EUR" for what, cents in bill.lines]
    texts += ["", f"Amount: {money(bill.cents)} EUR"]

    def literal(text):
        return text.encode("latin-1", "replace").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")

    lines = b"\n".join(b"(" + literal(text) + b") Tj T*" for text in texts)
    stream = b"BT\n/F1 12 Tf\n18 TL\n72 770 Td\n" + lines + b"\nET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 5 0 R"
        b" /Resources << /Font << /F1 4 0 R >> >> >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    out, offsets = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    xref = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1, xref, len(objects) + 1, len(out))


# --- who is there ----------------------------------------------------------------------------------------------------

class Refused(Exception):
    """A step of the sign-in that is not taken, and why: a word that also names the page's error."""

    def __init__(self, status, why, text):
        super().__init__(text)
        self.status, self.why, self.text = status, why, text


class Throttle:
    """At most `limit` hits per key in any `seconds`."""

    def __init__(self, limit, seconds):
        self.limit, self.seconds, self.hits = limit, seconds, OrderedDict()

    def is_full(self, key):
        hits = self.hits.get(key, ())
        while hits and hits[0] < time.monotonic() - self.seconds:
            hits.popleft()
        return len(hits) >= self.limit

    def hit(self, key):
        self.hits.setdefault(key, deque(maxlen=self.limit)).append(time.monotonic())
        keep_newest(self.hits, MAX_MAILBOXES)


class PasswordAccount:
    """A customer who signs in with a password, and perhaps with the codes of an authenticator app (RFC 6238)."""

    def __init__(self, password, totp_secret):
        self.password, self.last_step = password, 0
        secret = totp_secret.replace(" ", "").upper()
        self.totp_key = base64.b32decode(secret + "=" * (-len(secret) % 8)) if secret else None

    def code(self, step):
        digest = hmac.new(self.totp_key, step.to_bytes(8, "big"), hashlib.sha1).digest()
        at = digest[-1] & 15
        return f"{(int.from_bytes(digest[at:at + 4], 'big') & 0x7fffffff) % 10**6:06d}"

    def takes(self, code):
        """The code of now, or of the period before or behind; none twice."""
        now = int(time.time()) // 30
        for step in (now - 1, now, now + 1):
            if step > self.last_step and hmac.compare_digest(code.encode(), self.code(step).encode()):
                self.last_step = step
                return True
        return False


class Attempt:
    """A sign-in under way."""

    account, password_is_right = None, True

    def __init__(self, email, seconds):
        self.email, self.code, self.left = email, f"{secrets.randbelow(10**6):06d}", CODE_TRIES
        self.reference = "".join(secrets.choice("ACDEFHJKLMNPRTUVWXY3479") for _ in range(5))
        self.expires = time.monotonic() + seconds


class Visit:
    """What a cookie stands for: a visitor, perhaps signed in."""

    def __init__(self, email=None):
        self.token, self.csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self.email, self.attempt, self.expires = email, None, time.monotonic() + VISIT_SECONDS


def keep_newest(entries, limit):
    while len(entries) > limit:
        entries.popitem(last=False)


class Portal:
    """Everything that lasts longer than a request."""

    def __init__(self, mode="normal", delay=2.0, code_seconds=300.0, sign_ins=60):
        self.mode, self.delay, self.code_seconds = mode, delay, code_seconds
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.visits, self.mails, self.accounts = OrderedDict(), OrderedDict(), OrderedDict()
        self.sign_ins, self.wrong_codes = Throttle(sign_ins, 60), Throttle(WRONG_CODES, WRONG_CODES_SECONDS)

    def visit(self, token):
        with self.lock:
            visit = self.visits.get(token)
            return visit if visit and visit.expires > time.monotonic() else None

    def admit(self, visit):
        with self.lock:
            self.visits[visit.token] = visit
            keep_newest(self.visits, MAX_VISITS)
        return visit

    def end(self, visit):
        with self.lock:
            self.visits.pop(visit.token, None)

    def mode_of(self, visit):
        """The address decides (`ada+slow@example.com`), else the server's mode."""
        email = visit and (visit.email or (visit.attempt and visit.attempt.email))
        suffix = email.rsplit("@", 1)[0].rpartition("+")[2] if email and "+" in email else ""
        return suffix if suffix in MODES else self.mode

    def begin(self, visit, email):
        if len(email) > MAX_EMAIL or not re.fullmatch(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)*", email):
            raise Refused(422, "email-invalid", "Enter an e-mail address such as name@example.com.")
        with self.lock:
            if self.wrong_codes.is_full(email):
                raise Refused(403, "locked", "This account is locked because of too many wrong codes. Try again later.")
            if self.sign_ins.is_full(email):
                raise Refused(429, "throttled", "Too many sign-ins. Try again in a minute.")
            self.sign_ins.hit(email)
            visit.attempt = attempt = Attempt(email, self.code_seconds)
            attempt.account = self.accounts.get(email)
            if attempt.account:
                attempt.password_is_right = False
                return
            self.mails.setdefault(email, deque(maxlen=MAILS_KEPT)).append({
                "from": "no-reply@brightwater.example", "to": email, "subject": "Your Brightwater sign-in code",
                "text": f"Your code is {attempt.code} (reference {attempt.reference}).",
                "code": attempt.code, "reference": attempt.reference,
                "sent_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            })
            self.mails.move_to_end(email)
            keep_newest(self.mails, MAX_MAILBOXES)

    def open_account(self, email, password, totp_secret):
        with self.lock:
            self.accounts[email] = PasswordAccount(password, totp_secret)
            keep_newest(self.accounts, MAX_MAILBOXES)

    def check_password(self, visit, password):
        """The signed-in visit, or none where a code is still to come."""
        with self.lock:
            attempt = visit.attempt
            if attempt is None or attempt.account is None:
                raise Refused(410, "code-expired", "This sign-in is over. Begin again.")
            if self.wrong_codes.is_full(attempt.email):
                visit.attempt = None
                raise Refused(403, "locked", "This account is locked because of too many wrong passwords. Try again later.")
            if not hmac.compare_digest(password.encode(), attempt.account.password.encode()):
                self.wrong_codes.hit(attempt.email)
                raise Refused(401, "password-refused", "That password is not right.")
            attempt.password_is_right = True
            if attempt.account.totp_key:
                return None
            self.visits.pop(visit.token, None)
        return self.admit(Visit(attempt.email))

    def verify(self, visit, code):
        """The signed-in visit that replaces this one: a new token, so that one planted before is worth nothing."""
        with self.lock:
            attempt = visit.attempt
            if attempt is None or not attempt.password_is_right:
                raise Refused(410, "code-expired", "This sign-in is over. Ask for a new code.")
            if self.wrong_codes.is_full(attempt.email):
                visit.attempt = None
                raise Refused(403, "locked", "This account is locked because of too many wrong codes. Try again later.")
            if attempt.expires <= time.monotonic():
                visit.attempt = None
                raise Refused(410, "code-expired", "This code has expired. Ask for a new one.")
            account = attempt.account
            if not (account.takes(code) if account else hmac.compare_digest(code.encode(), attempt.code.encode())):
                attempt.left -= 1
                self.wrong_codes.hit(attempt.email)
                if attempt.left == 0:
                    visit.attempt = None
                    raise Refused(403, "code-spent", "Too many wrong codes. Ask for a new one.")
                raise Refused(401, "code-refused", f"That code is not right. {attempt.left} tries left.")
            self.visits.pop(visit.token, None)
        return self.admit(Visit(attempt.email))

    def mail(self, email, reference):
        with self.lock:
            for mail in reversed(self.mails.get(email, ())):
                if not reference or mail["reference"] == reference:
                    return mail
        return None


# --- what they see ---------------------------------------------------------------------------------------------------

STYLE = """
:root{--ink:#12303f;--soft:#5a7381;--line:#d5e0e5;--brand:#0b6e8f;--wash:#f3f8fa}
*{box-sizing:border-box}body{margin:0;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--wash)}
header{background:#fff;border-bottom:1px solid var(--line)}
.bar,main{max-width:58rem;margin:0 auto;padding:1rem 1.5rem}
.bar{display:flex;align-items:center;gap:1.5rem}.brand{font-weight:700;color:var(--brand);text-decoration:none;margin-right:auto}
main{background:#fff;border:1px solid var(--line);border-radius:.5rem;margin:2rem auto;padding:1.5rem 2rem 2rem}
main.narrow{max-width:26rem}h1{margin:.25rem 0 1rem;font-size:1.6rem}a{color:var(--brand)}
label{display:block;font-weight:600;margin:1rem 0 .25rem}.hint{color:var(--soft);margin:.25rem 0}
input{width:100%;font:inherit;padding:.5rem .75rem;border:1px solid #9fb4be;border-radius:.375rem}
button{font:inherit;font-weight:600;color:#fff;background:var(--brand);border:0;border-radius:.375rem;padding:.5rem 1.25rem;margin-top:1rem}
button.plain{background:none;color:var(--brand);padding:0;margin:0;font-weight:400;text-decoration:underline}
:focus-visible{outline:3px solid #7cc4dd;outline-offset:2px}
.error{background:#fdecea;border-left:4px solid #b3261e;padding:.5rem .75rem;margin:0 0 1rem}
table{width:100%;border-collapse:collapse;margin:1rem 0}caption{text-align:left;color:var(--soft)}
th,td{text-align:left;padding:.5rem .5rem;border-bottom:1px solid var(--line)}.amount{text-align:right;font-variant-numeric:tabular-nums}
.status{border-radius:1rem;padding:.1rem .6rem;background:#e3f3e6}.status.open{background:#fff3d6}.status.overdue{background:#fde0dd}
dl{display:grid;grid-template-columns:10rem 1fr;gap:.25rem 1rem;margin:1rem 0}dt{color:var(--soft)}dd{margin:0}
.pages{display:flex;gap:1.5rem;align-items:center}.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}
.cards h2{font-size:1.1rem;margin:0}.cards article{border:1px solid var(--line);border-radius:.5rem;padding:1rem}
"""

SECURITY = [
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self';"
                                " base-uri 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "same-origin"), ("Cache-Control", "no-store"),
]


def page(title, main, visit=None, status=200, narrow=False, headers=()):
    nav = ""
    if visit and visit.email:
        nav = f"""<nav aria-label="Account"><a href="/bills" id="nav-bills" data-testid="nav-bills">Bills</a></nav>
<span data-testid="signed-in-as">{escape(visit.email)}</span>
<form method="post" action="/sign-out" id="sign-out-form">{csrf(visit)}
<button class="plain" id="sign-out" data-testid="sign-out">Sign out</button></form>"""
    body = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} - Brightwater Utilities</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>
<body><header role="banner"><div class="bar"><a class="brand" href="/">Brightwater Utilities</a>{nav}</div></header>
<main id="main"{' class="narrow"' if narrow else ''}><h1>{escape(title)}</h1>
{main}
</main></body></html>"""
    return Response(status, body.encode(), "text/html; charset=utf-8", list(headers))


def csrf(visit):
    return f'<input type="hidden" name="csrf" value="{escape(visit.csrf)}">'


def alert(refused):
    if refused is None:
        return ""
    return f'<p class="error" id="error" role="alert" data-testid="error-{refused.why}">{escape(refused.text)}</p>'


def redirect(to, headers=()):
    return Response(303, b"", "text/plain; charset=utf-8", [("Location", to), *headers])


def as_json(value, status=200):
    return Response(status, json.dumps(value).encode() + b"\n", "application/json", [])


def sign_in_page(visit, refused=None, email=""):
    headers = [("Retry-After", "60")] if refused and refused.status == 429 else []
    return page("Sign in", f"""{alert(refused)}
<form method="post" action="/sign-in" id="sign-in-form" data-testid="sign-in-form">{csrf(visit)}
<label for="email">E-mail address</label>
<input type="email" id="email" name="email" autocomplete="email" required maxlength="{MAX_EMAIL}"
 value="{escape(email)}" data-testid="email" autofocus>
<p class="hint">We will send you a code. There is no password.</p>
<button type="submit" id="send-code" data-testid="send-code">Send me a code</button></form>""",
                status=refused.status if refused else 200, narrow=True, headers=headers)


def password_page(visit, refused=None):
    form = f"""<form method="post" action="/sign-in/password" id="password-form" data-testid="password-form">{csrf(visit)}
<label for="password">Password of {escape(visit.attempt.email)}</label>
<input type="password" id="password" name="password" autocomplete="current-password" required data-testid="password" autofocus>
<button type="submit" id="continue" data-testid="continue">Continue</button></form>""" if visit.attempt else ""
    return page("Enter your password", alert(refused) + form, status=refused.status if refused else 200, narrow=True)


def code_page(visit, refused=None):
    again = '<p><a href="/sign-in" id="new-code" data-testid="new-code">Ask for a new code</a></p>'
    form, attempt = "", visit.attempt
    if attempt:
        where = "Open your authenticator app for" if attempt.account else "We have sent a code to"
        form = f"""<p>{where} <strong data-testid="sent-to">{escape(attempt.email)}</strong>,
reference <strong id="reference" data-testid="reference">{attempt.reference}</strong>.</p>
<form method="post" action="/sign-in/code" id="code-form" data-testid="code-form">{csrf(visit)}
<label for="code">One-time code</label>
<input type="text" id="code" name="code" inputmode="numeric" autocomplete="one-time-code" pattern="[0-9]{{6}}"
 maxlength="6" required data-testid="code" aria-describedby="code-hint" autofocus>
<p class="hint" id="code-hint">6 digits</p>
<button type="submit" id="verify" data-testid="verify">Continue</button></form>"""
    return page("Enter your code", alert(refused) + form + again, status=refused.status if refused else 200, narrow=True)


def account_list(account):
    return f"""<dl id="account" data-testid="account" aria-label="Account">
<dt>Account number</dt><dd data-testid="account-number">{escape(account.number)}</dd>
<dt>Name</dt><dd data-testid="account-name">{escape(account.name)}</dd>
<dt>Address</dt><dd data-testid="account-address">{escape(account.address)}</dd></dl>"""


def links(number, last):
    parts = []
    if number > 1:
        parts.append(f'<a rel="prev" href="/bills?page={number - 1}" id="previous-page" data-testid="previous-page">Newer</a>')
    parts.append(f'<span aria-current="page" data-testid="page">Page {number} of {last}</span>')
    if number < last:
        parts.append(f'<a rel="next" href="/bills?page={number + 1}" id="next-page" data-testid="next-page">Older</a>')
    return f'<nav class="pages" aria-label="Pages" data-testid="pages">{"".join(parts)}</nav>'


def bills_page(visit, bills, number, last):
    rows = "".join(f"""<tr data-testid="bill" id="bill-{b.number}">
<th scope="row"><a href="/bills/{b.number}" data-testid="bill-link">{b.number}</a></th>
<td><time datetime="{b.period}">{b.label}</time></td><td>{b.issued}</td><td>{b.due}</td>
<td class="amount">{money(b.cents)} EUR</td><td><span class="status {b.status}">{b.status.capitalize()}</span></td>
<td><a href="/bills/{b.number}.pdf" download data-testid="bill-pdf" aria-label="PDF of bill {b.number}">PDF</a></td></tr>
""" for b in bills)
    return page("Bills", f"""{account_list(account_of(visit.email))}
<p><a href="/bills.csv" download id="export-csv" data-testid="export-csv">Export all as CSV</a></p>
<table id="bills" data-testid="bills"><caption>{BILLS} bills, newest first</caption>
<thead><tr><th scope="col">Bill</th><th scope="col">Period</th><th scope="col">Issued</th><th scope="col">Due</th>
<th scope="col" class="amount">Amount</th><th scope="col">Status</th><th scope="col">Download</th></tr></thead>
<tbody>{rows}</tbody></table>{links(number, last)}""", visit)


def changed_bills_page(visit, bills, number, last):
    """The same facts after a redesign: no table, other words, ids and test ids."""
    account = account_of(visit.email)
    cards = "".join(f"""<article aria-labelledby="s{n}"><h2 id="s{n}">Statement for {b.label}</h2>
<p>Reference {b.number}</p><p><strong>&euro;&nbsp;{money(b.cents)}</strong> &middot; {b.status}</p>
<p>Sent {b.issued}, pay by {b.due}</p><p><a href="/bills/{b.number}">View</a> <a href="/bills/{b.number}.pdf">Save</a></p>
</article>""" for n, b in enumerate(bills))
    more = f'<a href="/bills?page={number + 1}">Show earlier statements</a>' if number < last else ""
    return page("Your statements", f"""<p>{escape(account.name)}, customer {escape(account.number)}<br>
{escape(account.address)}</p><div class="cards" role="feed">{cards}</div><p>{more} <a href="/bills.csv">Spreadsheet</a></p>""",
                visit)


def bill_page(visit, bill):
    lines = "".join(f'<tr><th scope="row">{what}</th><td class="amount">{money(cents)} EUR</td></tr>'
                    for what, cents in bill.lines)
    return page(f"Bill {bill.number}", f"""<dl id="bill" data-testid="bill">
<dt>Account number</dt><dd data-testid="account-number">{escape(account_of(visit.email).number)}</dd>
<dt>Period</dt><dd data-testid="period"><time datetime="{bill.period}">{bill.label}</time></dd>
<dt>Issued</dt><dd data-testid="issued">{bill.issued}</dd><dt>Due</dt><dd data-testid="due">{bill.due}</dd>
<dt>Amount</dt><dd data-testid="amount">{money(bill.cents)} EUR</dd>
<dt>Status</dt><dd data-testid="status"><span class="status {bill.status}">{bill.status.capitalize()}</span></dd></dl>
<table data-testid="bill-lines"><caption>What it is for</caption><tbody>{lines}</tbody></table>
<p><a href="/bills/{bill.number}.pdf" download id="download-pdf" data-testid="download-pdf">Download PDF</a></p>
<p><a href="/bills" data-testid="back">All bills</a></p>""", visit)


def plain_page(status, title, text, headers=()):
    return page(title, f'<p role="alert" data-testid="http-{status}">{escape(text)}</p>', status=status, headers=headers)


# --- what they do ----------------------------------------------------------------------------------------------------

def home(request):
    return redirect("/bills" if request.visit and request.visit.email else "/sign-in")


def with_cookie(response, visit):
    cookie = f"{COOKIE}={visit.token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={VISIT_SECONDS}"
    return response._replace(headers=[*response.headers, ("Set-Cookie", cookie)])


def show_sign_in(request):
    if request.visit is None:
        visit = request.portal.admit(Visit())
        return with_cookie(sign_in_page(visit), visit)
    return redirect("/bills") if request.visit.email else sign_in_page(request.visit)


def begin_sign_in(request):
    email = request.form.get("email", "").strip().lower()
    try:
        request.portal.begin(request.visit, email)
    except Refused as refused:
        return sign_in_page(request.visit, refused, email)
    return redirect("/sign-in/password" if request.visit.attempt.account else "/sign-in/code")


def show_password(request):
    attempt = request.visit and request.visit.attempt
    return password_page(request.visit) if attempt and attempt.account else redirect("/sign-in")


def check_password(request):
    try:
        visit = request.portal.check_password(request.visit, request.form.get("password", ""))
    except Refused as refused:
        return password_page(request.visit, refused)
    return with_cookie(redirect("/bills"), visit) if visit else redirect("/sign-in/code")


def show_code(request):
    attempt = request.visit and request.visit.attempt
    return code_page(request.visit) if attempt and attempt.password_is_right else redirect("/sign-in")


def check_code(request):
    try:
        visit = request.portal.verify(request.visit, request.form.get("code", "").strip())
    except Refused as refused:
        return code_page(request.visit, refused)
    return with_cookie(redirect("/bills"), visit)


def sign_out(request):
    request.portal.end(request.visit)
    return redirect("/sign-in", [("Set-Cookie", f"{COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0")])


def list_bills(request):
    bills = bills_of(request.visit.email)
    last = -(-len(bills) // PER_PAGE)
    asked = request.query.get("page", "1")
    number = int(asked) if re.fullmatch(r"[0-9]{1,4}", asked) else 0
    if not 1 <= number <= last:
        return plain_page(404, "Not found", "There is no such page.")
    shown = bills[(number - 1) * PER_PAGE:number * PER_PAGE]
    draw = changed_bills_page if request.mode == "changed-layout" else bills_page
    return draw(request.visit, shown, number, last)


def show_bill(request):
    number, suffix = request.args
    bill = next((bill for bill in bills_of(request.visit.email) if bill.number == number), None)
    if bill is None:
        return plain_page(404, "Not found", "There is no such bill.")
    if suffix:
        body = pdf_of(account_of(request.visit.email), bill)
        return Response(200, body, "application/pdf", [("Content-Disposition", f'attachment; filename="{number}.pdf"')])
    return bill_page(request.visit, bill)


def export_bills(request):
    body = csv_of(bills_of(request.visit.email))
    return Response(200, body, "text/csv; charset=utf-8", [("Content-Disposition", 'attachment; filename="bills.csv"')])


def mailbox(request):
    mail = request.portal.mail(request.query.get("email", "").strip().lower(), request.query.get("reference"))
    return as_json(mail) if mail else as_json({"error": "no mail"}, 404)


def open_account(request):
    email, password, totp_secret = (request.form.get(key, "") for key in ("email", "password", "totp_secret"))
    try:
        if not (email and password and request.form.keys() <= {"email", "password", "totp_secret"}):
            raise ValueError
        request.portal.open_account(email.strip().lower(), password, totp_secret)
    except (AttributeError, ValueError):
        return as_json({"error": "send email, password, and perhaps totp_secret in base32"}, 422)
    return as_json({"email": email})


def set_mode(request):
    portal = request.portal
    now = {"mode": portal.mode, "delay": portal.delay, "code_seconds": portal.code_seconds}
    then = {**now, **request.form}
    seconds = (then["delay"], then["code_seconds"])
    if (then.keys() != now.keys() or then["mode"] not in MODES
            or not all(type(value) in (int, float) and 0 <= value <= 600 for value in seconds)):
        return as_json({"error": f"mode is one of {', '.join(MODES)}; delay and code_seconds are 0..600 seconds"}, 422)
    portal.mode, portal.delay, portal.code_seconds = then["mode"], *seconds
    return as_json(then)


# method, path, handler, whether it belongs to a customer who has signed in
ROUTES = [(method, re.compile(path), handler, private) for method, path, handler, private in [
    ("GET", r"/", home, False),
    ("GET", r"/sign-in", show_sign_in, False),
    ("POST", r"/sign-in", begin_sign_in, False),
    ("GET", r"/sign-in/password", show_password, False),
    ("POST", r"/sign-in/password", check_password, False),
    ("GET", r"/sign-in/code", show_code, False),
    ("POST", r"/sign-in/code", check_code, False),
    ("POST", r"/sign-out", sign_out, False),
    ("GET", r"/bills", list_bills, True),
    ("GET", r"/bills\.csv", export_bills, True),
    ("GET", r"/bills/(BW-[0-9]+-[0-9]+)(\.pdf)?", show_bill, True),
    ("GET", r"/_mailbox", mailbox, False),
    ("POST", r"/_test/mode", set_mode, False),
    ("POST", r"/_test/account", open_account, False),
]]


class Handler(BaseHTTPRequestHandler):
    protocol_version, timeout, wbufsize = "HTTP/1.1", 30, -1
    server_version, sys_version = "Brightwater", ""

    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.answer("POST")

    def answer(self, method):
        response = self.respond(method)
        self.send_response(response.status)
        headers = [("Content-Type", response.type), ("Content-Length", str(len(response.body)))]
        for name, value in [*headers, *SECURITY, *response.headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)

    def respond(self, method):
        portal, url = self.server.portal, urlsplit(self.path)
        body = self.body() if method == "POST" else b""
        if body is None:
            self.close_connection = True
            return plain_page(413, "Too large", "The request has no length or is too large.")
        matches = [(route, route[1].fullmatch(url.path)) for route in ROUTES if route[1].fullmatch(url.path)]
        found = next(((route, match) for route, match in matches if route[0] == method), None)
        if found is None:
            if matches:
                return plain_page(405, "Not allowed", "This page cannot be asked for like that.")
            return plain_page(404, "Not found", "There is no such page.")
        (_, _, handler, private), match = found
        visit = portal.visit(self.cookie())
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.path.startswith("/_"):
            return self.backstage(handler, Request(portal, None, portal.mode, query, body, ()))
        request = Request(portal, visit, portal.mode_of(visit), query, self.fields(body), match.groups())
        if request.mode == "slow":
            portal.stopping.wait(portal.delay)
        if method == "POST" and not (visit and hmac.compare_digest(request.form.get("csrf", "").encode(), visit.csrf.encode())):
            return plain_page(403, "Form expired", "This form is out of date. Go back and load it again.")
        if private and request.mode == "failing":
            return plain_page(503, "Bills are not available", "We are working on it. Please come back later.",
                              [("Retry-After", str(RETRY_AFTER_SECONDS))])
        if private and not (visit and visit.email):
            return redirect("/sign-in")
        return handler(request)

    def backstage(self, handler, request):
        """The inbox and the switch: not the customer's, so neither slow nor failing; JSON in, JSON out."""
        if handler in (set_mode, open_account):
            # A form on some other site cannot send this type.
            try:
                form = json.loads(request.form) if self.headers.get_content_type() == "application/json" else None
            except ValueError:
                form = None
            if not isinstance(form, dict):
                return as_json({"error": "send a JSON object as application/json"}, 415)
            request = request._replace(form=form)
        return handler(request)

    def body(self):
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or int(length) > MAX_BODY:
            return None
        return self.rfile.read(int(length))

    @staticmethod
    def fields(body):
        try:
            return {name: values[-1] for name, values in parse_qs(body.decode(), max_num_fields=20).items()}
        except ValueError:
            return {}

    def cookie(self):
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return cookie.value if cookie else None

    def log_message(self, format, *args):
        if self.server.verbose:
            path = quote(urlsplit(getattr(self, "path", "")).path)
            sys.stderr.write(f"{self.command} {path} {args[1] if len(args) > 1 else ''}\n")


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, address, portal, verbose=False):
        self.portal, self.verbose = portal, verbose
        super().__init__(address, Handler)

    def server_bind(self):
        # Without the base class's look-up of the host's name, which may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def arguments():
    parser = argparse.ArgumentParser(description="The customer portal of Brightwater Utilities, for agents to work on.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0: any free port")
    parser.add_argument("--port-file", help="where to write the port once it listens")
    parser.add_argument("--mode", choices=MODES, default="normal")
    parser.add_argument("--delay", type=float, default=2.0, help="seconds per page in slow mode (2)")
    parser.add_argument("--code-seconds", type=float, default=300.0, help="life of a one-time code (300)")
    parser.add_argument("--sign-ins", type=int, default=60, help="sign-ins per address and minute (60)")
    parser.add_argument("--verbose", action="store_true", help="log requests to stderr")
    return parser.parse_args()


def main():
    args = arguments()
    portal = Portal(args.mode, args.delay, args.code_seconds, args.sign_ins)
    server = Server((args.host, args.port), portal, args.verbose)

    def stop(*_):
        portal.stopping.set()
        # shutdown() waits for serve_forever(), which this handler interrupts.
        threading.Thread(target=server.shutdown).start()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
    if args.port_file:
        # Renamed into place: who waits for the file never reads half of it.
        with open(args.port_file + ".new", "w") as file:
            file.write(f"{server.server_port}\n")
        os.replace(args.port_file + ".new", args.port_file)
    print(f"portal listening on http://{args.host}:{server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()


if __name__ == "__main__":
    main()
