"""The portal over real HTTP, and the agents as the exec runner would start them."""

import base64
import csv
import hashlib
import hmac
import http.client
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from urllib.parse import urlencode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PATIENCE = 30


class PortalProcess:
    def __init__(self, *arguments):
        self.folder = tempfile.TemporaryDirectory()
        port_file = Path(self.folder.name, "port")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "portal.py"), "--port", "0", "--port-file", str(port_file), *arguments],
            stdout=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline().strip()
        self.port = int(port_file.read_text())
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        self.process.stdout.close()
        self.folder.cleanup()
        return status

    def mode(self, mode, delay=0.1, **more):
        body = json.dumps({"mode": mode, "delay": delay, **more})
        return Visitor(self).ask("POST", "/_test/mode", body, {"Content-Type": "application/json"})[0]

    def mail(self, email, **query):
        status, _, body = Visitor(self).ask("GET", "/_mailbox?" + urlencode({"email": email, **query}))
        return json.loads(body) if status == 200 else None

    def code(self, email):
        return self.mail(email)["code"]

    def account(self, **fields):
        body, headers = json.dumps(fields), {"Content-Type": "application/json"}
        return Visitor(self).ask("POST", "/_test/account", body, headers)[0]


class Visitor:
    """A browser that follows nothing."""

    def __init__(self, portal):
        self.port, self.cookie = portal.port, None

    def ask(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = {**dict(headers), **({"Cookie": self.cookie} if self.cookie else {})}
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.headers["Set-Cookie"]:
            self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return answer.status, answer.headers, body

    def get(self, path):
        status, headers, body = self.ask("GET", path)
        return status, headers, body.decode()

    def submit(self, path, page, **fields):
        """Sends a form with the hidden token of the page that it is on."""
        token = re.search(r'name="csrf" value="([^"]+)"', page)
        fields = {**({"csrf": token[1]} if token else {}), **fields}
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, headers, body = self.ask("POST", path, urlencode(fields), headers)
        return status, headers, body.decode()

    def begin(self, email):
        return self.submit("/sign-in", self.get("/sign-in")[2], email=email)

    def enter(self, code):
        return self.submit("/sign-in/code", self.get("/sign-in/code")[2], code=code)

    def sign_in(self, portal, email):
        self.begin(email)
        self.enter(portal.code(email))
        return self


def wrong(code):
    return f"{(int(code) + 1) % 10**6:06d}"


class AgentProcess:
    """The runner's side of the protocol."""

    def __init__(self, value, agent=HERE / "agent.py", folder=None, credential=None):
        self.own = tempfile.TemporaryDirectory()
        self.session, self.files = Path(folder or self.own.name, "session"), Path(self.own.name, "files")
        self.session.mkdir(exist_ok=True)
        self.files.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, str(agent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, bufsize=1, cwd=ROOT, env={
                "PATH": os.environ.get("PATH", ""), "ERRAND_RUN_ID": "trun_1",
                "ERRAND_SESSION_DIR": str(self.session), "ERRAND_FILES_DIR": str(self.files)})
        self.lines, self.messages = queue.Queue(), []
        threading.Thread(target=self.read, daemon=True).start()
        self.send(type="from_a_later_version", anything=[1])
        self.send(type="start", protocol=1, run={"id": "trun_1", "task_id": "task_1", "attempt": 1, "metadata": {}},
                  session={"id": "sess_1", "directory": str(self.session)}, files_directory=str(self.files),
                  prompt=None, program={}, source_id=None, credential_id=None, credential=credential)
        self.send(type="input", input=value)

    def read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def send(self, **message):
        self.process.stdin.write(json.dumps(message) + "\n")

    def until(self, *types):
        """The next message of one of these types; None when the agent has ended."""
        while True:
            message = self.lines.get(timeout=PATIENCE)
            if message is None:
                return None
            self.messages.append(message)
            if message["type"] in types:
                return message

    def answer(self, question, code):
        self.send(type="interaction", id=question["id"], input={"code": code})

    def answer_from(self, portal, email):
        question = self.until("interaction", "error")
        reference = re.search(r"reference (\w+)", question["interaction"]["message"])[1]
        self.answer(question, portal.mail(email, reference=reference)["code"])

    def result(self):
        return self.until("output", "error")

    def stop(self, reason="canceled"):
        """Exit status and the seconds that it took."""
        begin = time.monotonic()
        self.send(type="stop", reason=reason, grace_seconds=10)
        return self.process.wait(PATIENCE), time.monotonic() - begin

    def close(self):
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                pass
        self.own.cleanup()


class Case(unittest.TestCase):
    def portal(self, *arguments):
        portal = PortalProcess(*arguments)
        self.addCleanup(portal.stop)
        return portal

    def agent(self, value, **more):
        agent = AgentProcess(value, **more)
        self.addCleanup(agent.close)
        return agent


class SharedPortal(Case):
    @classmethod
    def setUpClass(cls):
        cls.shared = PortalProcess()

    @classmethod
    def tearDownClass(cls):
        cls.shared.stop()

    def setUp(self):
        self.shared.mode("normal")
        # An address of its own per test: throttles are per address.
        self.email = f"ada.{self._testMethodName.replace('_', '-')}@example.com"


class PortalTest(SharedPortal):
    def test_says_where_it_listens_and_stops_on_sigterm(self):
        portal = PortalProcess()
        self.assertEqual(portal.line, f"portal listening on http://127.0.0.1:{portal.port}")
        self.assertEqual(portal.stop(), 0)

    def test_bills_are_for_who_has_signed_in(self):
        for path in ("/", "/bills", "/bills.csv", "/bills/BW-202606-00000", "/bills/BW-202606-00000.pdf"):
            status, headers, _ = Visitor(self.shared).get(path)
            self.assertEqual((status, headers["Location"]), (303, "/sign-in"), path)

    def test_sign_in_changes_the_cookie_and_takes_a_code_once(self):
        visitor = Visitor(self.shared)
        visitor.begin(self.email)
        before, page, code = visitor.cookie, visitor.get("/sign-in/code")[2], self.shared.code(self.email)
        status, headers, _ = visitor.submit("/sign-in/code", page, code=code)
        self.assertEqual((status, headers["Location"]), (303, "/bills"))
        self.assertIn("HttpOnly; SameSite=Lax", headers["Set-Cookie"])
        self.assertNotEqual(visitor.cookie, before)
        visitor.cookie = before
        self.assertEqual(visitor.submit("/sign-in/code", page, code=code)[0], 403)
        self.assertEqual(visitor.get("/bills")[0], 303)

    def test_forms_need_their_token(self):
        visitor = Visitor(self.shared)
        visitor.get("/sign-in")
        self.assertEqual(visitor.submit("/sign-in", "", email=self.email)[0], 403)
        self.assertEqual(visitor.submit("/sign-in", "", email=self.email, csrf="é")[0], 403)
        self.assertEqual(visitor.ask("POST", "/sign-in", b"x" * 20_000)[0], 413)

    def test_five_wrong_codes_end_the_sign_in(self):
        visitor = Visitor(self.shared)
        visitor.begin(self.email)
        code = self.shared.code(self.email)
        self.assertEqual([visitor.enter(wrong(code))[0] for _ in range(5)], [401, 401, 401, 401, 403])
        self.assertEqual(visitor.enter(code)[0], 403)

    def test_twenty_wrong_codes_lock_the_account(self):
        visitor = Visitor(self.shared)
        for _ in range(4):
            visitor.begin(self.email)
            page, code = visitor.get("/sign-in/code")[2], self.shared.code(self.email)
            for _ in range(5):
                visitor.submit("/sign-in/code", page, code=wrong(code))
        status, _, page = visitor.begin(self.email)
        self.assertEqual(status, 403)
        self.assertIn('data-testid="error-locked"', page)
        result = self.agent({"portal_url": self.shared.url, "email": self.email}).result()
        self.assertEqual(result["error"]["code"], "auth_locked")

    def test_codes_expire(self):
        portal = self.portal("--code-seconds", "0")
        visitor = Visitor(portal)
        visitor.begin(self.email)
        self.assertEqual(visitor.enter(portal.code(self.email))[0], 410)

    def test_sign_ins_are_throttled(self):
        portal = self.portal("--sign-ins", "2")
        answers = [Visitor(portal).begin(self.email) for _ in range(3)]
        self.assertEqual([answer[0] for answer in answers], [303, 303, 429])
        self.assertEqual(answers[2][1]["Retry-After"], "60")
        self.assertEqual(Visitor(portal).begin("other@example.com")[0], 303)
        result = self.agent({"portal_url": portal.url, "email": self.email}).result()
        self.assertEqual(result["error"]["code"], "source_blocked")

    def test_what_visitors_write_is_escaped(self):
        email = '"><script>alert(1)</script>@example.com'
        visitor = Visitor(self.shared)
        for page in (visitor.begin("x" + email + " ")[2], visitor.get("/sign-in/code")[2]):
            self.assertNotIn("<script>", page)
        visitor.sign_in(self.shared, email)
        page = visitor.get("/bills")[2]
        self.assertIn("&lt;script&gt;", page)
        self.assertNotIn("<script>", page)

    def test_fourteen_bills_on_two_pages_and_in_the_export(self):
        visitor = Visitor(self.shared).sign_in(self.shared, self.email)
        pages = [visitor.get(f"/bills?page={page}")[2] for page in (1, 2)]
        numbers = [re.findall(r'id="bill-(BW-\d+-\d+)"', page) for page in pages]
        self.assertEqual([len(page) for page in numbers], [7, 7])
        _, headers, export = visitor.get("/bills.csv")
        rows = list(csv.DictReader(io.StringIO(export)))
        self.assertEqual([row["number"] for row in rows], numbers[0] + numbers[1])
        self.assertIn("attachment", headers["Content-Disposition"])
        for page in ("0", "3", "x", "9" * 30):
            self.assertEqual(visitor.get(f"/bills?page={page}")[0], 404)
        detail = visitor.get(f"/bills/{rows[0]['number']}")[2]
        self.assertIn(f'{rows[0]["amount"]} EUR', detail)

    def test_the_pdf_is_one(self):
        visitor = Visitor(self.shared).sign_in(self.shared, self.email)
        number = re.search(r"BW-\d+-\d+", visitor.get("/bills")[2])[0]
        status, headers, pdf = visitor.ask("GET", f"/bills/{number}.pdf")
        self.assertEqual((status, headers["Content-Type"]), (200, "application/pdf"))
        start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)[1])
        self.assertTrue(pdf[start:].startswith(b"xref\n0 6\n"))
        for index, entry in enumerate(re.findall(rb"(\d{10}) 00000 n \n", pdf[start:]), 1):
            self.assertTrue(pdf[int(entry):].startswith(b"%d 0 obj\n" % index))
        length, stream = re.search(rb"/Length (\d+) >>\nstream\n(.*)\nendstream", pdf, re.S).groups()
        self.assertEqual(int(length), len(stream))
        for text in (b"Account number: BW", b"Period: June 2026", b"Amount: ", number.encode()):
            self.assertIn(text, stream)

    def test_bills_of_others_are_not_there(self):
        theirs = re.search(r"BW-\d+-\d+", Visitor(self.shared).sign_in(self.shared, "other@example.com").get("/bills")[2])[0]
        visitor = Visitor(self.shared).sign_in(self.shared, self.email)
        for path in (f"/bills/{theirs}", f"/bills/{theirs}.pdf", "/nothing"):
            self.assertEqual(visitor.get(path)[0], 404)

    def test_sign_out_ends_the_visit(self):
        visitor = Visitor(self.shared).sign_in(self.shared, self.email)
        cookie = visitor.cookie
        visitor.submit("/sign-out", visitor.get("/bills")[2])
        visitor.cookie = cookie
        self.assertEqual(visitor.get("/bills")[0], 303)

    def test_modes_by_switch_and_by_address(self):
        failing = Visitor(self.shared).sign_in(self.shared, "ada+failing@example.com")
        self.assertEqual(failing.get("/bills")[0], 503)
        visitor = Visitor(self.shared).sign_in(self.shared, self.email)
        self.assertEqual(self.shared.mode("failing"), 200)
        status, headers, _ = visitor.get("/bills")
        self.assertEqual((status, headers["Retry-After"]), (503, "30"))
        self.shared.mode("changed-layout")
        page = visitor.get("/bills")[2]
        self.assertIn("<h1>Your statements</h1>", page)
        self.assertNotIn("<table", page)
        self.shared.mode("slow", 0.2)
        begin = time.monotonic()
        self.assertEqual(visitor.get("/bills")[0], 200)
        self.assertGreater(time.monotonic() - begin, 0.2)
        self.assertEqual([self.shared.mode("odd"), self.shared.mode([]), self.shared.mode("slow", "1")], [422] * 3)
        self.assertEqual(Visitor(self.shared).ask("POST", "/_test/mode", b"mode=slow")[0], 415)
        self.assertEqual(Visitor(self.shared).get("/_test/mode")[0], 405)


class AgentTest(SharedPortal):
    def run_of(self, **value):
        return self.agent({"portal_url": self.shared.url, "email": self.email, **value})

    def signed_in(self, **value):
        agent = self.run_of(**value)
        agent.answer_from(self.shared, value.get("email", self.email))
        return agent

    def assert_fails(self, agent, type, code):
        result = agent.result()
        self.assertEqual((result["type"], result.get("error", {}).get("type"), result.get("error", {}).get("code")),
                         ("error", type, code), result)
        self.assertEqual(agent.process.wait(PATIENCE), 1)
        return result["error"]["message"]

    def test_fetches_the_newest_bills_and_their_files(self):
        agent = self.signed_in(limit=3)
        output = agent.result()["output"]
        self.assertEqual(agent.process.wait(PATIENCE), 0)
        visitor = Visitor(self.shared).sign_in(self.shared, self.email)
        rows = list(csv.DictReader(io.StringIO(visitor.get("/bills.csv")[2])))
        expected = [{**row, "amount": float(row["amount"])} for row in rows[:3]]
        self.assertEqual(output["bills"], expected)
        self.assertEqual(output["total"], round(sum(bill["amount"] for bill in expected), 2))
        self.assertRegex(output["account"]["number"], r"^BW\d{8}$")
        self.assertTrue(output["account"]["name"].startswith("Ada Test"))
        files = [message for message in agent.messages if message["type"] == "file"]
        self.assertEqual([file["path"] for file in files], [f"{row['number']}.pdf" for row in rows[:3]] + ["bills.csv"])
        self.assertEqual({file["path"] for file in files}, {path.name for path in agent.files.iterdir()})
        self.assertEqual([file.get("data") for file in files], expected + [None])
        self.assertTrue(agent.files.joinpath(files[0]["path"]).read_bytes().startswith(b"%PDF-"))
        percents = [message["percent"] for message in agent.messages if message["type"] == "progress"]
        self.assertEqual(percents, sorted(percents))

    def test_follows_the_pages_as_far_as_asked(self):
        for limit, pages in ((7, 1), (10, 2), (100, 2)):
            agent = self.signed_in(limit=limit, download=False)
            output = agent.result()["output"]
            self.assertEqual(len({bill["number"] for bill in output["bills"]}), min(limit, 14))
            read = [message for message in agent.messages if message.get("step") == "bills"]
            self.assertEqual((len(read), list(agent.files.iterdir())), (pages, []))

    def test_asks_again_when_the_code_was_wrong(self):
        agent = self.run_of(limit=1)
        first = agent.until("interaction")
        self.assertEqual(first["interaction"]["type"], "mfa")
        self.assertEqual(first["interaction"]["fields"], [{"name": "code", "type": "code", "label": "One-time code"}])
        self.assertNotIn(self.email, first["interaction"]["message"])
        code = self.shared.code(self.email)
        agent.send(type="interaction", id="somebody-else's", input={"code": code})
        agent.answer(first, wrong(code))
        second = agent.until("interaction")
        self.assertNotEqual(second["id"], first["id"])
        self.assertEqual(second["interaction"]["fields"], first["interaction"]["fields"])
        self.assertIn("not right", second["interaction"]["message"])
        agent.answer(second, code)
        self.assertEqual(len(agent.result()["output"]["bills"]), 1)
        agent.process.wait(PATIENCE)
        self.assertNotIn(code, json.dumps(agent.messages) + agent.process.stderr.read())

    def test_gives_up_after_five_wrong_codes(self):
        agent = self.run_of()
        for _ in range(5):
            agent.answer(agent.until("interaction"), wrong(self.shared.code(self.email)))
        self.assert_fails(agent, "auth", "auth_invalid")

    def test_an_expired_code_brings_a_new_one(self):
        portal = self.portal("--code-seconds", "0")
        agent = self.agent({"portal_url": portal.url, "email": self.email, "limit": 1})
        first = agent.until("interaction")
        portal.mode("normal", code_seconds=300)
        agent.answer(first, portal.code(self.email))
        agent.answer_from(portal, self.email)
        self.assertEqual(agent.result()["type"], "output")

    def test_failures_of_the_sign_in(self):
        self.assert_fails(self.run_of(email="nobody"), "auth", "auth_invalid")
        self.assert_fails(self.agent({"email": self.email}), "task", "agent_error")
        self.assert_fails(self.agent(None), "task", "agent_error")

    def test_signs_in_with_a_password_and_the_codes_of_an_app(self):
        secret = "JBSWY3DPEHPK3PXP"
        self.assertEqual(self.shared.account(email=self.email, password="open sesame", totp_secret=secret), 200)
        credential = {"auth_method": "username_password", "username": self.email, "password": "open sesame"}
        agent = self.agent({"portal_url": self.shared.url, "limit": 1, "download": False}, credential=credential)
        key = base64.b32decode(secret)
        digest = hmac.new(key, (int(time.time()) // 30).to_bytes(8, "big"), hashlib.sha1).digest()
        at = digest[-1] & 15
        code = f"{(int.from_bytes(digest[at:at + 4], 'big') & 0x7fffffff) % 10**6:06d}"
        agent.answer(agent.until("interaction"), code)
        self.assertEqual(agent.until("auth_ok", "error"), {"type": "auth_ok"})
        self.assertEqual(agent.result()["type"], "output")

        wrong = self.agent({"portal_url": self.shared.url}, credential={**credential, "password": "sesame"})
        self.assertNotIn("sesame", self.assert_fails(wrong, "auth", "auth_invalid"))
        self.assert_fails(self.run_of(), "auth", "auth_unsupported")

    def test_failures_of_the_source(self):
        for url in ("ftp://example.com", "nothing", "http://[", "http://127.0.0.1:99999999"):
            self.assert_fails(self.run_of(portal_url=url), "source", "source_invalid" if ":9" not in url else "source_not_available")
        gone = PortalProcess()
        gone.stop()
        self.assert_fails(self.run_of(portal_url=gone.url), "source", "source_not_available")
        self.assert_fails(self.signed_in(email="ada+failing@example.com"), "source", "source_not_available")
        self.assert_fails(self.signed_in(email="ada+changed-layout@example.com"), "source", "source_error")
        self.shared.mode("failing")
        self.assertIn("30 s", self.assert_fails(self.run_of(), "source", "source_not_available"))

    def test_a_slow_portal_is_waited_for(self):
        self.shared.mode("slow", 0.05)
        self.assertEqual(self.signed_in(limit=2).result()["type"], "output")

    def test_stops_at_once_whatever_it_is_doing(self):
        working, hanging, asking = self.run_of(pause_seconds=60), self.run_of(hang=True), self.run_of()
        for _ in range(3):
            self.assertEqual(working.until("progress", "interaction", "output")["step"] in ("start", "pause"), True)
        hanging.until("progress")
        asking.until("interaction")
        self.shared.mode("slow", 30)
        waiting = self.run_of()
        waiting.until("progress")
        time.sleep(0.3)
        for agent in (working, hanging, asking, waiting):
            status, seconds = agent.stop()
            self.assertEqual(status, 0)
            self.assertLess(seconds, 5)
            self.assertIsNone(agent.until("output", "error"))

    def test_hangs_without_a_word_until_stdin_is_closed(self):
        agent = self.run_of(hang=True)
        agent.until("progress")
        with self.assertRaises(queue.Empty):
            agent.lines.get(timeout=0.5)
        agent.process.stdin.close()
        self.assert_fails(agent, "task", "agent_error")

    def test_a_session_that_is_used_again_is_still_signed_in(self):
        with tempfile.TemporaryDirectory() as folder:
            value = {"portal_url": self.shared.url, "email": self.email, "limit": 1, "download": False}
            first = self.agent(value, folder=folder)
            first.answer_from(self.shared, self.email)
            output = first.result()["output"]
            again = self.agent(value, folder=folder)
            self.assertEqual(again.until("output", "error", "interaction").get("output"), output)
            other = self.agent({**value, "email": "other@example.com"}, folder=folder)
            self.assertEqual(other.until("output", "error", "interaction")["type"], "interaction")
            self.assertEqual({path.stat().st_mode & 0o777 for path in Path(folder, "session").iterdir()}, {0o600})


class TaskFileTest(Case):
    def test_they_name_programs_that_exist_and_close_their_schemas(self):
        tasks = {path.name: json.loads(path.read_text()) for path in HERE.parent.glob("*/*.task.json")}
        self.assertEqual(len(tasks), 6)
        self.assertEqual(len({task["name"] for task in tasks.values()}), 6)
        for name, task in tasks.items():
            if task["agent_id"] == "agt_exec":
                self.assertTrue((ROOT / task["program"]["command"][1]).is_file(), name)
            else:
                # The browser runner's own tests read its steps.
                self.assertEqual((task["agent_id"], bool(task["program"]["steps"])), ("agt_browser", True), name)
            self.assertIs(task["input_schema"]["additionalProperties"], False)
            self.assertLessEqual(set(task["input_schema"]["required"]), set(task["input_schema"]["properties"]))
        bills = [tasks[f"bills{suffix}.task.json"] for suffix in ("", "-review", "-impatient")]
        self.assertEqual([task["settings"]["review"] for task in bills], [False, True, False])
        self.assertEqual([task["settings"]["inactivity_seconds"] for task in bills], [60, 60, 2])


class HelloTest(Case):
    AGENT = HERE.parent / "hello" / "agent.py"

    def test_greets(self):
        agent = self.agent({"name": "Ada"}, agent=self.AGENT)
        self.assertEqual(agent.result()["output"], {"greeting": "Hello, Ada!"})
        self.assertEqual(agent.process.wait(PATIENCE), 0)

    def test_says_what_is_missing(self):
        result = self.agent(None, agent=self.AGENT).result()
        self.assertEqual((result["error"]["type"], result["error"]["code"]), ("task", "agent_error"))

    def test_the_reference_shows_it_as_it_is(self):
        self.assertIn(self.AGENT.read_text(), (ROOT / "docs" / "exec-agents.md").read_text())


if __name__ == "__main__":
    unittest.main()
