"""A producer that has only the broker: a stock Celery app that sends ``paidonce.submit``."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection

from paidonce import RunFailed
from paidonce.run_handle import RunHandle
from paidonce_models.errors import NotFound
from tests.acceptance.agents.flow import Plan
from tests.acceptance.site import RUN_SECONDS, Site
from tests.services.waiting import wait_until


@pytest.fixture(scope="module")
def producer(shared: Site) -> Iterator[Celery]:
    """It knows the broker's address and the task's name, nothing else of ours."""
    app = Celery("shop", broker=shared.broker_url)
    yield app
    app.close()


def send(producer: Celery, task_id: str | None = None, **arguments: Any) -> str:
    sent = producer.send_task(
        "paidonce.submit", kwargs=arguments, queue="paidonce.submit", task_id=task_id or str(uuid.uuid4())
    )
    return str(sent.id)


def found(site: Site, name: str) -> RunHandle:
    """The run of that id or alias, once it is there."""

    def find() -> RunHandle | None:
        try:
            return site.client.run(name)
        except NotFound:
            return None

    handle = wait_until(find, f"there is a run {name!r}", RUN_SECONDS)
    assert handle is not None
    return handle


def test_without_a_key_the_task_id_is_key_and_alias(shared: Site, producer: Celery) -> None:
    task_id = send(producer, agent="inquiry", input={"question": "how deep is it"}, tags={"user": "u1"})
    run = found(shared, task_id)
    assert run.result(RUN_SECONDS) == Plan(queries=["how", "deep", "is", "it"], notes={"words": 4, "depth": 1})
    view = run.view()
    assert (view.key, view.tags) == (task_id, {"user": "u1"})
    assert run.id != task_id


def test_a_message_delivered_twice_makes_one_run(shared: Site, producer: Celery) -> None:
    task_id = str(uuid.uuid4())
    for _ in range(3):
        send(producer, task_id, agent="inquiry", input={"question": "once"})
    run = found(shared, task_id)
    run.result(RUN_SECONDS)
    send(producer, task_id, agent="inquiry", input={"question": "once"})
    marker = send(producer, agent="leaf", input={"number": 1})
    found(shared, marker).result(RUN_SECONDS)
    assert [each.key for each in shared.client.runs(agent="inquiry") if each.key == task_id] == [task_id]


def test_with_a_key_it_meets_the_clients_run(shared: Site, producer: Celery) -> None:
    run = shared.client.submit("inquiry", {"question": "shared key"}, key="req-both")
    task_id = send(producer, agent="inquiry", input={"question": "shared key"}, key="req-both")
    assert found(shared, task_id).id == run.id
    assert run.result(RUN_SECONDS).queries == ["shared", "key"]


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


NESTED = nested(800)
"""As deep as Celery's own JSON goes, with what is around it on the stack."""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ({"agent": "leaf", "input": {"wrong": 1}}, "invalid_input", "'number'"),
        ({"agent": "leaf", "input": {"number": "many"}}, "invalid_input", "number"),
        ({"agent": "leaf", "input": [1, 2]}, "invalid_input", "must be a JSON object"),
        ({"agent": "leaf", "input": {"number": NESTED}}, "not_serialisable", "deeper than 254 levels"),
        ({"agent": NESTED, "input": {}}, "invalid_input", "name|nested"),
        ({"agent": "leaf", "input": {"number": 1}, "priority": "9" * 1_000_000}, "invalid_input", "priority"),
        ({"agent": 7, "input": {}}, "invalid_input", "must be a name"),
        ({"input": {}}, "invalid_input", "must be a name"),
        ({"agent": "leaf", "input": {"number": 1}, "tags": "u1"}, "invalid_input", "tags"),
        ({"agent": "leaf", "input": {"number": 1}, "tags": {"a": "x" * 1_001}}, "invalid_input", "MAX_TAG_BYTES"),
        ({"agent": "leaf", "input": {"number": 1}, "key": ""}, "invalid_input", "key"),
        ({"agent": "leaf", "input": {"number": 1}, "countdown": 3}, "invalid_input", "countdown"),
        ({"agent": "leaf", "input": {"number": 1}, "priority": "high"}, "invalid_input", "priority"),
        ({"agent": "leaf", "input": {"number": 1}, "queue": 5}, "invalid_input", "queue"),
        ({"agent": "leaf" * 100, "input": {}}, "invalid_input", "1 to 150 characters"),
        ({"agent": "le\x00af", "input": {}}, "invalid_input", "must be a name"),
        ({"agent": "leaf", "input": {"number": 1}, "key": "half a pair: \ud800"}, "invalid_input", "key"),
        ({"agent": "leaf", "input": {"number": 1}, "key": "😀" * 1_000}, "invalid_input", "2000 bytes.*4000 bytes"),
        ({"agent": "leaf", "input": {"number": 1}, "queue": "😀" * 100}, "invalid_input", "150 bytes.*400 bytes"),
    ],
    ids=[
        *("argument", "type", "list", "nested", "nested name", "long priority", "agent", "no agent", "tags"),
        *("long tag", "key", "unknown", "priority", "queue"),
        *("long name", "nul", "surrogate in key"),
        "long key",
        "long queue",
    ],
)
def test_bad_input_becomes_a_failed_run_that_holds_the_error(
    shared: Site, producer: Celery, arguments: dict[str, Any], code: str, said: str
) -> None:
    run = found(shared, send(producer, **arguments))
    with pytest.raises(RunFailed, match=said):
        run.result(RUN_SECONDS)
    error = run.view().error
    assert error is not None and error["code"] == code


def publish(site: Site, body: bytes, task_id: str, content_type: str = "application/json") -> None:
    """A message as a producer in another language may make it."""
    with Connection(site.broker_url) as connection, connection.Producer() as made_by_hand:
        made_by_hand.publish(
            body,
            exchange="",
            routing_key="paidonce.submit",
            headers={"task": "paidonce.submit", "id": task_id, "lang": "any"},
            content_type=content_type,
            content_encoding="utf-8",
        )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"agent": "leaf", "input": {"number": 1}}', "expected"),
        (b'[[], {"agent": "leaf", "input": {"number": 1}}]', "expected 3, got 2"),
        (b"{nonsense", "cannot be decoded"),
        (b"", "expected"),
        (b"[" * 5_000, "cannot be decoded"),
        (b'[["leaf"], {"agent": "leaf", "input": {"number": 1}}, {}]', "found agent twice"),
        (b"[[1, 2, 3, 4, 5, 6], {}, {}]", "found 6 positional ones"),
    ],
    ids=["no list", "two parts", "no JSON", "empty", "too deep", "twice", "too many"],
)
def test_a_message_that_does_not_fit_becomes_a_failed_run(shared: Site, body: bytes, said: str) -> None:
    task_id = str(uuid.uuid4())
    publish(shared, body, task_id)
    refused = found(shared, task_id)
    with pytest.raises(RunFailed, match=said):
        refused.result(RUN_SECONDS)


def test_a_content_type_that_is_not_read_becomes_a_failed_run_that_keeps_the_body(shared: Site) -> None:
    task_id = str(uuid.uuid4())
    publish(shared, b"agent=leaf", task_id, content_type="text/plain")
    view = found(shared, task_id).view()
    assert view.error is not None and "text/plain" in view.error["message"]
    assert view.input is not None and b"agent=leaf" in view.input


def test_a_foreign_tasks_id_may_be_any_text_that_can_be_stored(shared: Site) -> None:
    def refused() -> int:
        return sum("id of a task" in str(run.error) for run in shared.client.runs(agent="leaf", state="failed"))

    right, before = b'[[], {"agent": "leaf", "input": {"number": 4}}, {}]', refused()
    publish(shared, right, "order 17")
    assert found(shared, "order 17").result(RUN_SECONDS) == 8
    for task_id in ("x" * 300, "half a pair \ud800"):
        publish(shared, right, task_id)
    publish(shared, right, "order 18")
    assert found(shared, "order 18").result(RUN_SECONDS) == 8
    wait_until(lambda: refused() == before + 2, "both are refused", RUN_SECONDS)


def test_a_failed_run_keeps_the_tags_it_was_sent_with(shared: Site, producer: Celery) -> None:
    run = found(shared, send(producer, agent="leaf", input={"wrong": 1}, tags={"user": "u7"}))
    assert (run.state, run.view().tags) == ("failed", {"user": "u7"})


def test_another_input_under_a_known_key_becomes_a_failed_run_naming_both(shared: Site, producer: Celery) -> None:
    shared.client.submit("leaf", {"number": 1}, key="req-taken").result(RUN_SECONDS)
    refused = found(shared, send(producer, agent="leaf", input={"number": 2}, key="req-taken"))
    with pytest.raises(RunFailed, match=r'recorded \{"number":1\}, given \{"number":2\}'):
        refused.result(RUN_SECONDS)


def test_an_unknown_agent_waits_for_a_worker_that_holds_it(shared: Site, producer: Celery) -> None:
    """This worker cannot tell a misspelt name from one that another worker holds: the run is kept, blocked later."""
    run = found(shared, send(producer, agent="held by nobody", input={"number": 1}))
    assert run.state == "pending"
    run.cancel()


def test_positional_arguments_work_as_well(shared: Site, producer: Celery) -> None:
    sent = producer.send_task(
        "paidonce.submit", args=["leaf", {"number": 21}], queue="paidonce.submit", task_id=str(uuid.uuid4())
    )
    assert found(shared, sent.id).result(RUN_SECONDS) == 42


def test_the_agents_own_queue_is_used(shared: Site, producer: Celery) -> None:
    run = found(shared, send(producer, agent="leaf", input={"number": 1}, queue="elsewhere"))
    assert run.view().queue == "paidonce.elsewhere"
    run.cancel()


def test_nonsense_does_not_end_the_worker(shared: Site, producer: Celery) -> None:
    producer.send_task("tests.acceptance.agents.flow.double", args=[1], queue="paidonce.default")
    producer.send_task("no.such.task", kwargs={"a": 1}, queue="paidonce.default")
    producer.send_task("paidonce.advance", kwargs={"run": "no such run", "agent": "x"}, queue="paidonce.default")
    producer.send_task("paidonce.advance", kwargs={}, queue="paidonce.default")
    producer.send_task("paidonce.advance", kwargs={"run": 5}, queue="paidonce.default")
    producer.send_task(
        "tests.acceptance.agents.flow.double", kwargs={"run": "no such run", "step": 1}, queue="paidonce.default"
    )
    assert shared.client.submit("leaf", {"number": 4}).result(RUN_SECONDS) == 8
    assert shared.workers[0].process.poll() is None


def test_a_submission_without_a_usable_id_is_refused_where_it_can_be_found(shared: Site) -> None:
    with Connection(shared.broker_url) as connection, connection.Producer() as made_by_hand:
        for number, task_id in enumerate((None, 7, ["x"])):
            for _ in range(2):  # delivered twice, refused once
                made_by_hand.publish(
                    [[], {"agent": "leaf", "input": {"number": number + 1000}}, {}],
                    exchange="",
                    routing_key="paidonce.submit",
                    headers={"task": "paidonce.submit", "id": task_id, "lang": "any"},
                    serializer="json",
                )
    marker = str(uuid.uuid4())
    publish(shared, b'[[], {"agent": "leaf", "input": {"number": 4}}, {}]', marker)
    assert found(shared, marker).result(RUN_SECONDS) == 8

    def refused() -> int:
        views = shared.client.runs(agent="leaf", state="failed")
        return sum(view.key is not None and len(view.key) == 71 for view in views)  # failed: and a hash

    wait_until(lambda: refused() >= 3, "the three refusals are stored", RUN_SECONDS)
