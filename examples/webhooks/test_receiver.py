"""The receiver's verification, by the vector of the Standard Webhooks specification, and over real HTTP."""

import http.client
import json
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import receiver  # noqa: E402

# From the specification's reference implementations.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, TIMESTAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}'
SIGNATURE = "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


class Verification(unittest.TestCase):
    def headers(self, **more):
        return {"webhook-id": ID, "webhook-timestamp": TIMESTAMP, "webhook-signature": f"v1,{SIGNATURE}"} | more

    def refused(self, secrets, headers, body, now):
        with self.assertRaises(receiver.Refused):
            receiver.verify(secrets, headers, body, now)

    def test_the_specifications_vector(self):
        receiver.verify([SECRET], self.headers(), BODY, int(TIMESTAMP))
        receiver.verify(["whsec_AAAA", SECRET], self.headers(), BODY, int(TIMESTAMP) + 299)
        several = self.headers(**{"webhook-signature": f"v1,AAAA v1,{SIGNATURE}"})
        receiver.verify([SECRET], several, BODY, int(TIMESTAMP))

    def test_what_is_not_ours_is_refused(self):
        now = int(TIMESTAMP)
        self.refused([SECRET], self.headers(), BODY + b" ", now)
        self.refused([SECRET], self.headers(), BODY, now + 301)
        self.refused([SECRET], self.headers(), BODY, now - 301)
        self.refused(["whsec_AAAA"], self.headers(), BODY, now)
        self.refused([SECRET], {}, BODY, now)
        self.refused([], self.headers(), BODY, now)
        self.refused([SECRET], self.headers(**{"webhook-signature": f"v2,{SIGNATURE}"}), BODY, now)
        self.refused(["plain"], self.headers(), BODY, now)


class OverHttp(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        secret_file = Path(self.folder.name, "secret")
        secret_file.write_text(SECRET + "\n")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "receiver.py"), "--port", "0", "--secret-file", str(secret_file)],
            stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().strip().rstrip("/").rsplit(":", 1)[1])

    def tearDown(self):
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()
        self.folder.cleanup()

    def post(self, event, sign_with=SECRET):
        body, now = json.dumps(event).encode(), str(int(time.time()))
        headers = {
            "webhook-id": event["id"],
            "webhook-timestamp": now,
            "webhook-signature": "v1," + receiver.signature(sign_with, event["id"], now, body),
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/", body, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def test_each_verified_event_is_shown_once(self):
        first = {"id": "evt_1", "type": "task_run.queued", "seq": 1, "data": {"id": "trun_1"}}
        second = {"id": "evt_2", "type": "task_run.running", "seq": 2, "data": {"id": "trun_1"}}
        self.assertEqual(self.post(first), 204)
        self.assertEqual(self.post(first), 204)
        self.assertEqual(self.post(second, sign_with="whsec_AAAA"), 401)
        self.assertEqual(self.post(second), 204)
        lines = [self.process.stdout.readline().strip() for _ in range(2)]
        self.assertEqual(lines, ["verified task_run.queued trun_1 seq 1", "verified task_run.running trun_1 seq 2"])


if __name__ == "__main__":
    unittest.main()
