"""What a program outside does, over HTTP alone: a credential, a task, a run that signs in with it, its events, its end,
and its files by their links.

    over_http.py GATEWAY PORTAL PORTAL_AS_THE_RUNNER_SEES_IT <API_KEY
"""

import json
import sys
import time
import urllib.request

PASSWORD, TOTP_SECRET = "c0mpose-Test-passw0rd", "JBSWY3DPEHPK3PXPGEZDGNBVGY3TQOJQ"
PATIENCE = 120


def call(url, body=None, key=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=PATIENCE) as answer:
        return json.load(answer)


def until_final(gateway, run, key):
    """Waits on the gateway, which hears of the end from the event stream."""
    for _ in range(10):
        found = call(f"{gateway}/v2/task-runs/{run}/wait?timeout=15", None, key)
        if found["finished_at"] or found["canceled_at"]:
            return found
    raise AssertionError(f"{run} does not end: {found}")


def main():
    gateway, portal, inner = sys.argv[1:]
    key = sys.stdin.read().strip()
    email = f"http-{time.time_ns()}@example.com"
    call(f"{portal}/_test/account", {"email": email, "password": PASSWORD, "totp_secret": TOTP_SECRET})
    secrets = {"username": email, "password": PASSWORD, "totp_secret": TOTP_SECRET}
    new = {"name": "compose-test", "auth_method": "username_password"} | secrets
    credential = call(f"{gateway}/v2/credentials", new, key)
    assert PASSWORD not in json.dumps(credential), "a secret comes out"
    with open("examples/portal/bills-sign-in.task.json", encoding="utf-8") as file:
        task = call(f"{gateway}/v2/tasks", json.load(file), key)
    asked = {"input": {"portal_url": inner, "limit": 3}, "credential_id": credential["id"]}
    run = call(f"{gateway}/v2/tasks/{task['id']}/run", asked, key)
    ended = until_final(gateway, run["id"], key)
    events = call(f"{gateway}/v2/task-runs/{run['id']}/events", None, key)["data"]
    kinds = [event["type"] for event in sorted(events, key=lambda event: event["seq"])]
    assert ended["status"] == "completed" and len(ended["output"]["bills"]) == 3, ended
    assert kinds[-1] == "task_run.completed", kinds
    files = call(f"{gateway}/v2/task-runs/{run['id']}/storage", None, key)["data"]
    # By the link alone, as whoever is given it does.
    contents = {file["name"]: urllib.request.urlopen(file["url"], timeout=PATIENCE).read() for file in files}
    names = sorted(contents)
    assert [name[-4:] for name in names].count(".pdf") == 3 and contents["bills.csv"].startswith(b"number,"), names
    assert all(contents[name].startswith(b"%PDF") for name in names if name.endswith(".pdf")), names
    assert all(file["url"].startswith(gateway) for file in files), files
    print(f"{run['id']} signed in with {credential['id']}: {', '.join(kinds)}; files: {', '.join(names)}")


main()
