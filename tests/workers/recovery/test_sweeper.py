"""The sweeper on a clock that the test moves: what it takes back, sends again, wakes and blocks, and when not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text

import paidonce_workers.recovery.sweeper as sweeper_module
from paidonce import StepFailed, agent, record_usage, step
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreUnreachable
from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.recovery.workers import worker_seen
from paidonce_models.store.steps.claims import claim_step
from paidonce_models.store.steps.leases import LeaseKey, renew_leases
from paidonce_workers.recovery.sweeper import Sweeper
from tests.workers.stand import LEASE_SECONDS, Stand

LEASE_US = int(LEASE_SECONDS * 1e6)


@step(name="swept.work", max_lost=3)
def work() -> str:
    return "done"


@step(name="swept.once", delivery="at_most_once")
def once() -> str:
    return "done"


@agent(name="swept")
async def swept() -> str:
    try:
        return await work()
    except StepFailed as error:
        return error.error_type


@agent(name="swept-once")
async def swept_once() -> str:
    return await once()


@agent(name="swept-sleeper")
async def sleeper() -> str:
    await asyncio.sleep(100)
    return "slept"


@pytest.fixture
def stand() -> Iterator[Stand]:
    """The machine's clock is the store's."""
    with Stand() as made:
        made.now_seconds = lambda: made.clock.now_us() / 1e6
        yield made


def claim(stand: Stand, run_id: str, worker: str = "worker-1") -> LeaseKey:
    """A worker takes step 1 and is not heard of again."""
    taken = stand.database.transact(
        lambda connection: claim_step(
            connection, namespace="default", run_id=run_id, position=1, worker=worker, lease_us=LEASE_US
        )
    )
    assert taken is not None
    return LeaseKey(run_id, 1, taken.attempt)


def asked_for(stand: Stand, declaration: Any = swept, *held: Any) -> str:
    """A run whose first step is scheduled; its messages are lost."""
    run_id = stand.submit(declaration)
    stand.worker(declaration, *held).serve(stand.publisher.messages.popleft())
    stand.publisher.take()
    return run_id


def see_worker(stand: Stand) -> None:
    """What the heartbeat of the registered worker says."""
    stand.database.transact(lambda connection: worker_seen(connection, "worker-1"))


def rounds(stand: Stand, sweeper: Sweeper, seconds: float, every: float = 2.0) -> None:
    """Sweep for so long on the clock."""
    for _ in range(int(seconds / every)):
        stand.pass_time(every)
        sweeper.sweep()


def test_a_lease_is_taken_back_once_it_has_run_out_and_not_before(stand: Stand) -> None:
    run_id = asked_for(stand)
    claim(stand, run_id)
    sweeper = stand.sweeper()
    rounds(stand, sweeper, 10)
    assert stand.attempts(run_id)[0].outcome is None
    rounds(stand, sweeper, 2)
    (attempt,) = stand.attempts(run_id)
    assert attempt.outcome == "lost"
    assert attempt.error is not None and "no heartbeat from the worker for 10 s" in str(attempt.error["message"])
    (message,) = stand.publisher.take()
    assert isinstance(message, StepMessage) and (message.run_id, message.position) == (run_id, 1)
    (shown,) = stand.steps(run_id)
    assert (shown.state, shown.lost) == ("scheduled", 1)


def test_a_lease_that_is_renewed_is_left_alone(stand: Stand) -> None:
    run_id = asked_for(stand)
    key = claim(stand, run_id)
    sweeper = stand.sweeper()
    for _ in range(20):
        rounds(stand, sweeper, 6)
        renewed = stand.database.transact(
            lambda connection: renew_leases(connection, worker="worker-1", held=[key], lease_us=LEASE_US)
        )
        assert renewed == {key: "running"}
    assert stand.attempts(run_id)[0].outcome is None


class Outage:
    """The store as a sweeper sees it: away for some of its rounds."""

    def __init__(self, stand: Stand, sweeper: Sweeper, away: range, rounds: int) -> None:
        self._stand = stand
        self._sweep = sweeper.sweep
        self._away = away
        self._rounds = rounds
        self.round = 0

    def sweep(self) -> None:
        if self.round in self._away:
            raise StoreUnreachable("away")
        self._sweep()

    def wait(self, seconds: float) -> bool:
        self._stand.pass_time(seconds)
        self.round += 1
        return self.round >= self._rounds


def serve(
    stand: Stand, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, *, rounds: int, away: range = range(0)
) -> None:
    """The sweeper's own loop, for so many rounds."""
    outage = Outage(stand, sweeper, away, rounds)
    with monkeypatch.context() as patched:
        patched.setattr(sweeper, "sweep", outage.sweep)
        patched.setattr(sweeper, "_wait", outage.wait)
        sweeper._serve()


def test_after_a_store_error_it_waits_a_full_lease(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could renew during an outage: a failover must not fence the whole fleet."""
    run_id = asked_for(stand)
    claim(stand, run_id)
    sweeper = stand.sweeper()
    serve(stand, sweeper, monkeypatch, rounds=12, away=range(4, 8))  # away until the 16th second
    assert stand.attempts(run_id)[0].outcome is None, "24 s: the lease is over, the outage's end 8 s ago"
    serve(stand, sweeper, monkeypatch, rounds=3)
    assert stand.attempts(run_id)[0].outcome == "lost"


def test_a_bug_in_a_sweep_does_not_end_it(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = asked_for(stand)
    claim(stand, run_id)
    sweeper = stand.sweeper()
    failures = iter([ValueError("a bug")])
    original = sweeper.sweep

    def sweep() -> None:
        for failure in failures:
            raise failure
        original()

    outage = Outage(stand, sweeper, range(0), 12)
    with monkeypatch.context() as patched:
        patched.setattr(sweeper, "sweep", sweep)
        patched.setattr(sweeper, "_wait", outage.wait)
        sweeper._serve()
    assert stand.attempts(run_id)[0].outcome == "lost"


def test_after_a_gap_of_its_own_it_waits_a_full_lease(stand: Stand) -> None:
    """A suspended machine has slept through its own heartbeats as well."""
    run_id = asked_for(stand)
    claim(stand, run_id)
    sweeper = stand.sweeper()
    rounds(stand, sweeper, 4)
    stand.pass_time(3_600)
    sweeper.sweep()
    rounds(stand, sweeper, 8)
    assert stand.attempts(run_id)[0].outcome is None
    rounds(stand, sweeper, 4)
    assert stand.attempts(run_id)[0].outcome == "lost"


class ServerWithAnAge:
    """A database that says it is a server."""

    is_sqlite = False

    def __init__(self, database: Database) -> None:
        self.transact = database.transact
        self.read = database.read


@pytest.mark.parametrize(("age_seconds", "is_careful"), [(3.0, True), (30.0, False)])
def test_a_server_younger_than_a_lease_makes_a_new_sweeper_careful(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, age_seconds: float, is_careful: bool
) -> None:
    """A worker that has just started cannot know of an outage, but the server's age tells of one."""
    run_id = asked_for(stand)
    claim(stand, run_id)
    stand.pass_time(11)
    monkeypatch.setattr(sweeper_module, "_SERVER_AGE", text(f"SELECT {age_seconds}"))
    sweeper = stand.sweeper(database=ServerWithAnAge(stand.database))
    sweeper.sweep()
    assert stand.attempts(run_id)[0].outcome == (None if is_careful else "lost")
    rounds(stand, sweeper, 12)
    assert stand.attempts(run_id)[0].outcome == "lost"


def test_a_living_process_gets_a_lease_before_its_step_is_reclaimed(stand: Stand) -> None:
    run_id = asked_for(stand)
    key = claim(stand, run_id)
    sweeper = stand.sweeper(living=["worker-1"])
    stand.database.transact(
        lambda c: c.execute(text("CREATE TRIGGER no BEFORE UPDATE ON steps BEGIN SELECT RAISE(ABORT, 'full'); END"))
    )
    rounds(stand, sweeper, 4 * LEASE_SECONDS)  # the store takes its other writes: it has no reason to be careful
    stand.database.transact(lambda c: c.execute(text("DROP TRIGGER no")))
    rounds(stand, sweeper, LEASE_SECONDS)
    assert stand.attempts(run_id)[0].outcome is None
    renewed = stand.database.transact(
        lambda c: renew_leases(c, worker="worker-1", held=[key], lease_us=LEASE_SECONDS * 1_000_000)
    )
    assert renewed == {key: "running"}
    rounds(stand, sweeper, 3 * LEASE_SECONDS)
    assert stand.attempts(run_id)[0].outcome == "lost", "nobody renews it, and the store takes writes"


def test_a_frozen_process_keeps_its_step_for_its_time_and_not_longer(stand: Stand) -> None:
    run_id = asked_for(stand)
    claim(stand, run_id)
    sweeper = stand.sweeper(living=["worker-1"], frozen_seconds=60.0)
    rounds(stand, sweeper, 58)
    assert stand.attempts(run_id)[0].outcome is None
    rounds(stand, sweeper, 8)
    assert stand.attempts(run_id)[0].outcome == "lost"


def test_a_new_leader_grants_once_more(stand: Stand) -> None:
    run_id = asked_for(stand)
    claim(stand, run_id)
    first = stand.sweeper(living=["worker-1"], frozen_seconds=60.0)
    rounds(stand, first, 52)
    second = stand.sweeper("sweeper-2", living=["worker-1"], frozen_seconds=60.0)
    rounds(stand, second, 40)
    assert stand.attempts(run_id)[0].outcome is None
    rounds(stand, second, 30)
    assert stand.attempts(run_id)[0].outcome == "lost"


def test_a_reclaim_that_is_refused_costs_no_second_grant(stand: Stand) -> None:
    run_id = asked_for(stand)
    claim(stand, run_id)
    sweeper = stand.sweeper(living=["worker-1"], frozen_seconds=60.0)
    rounds(stand, sweeper, 58)
    stand.database.transact(
        lambda c: c.execute(text("CREATE TRIGGER no BEFORE INSERT ON avoided BEGIN SELECT RAISE(ABORT, 'full'); END"))
    )
    rounds(stand, sweeper, 8)
    assert stand.attempts(run_id)[0].outcome is None
    stand.database.transact(lambda c: c.execute(text("DROP TRIGGER no")))
    rounds(stand, sweeper, 4)
    assert stand.attempts(run_id)[0].outcome == "lost"


def test_after_max_lost_the_agent_is_told(stand: Stand) -> None:
    run_id = asked_for(stand)
    sweeper = stand.sweeper()
    for _ in range(3):
        claim(stand, run_id)
        rounds(stand, sweeper, 12)
    assert [attempt.outcome for attempt in stand.attempts(run_id)] == ["lost"] * 3
    (shown,) = stand.steps(run_id)
    assert shown.state == "failed"
    assert shown.error is not None and "raise max_lost=" in str(shown.error["message"])
    stand.publisher.take()
    stand.worker(swept, work).executor.advance(run_id)
    assert stand.run(run_id).result == b'"AttemptsLost"'


def test_a_loss_in_company_counts_against_nobody(stand: Stand) -> None:
    """Also against the one whose lease runs out last, when nobody else's is left."""
    runs = [asked_for(stand), asked_for(stand)]
    sweeper = stand.sweeper()
    for _ in range(4):
        claim(stand, runs[0], worker="first-and-second")
        stand.pass_time(3)
        claim(stand, runs[1], worker="first-and-second")
        rounds(stand, sweeper, 16)
    stand.publisher.take()
    alone = asked_for(stand)
    claim(stand, alone, worker="third")
    rounds(stand, sweeper, 12)
    for run_id in runs:
        assert [attempt.outcome for attempt in stand.attempts(run_id)] == ["lost"] * 4
        assert stand.steps(run_id)[0].state == "scheduled"
        assert stand.column("steps", "blamed", run_id) == 0
    assert stand.column("steps", "blamed", alone) == 1


def test_what_must_not_be_repeated_is_unknown_when_lost(stand: Stand) -> None:
    run_id = asked_for(stand, swept_once)
    claim(stand, run_id)
    rounds(stand, stand.sweeper(), 12)
    (shown,) = stand.steps(run_id)
    assert (shown.state, stand.attempts(run_id)[0].outcome) == ("unknown", "lost")
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == ("waiting", "unknown_outcome")
    assert stand.publisher.take() == []


def test_a_lost_message_is_sent_again_each_time_later(stand: Stand) -> None:
    run_id = asked_for(stand)
    sweeper = stand.sweeper()
    sent_at: list[float] = []
    stand.register(swept, work)
    for second in range(1, 400):
        see_worker(stand)
        stand.pass_time(1)
        sweeper.sweep()
        for message in stand.publisher.take():
            assert isinstance(message, StepMessage) and message.run_id == run_id
            sent_at.append(second)
    pauses = [later - earlier for earlier, later in pairwise(sent_at)]
    assert sent_at[0] <= 7
    assert pauses == sorted(pauses) and pauses[0] >= 5 and pauses[-1] >= 60


def test_a_message_that_most_probably_waits_in_its_queue_is_not_sent_again(stand: Stand) -> None:
    """Repeating a backlog makes it longer; but one that is repeated often may not be in there."""
    for _ in range(3):
        asked_for(stand)
    stand.publisher.depths = {"paidonce.default": 3}
    sweeper = stand.sweeper()
    stand.register(swept, work)
    rounds(stand, sweeper, 30)
    assert stand.publisher.take() == []
    stand.publisher.depths = {"paidonce.default": 1}
    for _ in range(30):
        see_worker(stand)
        rounds(stand, sweeper, 2)
    assert len({message.run_id for message in stand.publisher.take()}) == 3


def test_doubt_grows_with_the_repeats(stand: Stand) -> None:
    run_id = asked_for(stand)
    stand.publisher.depths = {"paidonce.default": 1_000}
    sweeper = stand.sweeper()
    stand.register(swept, work)
    for _ in range(60):
        see_worker(stand)
        rounds(stand, sweeper, 2)
    assert {message.run_id for message in stand.publisher.take()} == {run_id}


def test_a_run_with_unread_events_is_advanced(stand: Stand) -> None:
    run_id = stand.submit(swept)
    stand.publisher.take()
    rounds(stand, stand.sweeper(), 6)
    (message,) = stand.publisher.take()
    assert isinstance(message, AdvanceMessage) and message.run_id == run_id


def test_a_timer_fires_when_it_is_due_and_once(stand: Stand) -> None:
    run_id = asked_for(stand, sleeper)
    sweeper = stand.sweeper()
    rounds(stand, sweeper, 98)
    assert stand.column("runs", "last_seq", run_id) == 1
    rounds(stand, sweeper, 8)
    assert stand.column("runs", "last_seq", run_id) == 2
    stand.serve(stand.worker(sleeper))
    assert stand.run(run_id).result == b'"slept"'


def test_a_run_is_blocked_after_its_patience_and_goes_on_when_a_worker_comes(stand: Stand) -> None:
    run_id = asked_for(stand)
    sweeper = stand.sweeper()
    rounds(stand, sweeper, 58)
    assert stand.run(run_id).state == "running"
    rounds(stand, sweeper, 10)
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == ("blocked", "no_worker")
    assert run.error is not None and "'swept.work'" in str(run.error["message"])
    stand.publisher.take()
    stand.publisher.publish(stand.register(swept, work))
    assert stand.run(run_id).state == "running"
    rounds(stand, sweeper, 2)
    stand.serve(stand.worker(swept, work))
    assert stand.run(run_id).result == b'"done"'


def test_a_live_worker_that_holds_the_code_keeps_a_backlog_from_being_blocked(stand: Stand) -> None:
    run_id = asked_for(stand)
    stand.register(swept, work)
    sweeper = stand.sweeper()
    for _ in range(100):
        rounds(stand, sweeper, 2)
        see_worker(stand)
    assert stand.run(run_id).state == "running"


def test_a_worker_on_another_queue_does_not_count(stand: Stand) -> None:
    run_id = asked_for(stand)
    sweeper = stand.sweeper()
    stand.register(swept, work, queues=["paidonce.side"])
    for _ in range(40):
        see_worker(stand)
        rounds(stand, sweeper, 2)
    assert stand.run(run_id).state_reason == "no_worker"


def test_one_sweeper_leads_until_it_resigns_or_is_gone(stand: Stand) -> None:
    first, second = stand.sweeper("first"), stand.sweeper("second")

    def leader() -> str:
        with stand.database.read() as connection:
            return str(connection.exec_driver_sql("SELECT leader FROM sweeps").scalar_one())

    first.sweep()
    second.sweep()
    assert leader() == "first"
    stand.pass_time(6)
    second.sweep()
    assert leader() == "second"
    first.sweep()
    assert leader() == "second"
    second.start()
    second.stop()
    first.sweep()
    assert leader() == "first"


@step(name="swept.paid")
def paid() -> str:
    record_usage(cost_usd="0.01")
    return "done"


@agent(name="swept-payer")
async def payer() -> str:
    return await paid()


def rolled_up(stand: Stand) -> list[int]:
    with stand.database.read() as connection:
        return list(connection.execute(text("SELECT rolled_up FROM calls ORDER BY id")).scalars())


def test_the_money_of_runs_that_have_ended_is_added_to_the_sums(stand: Stand) -> None:
    worker = stand.worker(payer, paid)
    stand.submit(payer)
    sweeper = stand.sweeper()
    stand.serve(worker)
    assert rolled_up(stand) == [0]
    rounds(stand, sweeper, 12)
    assert rolled_up(stand) == [1]


def test_a_fault_in_the_sums_leaves_the_rest_of_the_sweep_alone(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(sweeper_module, "roll_up", fail)
    run_id = asked_for(stand)
    claim(stand, run_id)
    rounds(stand, stand.sweeper(), 12)
    assert stand.attempts(run_id)[0].outcome == "lost"
    assert "the ledger's sums could not be kept" in caplog.text
