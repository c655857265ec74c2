"""``paidonce drill outage``: many agents while their tool is down, with the circuit breaker and without it.

Owns the course of one side: starts a fleet, takes the tool down, submits, waits, and counts what reached the tool's own
server. ``outage_report`` judges what must hold.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Select, bindparam, func, select

from paidonce.client import Client
from paidonce.drill import outage_agents
from paidonce.drill.broker_traces import remove_broker_traces
from paidonce.drill.evidence import UNFINISHED_RUNS
from paidonce.drill.fleet import CountingServerProcess, Fleet
from paidonce.embedded import stop_embedded
from paidonce.policies import BreakerPolicy
from paidonce.run_handle import RunHandle
from paidonce.settings import load_settings
from paidonce.store_access import open_store
from paidonce_models.database.schema import upgrade
from paidonce_models.privacy.private_files import make_private_folder
from paidonce_models.states import RunState
from paidonce_models.store.columns import Call, Run, Worker, col, rows

POLL_SECONDS = 0.05
START_SECONDS = 60.0
QUESTIONS = 3
BYSTANDER_STEPS = 20
BYSTANDERS = 4
LATENCY_MS = 50.0
BREAKER = BreakerPolicy(open_base_seconds=5.0, open_cap_seconds=10.0)
"""Shorter than the defaults, so that the drill takes a minute."""
POLICIES = f"""\
policies:
  lookup:
    retry: {{max_attempts: 4, base: 200ms, cap: 2s, retry_on: [timeout, connection, "http:5xx"]}}
    breaker: {{open_for: {{base: {BREAKER.open_base_seconds:g}s, cap: {BREAKER.open_cap_seconds:g}s}}}}
targets:
  look_up: lookup
"""

_REGISTERED = (
    select(func.count())
    .select_from(rows(Worker))
    .where(col(Worker.namespace) == bindparam("namespace"), col(Worker.stopped_at_us).is_(None))
)
_FINISHED_AT = select(func.min(col(Run.finished_at_us))).where(
    col(Run.namespace) == bindparam("namespace"),
    col(Run.agent) == "researcher",
    col(Run.state) == RunState.SUCCEEDED.value,
    col(Run.finished_at_us) > bindparam("after_us"),
)
_SPENT = select(func.coalesce(func.sum(col(Call.cost_nanousd)), 0)).where(col(Call.namespace) == bindparam("namespace"))


@dataclass(frozen=True, kw_only=True)
class OutageDrill:
    """The options. ``database_url`` and ``broker_url`` ``None``: SQLite and the embedded broker in a fresh folder."""

    runs: int = 50
    workers: int = 4
    concurrency: int = 2
    seconds: float = 60.0
    limit_seconds: float = 300.0
    database_url: str | None = None
    broker_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Side:
    """The observations with the breaker, or without it. Counts are those of the tool's and the model's own server."""

    has_breaker: bool
    runs: int
    answered: int
    """Runs that returned their full result."""
    tool_calls_while_down: int
    model_calls_about_failures: int
    """While the tool was down: model calls that were about a failure."""
    model_calls: int
    spent_nanousd: int
    first_finished_seconds: float | None
    """Seconds after the tool was back until the first run had finished."""
    all_finished_seconds: float | None
    bystander_before_seconds: float
    bystander_while_down_seconds: float
    """Median seconds of a run that never needs the tool."""


def run_side(drill: OutageDrill, *, has_breaker: bool, say: Callable[[str], None], folder: Path | None = None) -> Side:
    """Play the outage once. Leaves no process behind. ``folder`` keeps logs and store; ``None`` deletes them."""
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paidonce-drill-")))
        make_private_folder(folder)
        policies = folder / "paidonce.yaml"
        policies.write_text(POLICIES, encoding="utf-8")
        given = {
            "home": str(folder / "home"),
            "namespace": f"drill-{uuid.uuid4().hex[:12]}",
            "policies": str(policies),
            "breakers": "on" if has_breaker else "off",
        }
        given |= {} if drill.database_url is None else {"database_url": drill.database_url}
        given |= {} if drill.broker_url is None else {"broker_url": drill.broker_url}
        settings = load_settings(**given)
        make_private_folder(settings.home, is_ours=True)
        database = open_store(settings)
        upgrade(database)
        database.close()
        server = CountingServerProcess(folder)
        stack.callback(server.stop)
        if drill.broker_url is None:
            stack.callback(stop_embedded, settings.home)
        else:
            stack.callback(remove_broker_traces, settings)
        fleet = Fleet(
            environment={f"PAIDONCE_{name.upper()}": value for name, value in given.items()},
            folder=folder,
            size=drill.workers,
            concurrency=drill.concurrency,
            modules=outage_agents.__name__,
        )
        stack.callback(fleet.stop)
        client = Client(settings)
        stack.callback(client.database.close)
        return _Course(drill, client, server, say).play(has_breaker)


class _Course:
    def __init__(
        self, drill: OutageDrill, client: Client, server: CountingServerProcess, say: Callable[[str], None]
    ) -> None:
        self._drill = drill
        self._client = client
        self._server = server
        self._say = say

    def play(self, has_breaker: bool) -> Side:
        """From the first worker to the last run."""
        self._wait(lambda: self._count(_REGISTERED) >= self._drill.workers, START_SECONDS)
        before = self._bystanders("before")
        began, ends = self._server.begin_outage(self._drill.seconds)
        self._say(f"the tool is down for {self._drill.seconds:g} s; {self._drill.runs} runs are submitted")
        given = {"server": self._server.url, "questions": QUESTIONS, "latency_ms": LATENCY_MS}
        handles = [
            self._client.submit(outage_agents.researcher, given, key=f"researcher-{number}")
            for number in range(self._drill.runs)
        ]
        while_down = self._bystanders("while-down")
        self._say(
            f"others took {statistics.median(while_down):.1f} s meanwhile, {statistics.median(before):.1f} s before"
        )
        time.sleep(max(0.0, ends - time.time()))
        self._say("the tool is back")
        finished = self._wait(lambda: self._count(UNFINISHED_RUNS) == 0, self._drill.limit_seconds)
        ended = time.time()
        requests = self._server.requests()
        spent = self._read(_SPENT)
        first = self._read(_FINISHED_AT, after_us=int(ends * 1e6))
        return Side(
            has_breaker=has_breaker,
            runs=self._drill.runs,
            answered=sum(_answers(handle) == QUESTIONS for handle in handles),
            tool_calls_while_down=sum(
                request["path"] == "/tool" and began <= _arrived(request) < ends for request in requests
            ),
            model_calls_about_failures=sum(
                bool(request.get("failures")) and began <= _arrived(request) < ends for request in requests
            ),
            model_calls=sum(request["path"] == "/call" and "failures" in request for request in requests),
            spent_nanousd=int(spent or 0),
            first_finished_seconds=None if first is None else first / 1e6 - ends,
            all_finished_seconds=ended - ends if finished else None,
            bystander_before_seconds=statistics.median(before),
            bystander_while_down_seconds=statistics.median(while_down),
        )

    def _bystanders(self, name: str) -> Sequence[float]:
        """The durations of runs that never need the tool, one after the other."""
        taken = []
        for number in range(BYSTANDERS):
            given = {"server": self._server.url, "steps": BYSTANDER_STEPS, "latency_ms": LATENCY_MS}
            began = time.monotonic()
            self._client.submit(outage_agents.bystander, given, key=f"{name}-{number}").result(timeout=120)
            taken.append(time.monotonic() - began)
        return taken

    def _wait(self, predicate: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _count(self, query: Select[int]) -> int:
        return self._read(query) or 0

    def _read(self, query: Select[int | None] | Select[int], **parameters: object) -> int | None:
        parameters["namespace"] = self._client.settings.namespace
        with self._client.database.read() as connection:
            return connection.execute(query, parameters).scalar_one()


def _answers(handle: RunHandle) -> int | None:
    return int(handle.result(timeout=0)) if handle.state == "succeeded" else None


def _arrived(request: Mapping[str, object]) -> float:
    return float(str(request["arrived"]))
