"""The same promises on PostgreSQL with RabbitMQ and with Redis: one long story on each."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import pytest
from celery import Celery

from paidonce import KeyConflict, RunCancelled, RunFailed
from paidonce_models.errors import NotFound
from tests.acceptance.agents.flow import Plan, gathers, naps, nested, research
from tests.acceptance.agents.stepping import MEBIBYTE, retried, timed_out
from tests.acceptance.conftest import SHARED_MODULES
from tests.acceptance.site import RUN_SECONDS, Site
from tests.services.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(params=["rabbitmq", "redis"])
def served(request: pytest.FixtureRequest, make_site: Callable[..., Site], postgres_database: str) -> Site:
    """A site on PostgreSQL and one of the brokers, with a worker."""
    broker_url: str = request.getfixturevalue(f"{request.param}_url")
    made = make_site(database_url=postgres_database, broker_url=broker_url)
    made.upgrade()
    made.worker(*SHARED_MODULES)
    return made


@pytest.mark.service
def test_flows_keys_cancellation_and_large_values(served: Site) -> None:
    client = served.client
    runs = [
        client.submit(gathers, {"count": 5}),
        client.submit(nested, {"levels": 4}),
        client.submit(retried, {"attempt": 2}),
        client.submit(timed_out),
        client.submit(naps, {"seconds": 1.0}),
        client.submit("carries", {"size": 20 * MEBIBYTE}),
    ]
    cancelled = client.submit("parent_of_endless", {"name": "engines"})
    for child in (1, 2):
        served.wait_noted(f"engines child {child} began")
    cancelled.cancel()
    results = [run.result(RUN_SECONDS) for run in runs]
    assert results[:3] == [[0, 2, 4, 6, 8], 4, 2]
    assert results[3][-1] == "2" and results[4][0] == 4 and results[5] == 20 * MEBIBYTE - 2
    with pytest.raises(RunCancelled):
        cancelled.result(RUN_SECONDS)
    served.wait_noted("engines child 2 tidied up")

    first = client.submit("leaf", {"number": 1}, key="k")
    assert client.submit("leaf", {"number": 1}, key="k").id == first.id
    with pytest.raises(KeyConflict):
        client.submit("leaf", {"number": 2}, key="k")


@pytest.mark.service
def test_submissions_by_the_broker_alone(served: Site) -> None:
    """RabbitMQ must accept how a stock producer declares the queue."""
    producer = Celery("shop", broker=served.settings["broker_url"])
    try:

        def send(**arguments: object) -> str:
            task_id = str(uuid.uuid4())
            producer.send_task("paidonce.submit", kwargs=arguments, queue="paidonce.submit", task_id=task_id)
            return task_id

        good = send(agent=research.name, input={"question": "a b"}, tags={"é": "ü"})
        bad = send(agent="leaf", input={"number": "many"})
        odd = send(agent="x" * 500, input={"half a pair": "\ud800", "nul": "\x00"}, tags={"nul": "\x00"})
    finally:
        producer.close()

    def state(name: str) -> str:
        try:
            return served.client.run(name).state
        except NotFound:
            return ""

    for name, expected in ((good, "succeeded"), (bad, "failed"), (odd, "failed")):
        wait_until(lambda name=name, expected=expected: state(name) == expected, f"{name} {expected}", RUN_SECONDS)
    run = served.client.run(good)
    assert run.result(1) == Plan(queries=["a", "b"], notes={"words": 2, "depth": 1})
    assert json.loads(run.view().input or b"") == {"question": "a b"}
    assert run.view().tags == {"é": "ü"}
    with pytest.raises(RunFailed, match="number"):
        served.client.run(bad).result(1)


@pytest.mark.service
def test_a_killed_workers_step_is_taken_over(served: Site) -> None:
    run = served.client.submit("draws_around_a_kill", {})
    served.wait_noted("began between the draws")
    served.workers[0].kill()
    served.worker(*SHARED_MODULES)
    assert len(run.result(RUN_SECONDS)) == 2
    (step,) = run.steps()
    assert (step.attempts, step.lost) == (2, 1)


@pytest.mark.service
@pytest.mark.parametrize("key", ["nul \x00", "half a pair \ud800"], ids=["nul", "surrogate"])
def test_values_with_odd_characters_are_refused_or_kept(
    make_site: Callable[..., Site], postgres_database: str, key: str
) -> None:
    """JSON can carry what PostgreSQL's texts cannot: a clear refusal for names, and values come back as they were."""
    from paidonce import InvalidInput

    site = make_site(database_url=postgres_database)
    site.upgrade()
    with pytest.raises(InvalidInput, match="key"):
        site.client.submit("leaf", {"number": 1}, key=key)
    with pytest.raises(InvalidInput, match="tag 't'"):
        site.client.submit("later", {"text": key}, tags={"t": key})
    run = site.client.submit("later", {"text": key}, tags={"t": "naïve 'quoted' \n ☃"})
    assert run.view().tags == {"t": "naïve 'quoted' \n ☃"}
    assert json.loads(run.view().input or b"") == {"text": key}
    run.cancel()
