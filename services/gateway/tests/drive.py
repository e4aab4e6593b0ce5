"""Drives a run from start to end with the client that openapi-python-client has generated from /v2/openapi.json."""

import os
import time
import uuid

from errand_http import AuthenticatedClient
from errand_http.api.task_runs import answer_interaction, get_run, list_runs, run_task, wait_for_run
from errand_http.api.tasks import create_task
from errand_http.models import (
    AnswerInteraction,
    AnswerInteractionInput,
    CreateTask,
    Errors,
    GetRunIncludeItem,
    RunTask,
    TaskRunStatus,
)

client = AuthenticatedClient(
    base_url=os.environ["ERRAND_URL"], token=os.environ["ERRAND_API_KEY"], raise_on_unexpected_status=True
)

name = str(uuid.uuid4())
task = create_task.sync(client=client, body=CreateTask(name=name, agent_id="agt_scripted", prompt="Ask for a code."))
assert task.name == name and task.version == 1, task

body = RunTask(input_={"steps": [{"ask": "code"}]}, timeout_seconds=60)
run = run_task.sync(task.id, client=client, body=body, idempotency_key="order-1")
assert run.status == TaskRunStatus.QUEUED, run
again = run_task.sync(task.id, client=client, body=body, idempotency_key="order-1")
assert again.id == run.id, again

deadline = time.monotonic() + 60
while run.status != TaskRunStatus.INTERACTION_REQUIRED:
    assert time.monotonic() < deadline, run
    run = wait_for_run.sync(run.id, client=client, timeout=0)
assert run.interaction.fields[0].name == "code", run.interaction

answer = AnswerInteraction(input_=AnswerInteractionInput.from_dict({"code": "123456"}))
answer_interaction.sync(run.id, client=client, body=answer)
run = wait_for_run.sync(run.id, client=client, timeout=60)
assert run.status == TaskRunStatus.COMPLETED, run
assert run.output == {"code": "123456"}, run.output

whole = get_run.sync(run.id, client=client, include=[GetRunIncludeItem.INPUT, GetRunIncludeItem.EVENTS])
assert whole.input_ == {"steps": [{"ask": "code"}]}, whole
assert [event.type_ for event in whole.events][-1] == "task_run.completed", whole.events
page = list_runs.sync(client=client, status=[TaskRunStatus.COMPLETED], task_id=[task.id])
assert [one.id for one in page.data] == [run.id] and not page.has_more, page

refused = answer_interaction.sync(run.id, client=client, body=answer)
assert isinstance(refused, Errors) and refused.errors[0].code == "interaction_not_pending", refused
print("the run completed")
