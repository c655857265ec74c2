"""Two teams on one store and one broker: each executes its own runs, with its own code, and nobody else's."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from celery import Celery
from sqlalchemy import text

from paidonce.broker.celery_app import build_celery_app
from paidonce.client import Client
from paidonce.run_handle import RunHandle
from paidonce_models.errors import NotFound
from paidonce_models.queues import broker_queue_name
from tests.acceptance.site import RUN_SECONDS, Site, WorkerProcess
from tests.services.waiting import wait_until

pytestmark = pytest.mark.neighbour

TEAM = """
import asyncio
from paidonce import agent, step

@step
def write(number: int) -> str:
    return "{team}"

@step(queue="{queue}")
def sign(number: int) -> str:
    return "{team}"

@agent
async def report(count: int) -> list[str]:
    signatures = await asyncio.gather(*(sign(number) for number in range(count)))
    return [await write(number) for number in range(count)] + signatures
"""
RUNS, COUNT = 8, 3
ENOUGH_EVENTS = 4
"""Each worker sends a heartbeat every two seconds, so by then both would have been seen."""
NAMES = {
    "sqlite-embedded": ("default", "shop"),
    "postgresql-rabbitmq": ("a", "a.b"),
    "postgresql-redis": ("x", "default"),
}
QUEUES = ("b.c", "c")
"""Joined by dots they are one name: ``a`` and ``b.c``, ``a.b`` and ``c``."""


@dataclass
class Team:
    """A namespace with its module, which has the same names as the other team's."""

    site: Site
    namespace: str
    queue: str

    def worker(self, *arguments: str) -> WorkerProcess:
        """One of its workers, for both of its queues unless it is told otherwise."""
        return self.site.own_worker("team", arguments=arguments or ["--queues", f"default,{self.queue}"])

    @property
    def client(self) -> Client:
        """One that holds no code."""
        return self.site.stranger

    def on_broker(self, queue: str) -> str:
        """The broker's name of a queue."""
        return broker_queue_name(self.namespace, queue)

    def submit(self, number: int = 0, count: int = COUNT) -> RunHandle:
        """A run, under a key that the other team uses, too."""
        return self.client.submit("report", {"count": count}, key=f"report-{number}")


@pytest.fixture(
    params=[
        "sqlite-embedded",
        pytest.param("postgresql-rabbitmq", marks=pytest.mark.service),
        pytest.param("postgresql-redis", marks=pytest.mark.service),
    ]
)
def teams(request: pytest.FixtureRequest, make_site: Callable[..., Site]) -> tuple[Team, Team]:
    """Two teams on one store and one broker; no worker runs yet."""
    store, broker = request.param.split("-")
    settings: dict[str, str] = {}
    if store == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgres_database")
        settings["broker_url"] = request.getfixturevalue(f"{broker}_url")
    made: list[Team] = []
    for namespace, queue in zip(NAMES[request.param], QUEUES, strict=True):
        site = make_site(**settings, namespace=namespace)
        if not made and store == "postgresql":
            site.upgrade()
        if store == "sqlite":
            settings = {"home": site.settings["home"]}
        (site.folder / "team.py").write_text(TEAM.format(team=namespace, queue=queue))
        made.append(Team(site=site, namespace=namespace, queue=queue))
    return made[0], made[1]


@pytest.fixture
def producer(teams: tuple[Team, Team]) -> Iterator[Celery]:
    """A stock Celery app that knows the broker alone."""
    with closing(Celery("stock", broker=teams[0].site.broker_url, set_as_current=False)) as app:
        yield app


def test_each_run_is_executed_by_its_own_team_alone(teams: tuple[Team, Team]) -> None:
    workers = {team.namespace: [team.worker(), team.worker()] for team in teams}
    runs = {team.namespace: [team.submit(number) for number in range(RUNS)] for team in teams}
    for team in teams:
        for run in runs[team.namespace]:
            assert run.result(RUN_SECONDS) == [team.namespace] * (2 * COUNT)
    with teams[0].client.database.read() as connection:
        attempts = connection.execute(text("SELECT namespace, worker, outcome FROM attempts")).all()
    assert len(attempts) == 2 * RUNS * 2 * COUNT and {attempt.outcome for attempt in attempts} == {"accepted"}
    for attempt in attempts:
        pids = [worker.process.pid for worker in workers[attempt.namespace]]
        assert int(attempt.worker.split(":")[1]) in pids
    for each in (*workers[teams[0].namespace], *workers[teams[1].namespace]):
        assert "came to a worker of namespace" not in each.log


def test_messages_of_the_other_team_are_dropped_and_its_own_workers_go_on(
    teams: tuple[Team, Team], producer: Celery
) -> None:
    ours, theirs = teams
    worker = ours.worker()
    stopped = theirs.worker("--queues", "default")
    run = theirs.submit(count=1)
    theirs.site.wait_state(run, "running")
    wait_until(lambda: [step.state for step in run.steps()] == ["scheduled"], "its step waits aside", RUN_SECONDS)
    assert stopped.stop() == 0
    unread = theirs.submit(number=1, count=1)
    for queue in ("default", ours.queue):
        for _ in range(3):
            address = {"run": run.id, "agent": "report"}
            put(producer, ours.on_broker(queue), "team.sign", **address, step=1)
            put(producer, ours.on_broker(queue), "paidonce.advance", **address)
            put(producer, ours.on_broker(queue), "paidonce.advance", run=unread.id)
            put(producer, ours.on_broker(queue), "team.unheard", **address, step=1)
    told = f"of namespace {theirs.namespace} came to a worker of namespace {ours.namespace} and was dropped"
    wait_until(lambda: f"run {run.id} {told}" in worker.log, "the worker says so", RUN_SECONDS)
    wait_until(lambda: "team.unheard" in worker.log, "the worker drops what it does not hold", RUN_SECONDS)
    assert ours.submit(number=2).result(RUN_SECONDS) == [ours.namespace] * (2 * COUNT), "it has done with them by now"
    assert [(step.state, step.attempts) for step in run.steps()] == [("scheduled", 0)]
    assert (unread.state, unread.steps()) == ("pending", [])
    assert worker.log.count(told) <= 6, "one line for each kind, then counts"
    theirs.worker()
    assert run.result(RUN_SECONDS) == [theirs.namespace] * 2
    assert unread.result(RUN_SECONDS) == [theirs.namespace] * 2


def who_answers(app: Celery) -> set[str]:
    def answered() -> set[str]:
        return {name.partition("@")[0] for answer in app.control.ping(timeout=2) for name in answer}

    return wait_until(answered, "somebody answers", RUN_SECONDS)


def test_broadcasts_and_events_stay_within_the_team(teams: tuple[Team, Team]) -> None:
    ours, theirs = teams
    mine, other = ours.worker(), theirs.worker()
    with closing(app_of(ours)) as app:
        assert who_answers(app) == {f"paidonce-{mine.process.pid}"}
        assert senders_of_events(app, theirs) == {f"paidonce-{mine.process.pid}"}
        app.control.rate_limit("team.write", "1/h")
        app.control.shutdown()
    assert mine.process.wait(RUN_SECONDS) == 0
    with closing(app_of(theirs)) as app:
        assert who_answers(app) == {f"paidonce-{other.process.pid}"}
    assert other.process.poll() is None
    assert theirs.submit().result(RUN_SECONDS) == [theirs.namespace] * (2 * COUNT)


def test_a_submission_belongs_to_the_namespace_of_its_queue(teams: tuple[Team, Team], producer: Celery) -> None:
    ours, theirs = teams
    ours.worker()
    theirs.worker()

    def send(team: Team, **arguments: object) -> str:
        task_id = str(uuid.uuid4())
        kwargs = {"agent": "report", "input": {"count": 1}, **arguments}
        producer.send_task("paidonce.submit", kwargs=kwargs, queue=team.on_broker("submit"), task_id=task_id)
        return task_id

    good = {team.namespace: send(team) for team in teams}
    named = send(theirs, namespace=theirs.namespace)
    misled = send(ours, namespace=theirs.namespace)
    for team in teams:
        assert found(team, good[team.namespace]).result(RUN_SECONDS) == [team.namespace] * 2
    assert found(theirs, named).result(RUN_SECONDS) == [theirs.namespace] * 2
    refused = found(ours, misled).view()
    assert refused.state == "failed" and refused.error is not None
    assert repr(theirs.on_broker("submit")) in str(refused.error["message"])
    for name in (misled, good[ours.namespace]):
        with pytest.raises(NotFound):
            theirs.client.run(name)


def test_nobody_reads_or_ends_the_other_teams_runs(teams: tuple[Team, Team]) -> None:
    ours, theirs = teams
    run = theirs.submit()
    stolen = RunHandle(ours.client, run.id)
    acts: list[Callable[[], object]] = [
        lambda: ours.client.run(run.id),
        lambda: ours.client.cancel(run.id),
        lambda: ours.client.resolve(run.id, 1),
        stolen.view,
        stolen.cancel,
        lambda: stolen.state,
        lambda: stolen.result(timeout=1),
        lambda: stolen.resolve_failed(1),
        lambda: stolen.resolve_succeeded(1, "mine"),
    ]
    for act in acts:
        with pytest.raises(NotFound, match=f"in namespace '{ours.namespace}'"):
            act()
    assert stolen.steps() == [] and ours.client.runs() == []
    assert run.state == "pending" and run.view().error is None
    assert ours.submit().id != run.id, "one key is another run in each namespace"


def put(producer: Celery, queue: str, task: str, **arguments: object) -> None:
    """A message of any kind straight into a queue that is there."""
    made = producer.amqp.as_task_v2(str(uuid.uuid4()), task, (), arguments)
    with producer.producer_or_acquire() as sender:
        sender.publish(made.body, exchange="", routing_key=queue, serializer="json", headers=made.headers)


def senders_of_events(app: Celery, theirs: Team) -> set[str]:
    """Whose events Flower would see, with this app, while both teams' workers send theirs."""
    seen: list[str] = []
    with closing(app_of(theirs)) as other:
        other.control.enable_events()
    app.control.enable_events()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection)

        def note(event: dict[str, str]) -> None:
            seen.append(event["hostname"])
            receiver.should_stop = len(seen) >= ENOUGH_EVENTS

        receiver.handlers = {"*": note}
        receiver.capture(limit=None, timeout=RUN_SECONDS)
    return {name.split("@")[0] for name in seen}


def app_of(team: Team) -> Celery:
    """The app with which a team's operators control its workers."""
    return build_celery_app(team.client.settings)


def found(team: Team, name: str) -> RunHandle:
    """The run of a submission, once a worker has taken it."""

    def look() -> RunHandle | None:
        try:
            return team.client.run(name)
        except NotFound:
            return None

    handle = wait_until(look, f"{name} is taken", RUN_SECONDS)
    assert handle is not None
    return handle


def test_submissions_that_nobody_takes_any_more_are_told_of(make_site: Callable[..., Site]) -> None:
    """Before queues had a namespace in their names, the workers of all of them took submissions from one."""
    site = make_site(namespace="shop")
    with closing(Celery("stock", broker=site.broker_url, set_as_current=False)) as producer:
        producer.send_task("paidonce.submit", kwargs={"agent": "report"}, queue="paidonce.submit")
    (site.folder / "team.py").write_text(TEAM.format(team="shop", queue="c"))
    worker = site.own_worker("team")
    wait_until(
        lambda: (
            "1 submission(s) wait in the queue paidonce.submit" in worker.log and "paidonce@shop:submit" in worker.log
        ),
        "the worker says so",
        RUN_SECONDS,
    )
