"""A scenario: a program, a fleet, and everything that happens to it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from unittest.mock import patch

from hypothesis import strategies as st

from paidonce.runs import log_feed
from paidonce_models.budgets import Budget, Period, Unit
from paidonce_models.payloads.encoding import canonical_sha256, decode_json
from paidonce_models.payloads.payload_parts import split
from paidonce_models.queues import DEFAULT_QUEUE
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.queries import RunView, read_run
from paidonce_models.store.runs.submission import NewRun, submit_run
from tests.simulation.fleet import Fleet
from tests.simulation.invariants import check_store
from tests.simulation.programs import (
    PRICE_NANOUSD,
    Boom,
    Program,
    any_programs,
    interpret,
    meaning,
    meaningful_programs,
)
from tests.simulation.replaying import check_replay
from tests.simulation.schedule import Schedule, schedules
from tests.simulation.store import NAMESPACE, SimulatedDatabase


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What hypothesis draws and shrinks."""

    program: Program
    schedule: Schedule
    workers: int = 1
    without_agents: int = 0
    cache_size: int = 100
    events_at_once: int = 10_000
    cancel_after: int | None = None
    budgets: tuple[Budget, ...] = ()


budgets = st.lists(
    st.builds(
        Budget,
        subject=st.sampled_from(["all", f"agent={interpret.name}"]),
        period=st.sampled_from([Period.RUN, Period.MONTH]),
        unit=st.just(Unit.USD),
        amount=st.integers(1, 3).map(lambda steps: steps * PRICE_NANOUSD),
    )
    | st.builds(
        Budget,
        subject=st.just("all"),
        period=st.just(Period.RUN),
        unit=st.just(Unit.STEPS),
        amount=st.integers(1, 3),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda budget: (budget.subject, budget.period, budget.unit),
).map(tuple)


def scenarios(
    programs: st.SearchStrategy[Program], *, cancel_after: st.SearchStrategy[int | None]
) -> st.SearchStrategy[Scenario]:
    """Scenarios of these programs."""
    return st.builds(
        Scenario,
        program=programs,
        schedule=schedules,
        workers=st.integers(2, 3),
        without_agents=st.integers(0, 1),
        cache_size=st.sampled_from([1, 2, 100]),
        events_at_once=st.sampled_from([1, 3, 10_000]),
        cancel_after=cancel_after,
        budgets=st.just(()) | budgets,
    )


undisturbed_scenarios = st.builds(Scenario, program=meaningful_programs, schedule=st.builds(Schedule, st.just(b"")))
meaningful_scenarios = scenarios(meaningful_programs, cancel_after=st.none())
any_scenarios = scenarios(any_programs, cancel_after=st.none() | st.integers(0, 30))


def play(database: SimulatedDatabase, scenario: Scenario) -> RunView:
    """Play a scenario to its end and check what holds for all; the root run as it ended."""
    with ExitStack() as stack:
        stack.enter_context(database.scenario())
        stack.enter_context(patch.object(log_feed, "EVENTS_AT_ONCE", scenario.events_at_once))
        fleet = Fleet(
            database,
            Schedule(scenario.schedule.decisions),
            workers=scenario.workers,
            cache_size=scenario.cache_size,
            without_agents=scenario.without_agents,
            budgets=scenario.budgets,
        )
        stack.callback(fleet.close)
        run_id = submit(database, fleet, scenario.program)
        if scenario.cancel_after is not None:
            fleet.go_on(turns=scenario.cancel_after)
            fleet.cancel(run_id)
        fleet.go_on()
        with database.read() as connection:
            check_store(connection, fleet)
            check_replay(connection)
            return read_run(connection, NAMESPACE, run_id)


def submit(database: SimulatedDatabase, fleet: Fleet, program: Program) -> str:
    """A producer submits the program; the submission's message is on its way."""
    data = interpret.parameters.encode_arguments((program,), {})
    new = NewRun(
        namespace=NAMESPACE,
        agent=interpret.name,
        input=split(data),
        input_sha256=canonical_sha256(decode_json(bytes(data))),
        queue=DEFAULT_QUEUE,
    )
    database.before, hook = (lambda: None), database.before
    submitted = database.transact(lambda connection: submit_run(connection, new))
    database.before = hook
    fleet.messages.append(
        AdvanceMessage(run_id=submitted.run_id, agent=interpret.name, queue=DEFAULT_QUEUE, priority=5)
    )
    return submitted.run_id


def check_meaning(program: Program, run: RunView) -> None:
    """The run came to what the program means."""
    try:
        expected = meaning(program)
    except Boom:
        assert run.state == "failed"
        assert run.error == {"type": "Boom", "code": "user_error", "message": "boom"}
        return
    assert run.state == "succeeded", run.error
    assert run.result is not None
    assert json.loads(run.result) == expected
