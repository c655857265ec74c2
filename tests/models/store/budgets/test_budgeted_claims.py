"""Budgets in the store: reserving, settling, holding and letting go, whatever happens to an attempt."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paidonce_models.budgets import Budget, Maxima, Period, Source, Unit
from paidonce_models.instants import microseconds_of
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.blocking.blocked_steps import ENCODED, Blocking
from paidonce_models.store.budgets.budget_accounts import bounds_of
from paidonce_models.store.budgets.budget_balances import read_budgets_now
from paidonce_models.store.budgets.budget_rules import declare_budgets, read_budgets, remove_budget, set_budget
from paidonce_models.store.budgets.held_steps import let_go, steps_with_room, tidy_held_steps
from paidonce_models.store.budgets.spending import release
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.run_states import update_stale_run_states
from paidonce_models.store.steps.leases import mark_unknown, release_step
from tests.long_proofs import share_of
from tests.models.ledger_acts import Lives
from tests.models.stored_runs import (
    NAMESPACE,
    PRICE_NANOUSD,
    QUEUE,
    SECOND_US,
    Store,
    failure,
    key_of,
    paid_call,
    succeeded,
    success,
)

STEP = "module.work"
DAY = Budget(subject="all", period=Period.DAY, unit=Unit.USD, amount=1)


def limit(store: Store, amount: int, subject: str = "all", **options: object) -> None:
    """Put a budget in force."""
    values: dict[str, object] = {"subject": subject, "period": Period.DAY, "unit": Unit.USD, "amount": amount}
    store.transact(set_budget, NAMESPACE, Budget(**{**values, **options}))  # type: ignore[arg-type]  # as above


def accounts(store: Store) -> dict[str, tuple[int, int]]:
    """What is spent and reserved, by account."""
    return {
        row.key: (row.spent, row.reserved) for row in store.rows("SELECT key, spent, reserved FROM budget_accounts")
    }


def account(store: Store) -> tuple[int, int]:
    """The only account's."""
    (balance,) = accounts(store).values()
    return balance


def sweep(store: Store) -> list[tuple[str, int]]:
    """Let go what has room; the steps that were scheduled."""
    found = store.read(steps_with_room, namespace=NAMESPACE, shard=0)
    messages = [store.transact(let_go, key) for key in found]
    return [(message.run_id, message.position) for message in messages if message is not None]


def state(store: Store, run_id: str) -> tuple[str, str | None]:
    return tuple(store.row("SELECT state, state_reason FROM runs WHERE id = :id", id=run_id))


def step_state(store: Store, run_id: str, position: int = 1) -> str:
    row = store.row("SELECT state FROM steps WHERE run_id = :id AND position = :position", id=run_id, position=position)
    return str(row.state)


def test_an_attempt_reserves_before_it_starts_and_settles_when_it_ends(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=4_000)
    limit(store, 10_000)
    claim = store.claimed(store.running())
    assert claim.has_reservations
    assert account(store) == (0, 4_000)
    store.complete(success(claim))
    assert account(store) == (PRICE_NANOUSD, 0)


def test_a_heartbeat_takes_what_is_spent_from_what_is_reserved(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=4_000)
    limit(store, 10_000)
    claim = store.claimed(store.running())
    store.transact(insert_calls, claim=claim, records=[paid_call(claim)])
    assert account(store) == (PRICE_NANOUSD, 4_000 - PRICE_NANOUSD)
    store.transact(insert_calls, claim=claim, records=[paid_call(claim)])
    assert account(store) == (2 * PRICE_NANOUSD, 0)  # dearer than declared: what is over is spent, not reserved
    store.complete(replace(success(claim), calls=[]))
    assert account(store) == (2 * PRICE_NANOUSD, 0)


@pytest.mark.parametrize("end", ["failed", "retrying", "lost", "handed back", "unknown", "cancelled"])
def test_whatever_ends_an_attempt_gives_back_what_it_has_not_spent(store: Store, end: str) -> None:
    store.maxima[STEP] = Maxima(nanousd=4_000)
    limit(store, 10_000)
    run_id = store.running()
    claim = store.claimed(run_id)
    spent = PRICE_NANOUSD
    if end == "failed":
        store.complete(failure(claim))
    elif end == "retrying":
        store.complete(failure(claim, retry_after_us=0))
    elif end == "lost":
        store.transact(reclaim_step, key_of(claim), why="gone", alone=True, anyway=True)
        spent = 0
    elif end == "handed back":
        store.transact(release_step, key_of(claim), reason="stopping")
        spent = 0
    elif end == "unknown":
        store.transact(mark_unknown, key_of(claim), error={"type": "TimeoutError"})
        spent = 0
    else:
        store.advance(run_id, end=succeeded())
        store.complete(success(claim))
    assert account(store) == (spent, 0)


def test_a_zombie_is_charged_for_what_it_reports_late(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=4_000)
    limit(store, 10_000)
    run_id = store.running()
    zombie = store.claimed(run_id)
    store.transact(reclaim_step, key_of(zombie), why="gone", alone=True, anyway=True)
    claim = store.claimed(run_id)
    store.complete(success(claim))
    store.complete(success(zombie))
    assert account(store) == (2 * PRICE_NANOUSD, 0)


def test_a_step_without_room_is_held_without_an_attempt_and_its_run_is_paused(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=6_000)
    limit(store, 10_000)
    first, second = store.running(), store.running()
    claim = store.claimed(first)
    assert store.claim(second) is None
    assert (step_state(store, second), state(store, second)) == ("held", ("paused", "budget"))
    assert store.rows("SELECT 1 FROM attempts WHERE run_id = :id", id=second) == []
    assert sweep(store) == []
    store.complete(success(claim))  # 2,500 of the 6,000 that were reserved
    assert sweep(store) == [(second, 1)]
    assert (step_state(store, second), state(store, second)) == ("scheduled", ("running", None))
    store.complete(success(store.claimed(second)))
    assert account(store) == (2 * PRICE_NANOUSD, 0)
    store.transact(tidy_held_steps, namespace=NAMESPACE, shard=0)
    assert store.rows("SELECT * FROM held_steps") == []


def test_no_more_steps_are_let_go_than_there_is_room_for_the_oldest_first(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=1_000)
    limit(store, 1_000)
    blocker = store.claimed(store.running())
    runs = [store.running() for _ in range(4)]
    for run_id in runs:
        assert store.claim(run_id) is None
        store.clock.move(SECOND_US)
    limit(store, 3_000)
    assert sweep(store) == [(runs[0], 1), (runs[1], 1)]
    store.complete(replace(failure(blocker), calls=[]))
    assert [store.claim(run_id) is not None for run_id in runs] == [True, True, False, False]
    assert sweep(store) == [(runs[2], 1)]


def test_a_small_step_does_not_pass_an_older_one_that_has_no_room(store: Store) -> None:
    store.maxima |= {"module.large": Maxima(nanousd=8_000), "module.small": Maxima(nanousd=1_000)}
    limit(store, 1)
    runs = [store.running(name=name) for name in ("module.large", "module.small")]
    for run_id in runs:
        assert store.claim(run_id) is None
        store.clock.move(SECOND_US)
    limit(store, 2_000)
    assert sweep(store) == []
    limit(store, 9_000)
    assert sweep(store) == [(run_id, 1) for run_id in runs]


def test_a_second_release_changes_nothing(store: Store) -> None:
    limit(store, 10_000)
    claim = store.claimed(store.running())
    store.complete(success(claim))
    before = store.row("SELECT * FROM reservations")
    store.clock.move(SECOND_US)
    store.transact(release, run_id=claim.run_id, position=claim.position, attempt=claim.attempt, accepted=False)
    assert store.row("SELECT * FROM reservations") == before
    assert before.sample == 1


def test_a_step_that_is_let_go_in_vain_keeps_its_place(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=1_000)
    limit(store, 1_000)
    blocker = store.claimed(store.running())
    first, second = store.running(), store.running()
    assert store.claim(first) is None
    store.clock.move(SECOND_US)
    assert store.claim(second) is None
    store.complete(replace(failure(blocker), calls=[]))
    assert sweep(store) == [(first, 1)]
    rival = store.claimed(store.running())
    assert store.claim(first) is None
    store.complete(replace(failure(rival), calls=[]))
    assert sweep(store) == [(first, 1)]


@pytest.mark.parametrize("change", ["raised", "removed", "next day"])
def test_what_makes_room_wakes_what_was_held(store: Store, change: str) -> None:
    store.clock.now_us = microseconds_of(datetime(2026, 11, 25, 12, tzinfo=UTC))
    store.maxima[STEP] = Maxima(nanousd=PRICE_NANOUSD)
    limit(store, PRICE_NANOUSD)
    store.complete(success(store.claimed(store.running())))
    held = store.running()
    assert store.claim(held) is None
    if change == "raised":
        limit(store, 2 * PRICE_NANOUSD)
    elif change == "removed":
        budget = Budget(subject="all", period=Period.DAY, unit=Unit.USD, amount=1)
        assert store.transact(remove_budget, NAMESPACE, budget) == PRICE_NANOUSD
    else:
        store.clock.now_us = microseconds_of(datetime(2026, 11, 26, 0, 0, 1, tzinfo=UTC))
    assert sweep(store) == [(held, 1)]
    store.complete(success(store.claimed(held)))


def test_a_child_draws_on_the_budgets_of_its_ancestors(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=PRICE_NANOUSD)
    parent = store.submit(agent="research").run_id
    limit(store, 2 * PRICE_NANOUSD, "agent=research", period=Period.RUN)
    store.advance(parent, children=1)
    (child,) = (row.id for row in store.rows("SELECT id FROM runs WHERE parent_run_id = :id", id=parent))
    store.advance(child, steps=3)
    for position in (1, 2):
        store.complete(success(store.claimed(child, position)))
    assert store.claim(child, 3) is None
    assert accounts(store) == {f"run={parent}/usd": (2 * PRICE_NANOUSD, 0)}
    store.advance(child)
    assert state(store, child) == ("paused", "budget")
    limit(store, 3 * PRICE_NANOUSD, f"run={parent}", period=Period.RUN)
    assert sweep(store) == [(child, 3)]


def test_steps_and_tokens_are_limited_the_same_way(store: Store) -> None:
    limit(store, 2, period=Period.RUN, unit=Unit.STEPS)
    limit(store, 100, period=Period.RUN, unit=Unit.TOKENS)
    store.maxima[STEP] = Maxima(tokens=60)
    run_id = store.running(steps=4)
    lost = store.claimed(run_id, 1)
    store.transact(reclaim_step, key_of(lost), why="gone", alone=True, anyway=True)
    again = store.claimed(run_id, 1)  # a further attempt is no further step
    spent = replace(paid_call(again), input_tokens=20, output_tokens=10)
    store.complete(replace(success(again), calls=[spent]))
    second = store.claimed(run_id, 2)
    assert store.claim(run_id, 3) is None
    assert sorted(accounts(store).values()) == [(2, 0), (30, 60)]
    store.complete(replace(success(second), calls=[]))
    limit(store, 3, period=Period.RUN, unit=Unit.STEPS)
    assert sweep(store) == [(run_id, 3)]


def test_an_estimate_is_declared_else_learned_else_guessed(store: Store) -> None:
    limit(store, 100_000)
    store.guesses[Unit.USD] = 40_000
    claim = store.claimed(store.running())
    assert account(store) == (0, 40_000)
    store.complete(replace(success(claim), calls=[paid_call(claim)] * 1))
    claim = store.claimed(store.running())
    assert account(store) == (PRICE_NANOUSD, PRICE_NANOUSD)
    store.complete(replace(success(claim), calls=[]))
    store.maxima[STEP] = Maxima(nanousd=7)
    store.claimed(store.running())
    assert account(store) == (PRICE_NANOUSD, 7)


def test_a_step_is_known_by_what_it_cost_before_there_was_a_budget(store: Store) -> None:
    store.guesses[Unit.USD] = 40_000
    store.complete(success(store.claimed(store.running())))
    limit(store, 100_000)
    store.claimed(store.running())
    assert account(store) == (PRICE_NANOUSD, PRICE_NANOUSD)  # what was spent today counts from the beginning


@pytest.mark.parametrize("has_reserved", [True, False], ids=["under a budget", "before there was a budget"])
def test_what_an_attempt_reserves_is_what_the_dearest_of_the_last_twenty_cost(
    store: Store, *, has_reserved: bool
) -> None:
    def attempt(cost_nanousd: int, **options: object) -> None:
        run_id = store.submit(**options).run_id
        store.advance(run_id, steps=1)
        claim = store.claimed(run_id)
        money = {"cost_nanousd": cost_nanousd, "other_cost_nanousd": cost_nanousd}
        call = replace(paid_call(claim), input_tokens=30_000, output_tokens=20_000, **money)  # type: ignore[arg-type]
        store.complete(replace(success(claim), calls=[call]))
        store.clock.move(SECOND_US)

    def set_limits() -> None:
        limit(store, 10**9)
        limit(store, 10**9, unit=Unit.TOKENS)

    def reserved() -> list[int]:
        set_limits()
        claim = store.claimed(store.running())
        amounts = [amount for _, (_, amount) in sorted(accounts(store).items())]
        store.transact(release_step, key_of(claim), reason="only asked")
        if not has_reserved:
            for unit in (Unit.USD, Unit.TOKENS):
                store.transact(remove_budget, NAMESPACE, replace(DAY, unit=unit))
        return amounts

    if has_reserved:
        set_limits()
    attempt(9_000)
    attempt(77_000, agent="another")
    for _ in range(19):
        attempt(100)
    assert reserved() == [50_000, 9_000]
    attempt(200)
    assert reserved() == [50_000, 200]


def test_a_guess_takes_no_more_than_is_left_and_only_nothing_stops_it(store: Store) -> None:
    limit(store, 3_000)
    store.guesses[Unit.USD] = 2_000
    store.claimed(store.running())
    store.claimed(store.running(name="module.other"))
    assert account(store) == (0, 3_000)
    assert store.claim(store.running(name="module.third")) is None


def test_calls_without_a_price_teach_how_many_tokens_they_take(store: Store) -> None:
    limit(store, 100_000, unit=Unit.TOKENS)
    store.guesses[Unit.TOKENS] = 9_000
    claim = store.claimed(store.running())
    unknown = replace(paid_call(claim), cost_nanousd=None, other_cost_nanousd=None, input_tokens=5)
    store.complete(replace(success(claim), calls=[unknown]))
    assert store.row("SELECT unpriced_calls FROM budget_accounts").unpriced_calls == 0
    store.claimed(store.running())
    assert account(store) == (5, 5)


def test_calls_without_a_price_are_counted_and_teach_nothing(store: Store) -> None:
    limit(store, 100_000)
    store.guesses[Unit.USD] = 9_000
    claim = store.claimed(store.running())
    unknown = replace(paid_call(claim), cost_nanousd=None, other_cost_nanousd=None, input_tokens=5)
    store.complete(replace(success(claim), calls=[paid_call(claim), unknown]))
    row = store.row("SELECT spent, reserved, unpriced_calls FROM budget_accounts")
    assert tuple(row) == (PRICE_NANOUSD, 0, 1)
    store.claimed(store.running())
    assert account(store) == (PRICE_NANOUSD, 9_000)


@pytest.mark.parametrize("has_run", [True, False], ids=["its result does not fit", "its body was not called"])
def test_a_blocked_attempt_teaches_what_it_cost_if_its_body_has_run(store: Store, *, has_run: bool) -> None:
    limit(store, 100_000)
    store.guesses[Unit.USD] = 40_000
    claim = store.claimed(store.running())
    blocking = Blocking(reason="result_not_storable", form=ENCODED if has_run else None)
    calls = [paid_call(claim)] if has_run else []
    store.complete(replace(failure(claim), outcome=AttemptOutcome.BLOCKED, blocking=blocking, calls=calls))
    store.claimed(store.running())
    assert account(store) == ((PRICE_NANOUSD, PRICE_NANOUSD) if has_run else (0, 40_000))


def test_a_success_that_comes_after_its_step_was_cancelled_teaches_nothing(store: Store) -> None:
    limit(store, 10_000)
    run_id = store.running()
    claim = store.claimed(run_id)
    store.advance(run_id, cancelled=(1,))
    store.complete(success(claim))
    assert account(store) == (PRICE_NANOUSD, 0)
    store.claimed(store.running())
    assert account(store) == (PRICE_NANOUSD, store.guesses[Unit.USD])


def test_nothing_of_another_namespace_limits_teaches_or_is_counted(store: Store) -> None:
    for has_budget in (False, True):  # what a step costs is learned from its attempts, and from its reservations
        if has_budget:
            store.transact(set_budget, "others", replace(DAY, amount=2 * PRICE_NANOUSD))
        theirs = store.submit(namespace="others").run_id
        store.advance(theirs, steps=1)
        store.complete(success(store.claimed(theirs)))
    limit(store, 10_000)
    assert [budget.amount for budget in store.read(read_budgets, NAMESPACE)] == [10_000]
    store.claimed(store.running())
    ours = store.row("SELECT spent, reserved FROM budget_accounts WHERE namespace = :namespace", namespace=NAMESPACE)
    assert tuple(ours) == (0, store.guesses[Unit.USD])
    store.transact(remove_budget, NAMESPACE, DAY)
    assert [budget.amount for budget in store.read(read_budgets, "others")] == [2 * PRICE_NANOUSD]


def test_an_account_begins_with_what_the_ledger_holds(store: Store) -> None:
    store.clock.now_us = microseconds_of(datetime(2026, 11, 25, 12, tzinfo=UTC))
    parent = store.submit(agent="research", tags={"user": "u1"}).run_id
    store.advance(parent, steps=1, children=1)
    (child,) = (row.id for row in store.rows("SELECT id FROM runs WHERE parent_run_id = :id", id=parent))
    store.advance(child, steps=2)
    store.complete(success(store.claimed(parent)))
    store.complete(success(store.claimed(child)))
    store.complete(success(store.claimed(store.running())))  # another agent's, without tags
    for subject in ("agent=research", "agent=count", "tag:user=u1", "all", f"run={child}"):
        for unit in (Unit.USD, Unit.STEPS):
            limit(store, 1_000_000, subject, unit=unit, period=Period.RUN if "run=" in subject else Period.MONTH)
    store.maxima[STEP] = Maxima(nanousd=0)
    store.claimed(child, 2)
    assert accounts(store) == {
        "agent=count/usd/2026-11": (2 * PRICE_NANOUSD, 0),
        "agent=count/steps/2026-11": (2 + 1, 0),
        "agent=research/usd/2026-11": (2 * PRICE_NANOUSD, 0),
        "agent=research/steps/2026-11": (2 + 1, 0),
        "tag:user=u1/usd/2026-11": (2 * PRICE_NANOUSD, 0),
        "tag:user=u1/steps/2026-11": (2 + 1, 0),
        "all/usd/2026-11": (3 * PRICE_NANOUSD, 0),
        "all/steps/2026-11": (3 + 1, 0),
        f"run={child}/usd": (PRICE_NANOUSD, 0),
        f"run={child}/steps": (1 + 1, 0),
    }


def test_the_account_of_one_run_begins_with_what_its_descendants_have_spent(store: Store) -> None:
    parent = store.submit().run_id
    store.advance(parent, steps=1, children=1)
    for depth in (1, 2):
        below = store.row("SELECT id FROM runs WHERE depth = :depth", depth=depth).id
        store.advance(below, steps=1, children=1)
        store.complete(success(store.claimed(below)))
    store.complete(success(store.claimed(store.running())))  # a run of its own
    limit(store, 10_000, f"run={parent}", period=Period.RUN)
    store.claimed(parent)
    assert account(store) == (2 * PRICE_NANOUSD, PRICE_NANOUSD)


def test_an_account_of_a_day_begins_with_the_calls_of_that_day(store: Store) -> None:
    """Calls are dated by the clocks of their hosts, which may be ahead."""
    day_us = 86_400 * SECOND_US
    claim = store.claimed(store.running())
    calls = [replace(paid_call(claim), started_at_us=claim.claimed_at_us + days * day_us) for days in (-1, 0, 0, 1)]
    store.complete(replace(success(claim), calls=[replace(call, id=f"{number}") for number, call in enumerate(calls)]))
    limit(store, 100_000)
    store.claimed(store.running(name="module.other"))
    assert account(store) == (2 * PRICE_NANOUSD, store.guesses[Unit.USD])


def test_each_month_ends_where_the_next_begins() -> None:
    months = [f"2027-{month:02}" for month in range(1, 13)]
    for month, following in pairwise([*months, "2028-01", "2028-02", "2028-03"]):
        assert bounds_of(month)[0] < bounds_of(month)[1] == bounds_of(following)[0]


def test_an_account_of_tokens_begins_with_those_that_went_in_and_came_out(store: Store) -> None:
    claim = store.claimed(store.running())
    counts = ({"input_tokens": 30, "output_tokens": 12}, {"input_tokens": 5})
    store.complete(replace(success(claim), calls=[replace(paid_call(claim), **each) for each in counts]))
    limit(store, 10_000, unit=Unit.TOKENS)
    store.claimed(store.running(name="module.other"))
    assert account(store) == (30 + 12 + 5, store.guesses[Unit.TOKENS])


def test_an_account_of_steps_begins_without_their_retries(store: Store) -> None:
    run_id = store.running()
    store.complete(failure(store.claimed(run_id), retry_after_us=0))
    store.clock.move(SECOND_US)
    store.complete(success(store.claimed(run_id)))
    limit(store, 10, unit=Unit.STEPS)
    store.claimed(store.running())
    assert account(store) == (1 + 1, 0)


def test_a_retry_is_held_too_and_the_run_goes_on_with_what_can_proceed(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=PRICE_NANOUSD)
    limit(store, PRICE_NANOUSD)
    run_id = store.running(steps=1)
    store.advance(run_id, steps=1, name="module.free")
    store.maxima["module.free"] = Maxima(nanousd=0)
    store.complete(failure(store.claimed(run_id), retry_after_us=0))
    store.clock.move(SECOND_US)
    assert store.claim(run_id) is None
    assert (step_state(store, run_id), state(store, run_id)) == ("held", ("running", None))
    free = store.claimed(run_id, 2)  # nothing is left, and nothing is needed
    store.complete(replace(success(free), calls=[]))
    store.advance(run_id)
    assert state(store, run_id) == ("paused", "budget")


def test_a_held_step_can_be_cancelled_and_is_not_let_go_afterwards(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=10)
    limit(store, 1)
    run_id = store.running()
    assert store.claim(run_id) is None
    store.advance(run_id, end=succeeded())
    assert step_state(store, run_id) == "cancelled"
    limit(store, 100)
    assert sweep(store) == []
    assert store.transact(tidy_held_steps, namespace=NAMESPACE, shard=0) == 1


def test_an_advance_that_raced_with_a_hold_is_put_right(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=10)
    limit(store, 1)
    run_id = store.running()
    assert store.claim(run_id) is None
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE runs SET state = 'running', state_reason = NULL")
    store.transact(update_stale_run_states, namespace=NAMESPACE, shard=0)
    assert state(store, run_id) == ("paused", "budget")


def test_setting_a_budget_leaves_those_of_other_units_periods_sources_and_subjects_in_force(store: Store) -> None:
    of_each_run = replace(DAY, subject="agent=a", period=Period.RUN)
    budgets = [
        replace(DAY, subject="agent=a"),
        replace(DAY, subject="agent=a", unit=Unit.STEPS),
        replace(of_each_run, source=Source.DECLARED),
        of_each_run,
        replace(DAY, subject="agent=b"),
    ]
    for budget in budgets:
        assert store.transact(set_budget, NAMESPACE, budget) is None
    assert set(store.read(read_budgets, NAMESPACE)) == set(budgets)
    assert store.transact(remove_budget, NAMESPACE, of_each_run) == 1
    assert set(store.read(read_budgets, NAMESPACE)) == {*budgets} - {of_each_run}


def test_setting_a_budget_keeps_the_row_before_it(store: Store) -> None:
    budget = Budget(subject="agent=a", period=Period.DAY, unit=Unit.USD, amount=5)
    assert store.transact(set_budget, NAMESPACE, budget) is None
    assert store.transact(set_budget, NAMESPACE, budget) == 5
    assert store.transact(set_budget, NAMESPACE, replace(budget, amount=7)) == 5
    rows = store.rows("SELECT amount, replaced_at_us IS NULL AS in_force FROM budgets ORDER BY amount")
    assert [(row.amount, bool(row.in_force)) for row in rows] == [(5, False), (7, True)]
    assert store.transact(remove_budget, NAMESPACE, budget) == 7
    assert store.transact(remove_budget, NAMESPACE, budget) is None
    assert store.read(read_budgets, NAMESPACE) == []


def test_what_an_agent_declares_is_in_force_until_it_declares_something_else(store: Store) -> None:
    store.transact(declare_budgets, NAMESPACE, "a", {Unit.USD: 5, Unit.STEPS: 3})
    store.transact(declare_budgets, NAMESPACE, "a", {Unit.USD: 6})
    (declared,) = store.read(read_budgets, NAMESPACE)
    assert declared == Budget(subject="agent=a", period=Period.RUN, unit=Unit.USD, amount=6, source=Source.DECLARED)
    store.transact(declare_budgets, NAMESPACE, "a", {})
    assert store.read(read_budgets, NAMESPACE) == []


@pytest.mark.slow
def test_two_hundred_racing_runs_never_pass_a_budget_with_declared_maxima(store: Store) -> None:
    store.maxima[STEP] = Maxima(nanousd=PRICE_NANOUSD)
    limit(store, 50 * PRICE_NANOUSD)
    limit(store, 60 * PRICE_NANOUSD, "agent=count")
    runs = [store.running() for _ in range(200)]

    def work(run_id: str) -> bool:
        claim = store.claim(run_id)
        if claim is None:
            return False
        (over,) = store.row("SELECT max(spent + reserved) FROM budget_accounts")
        assert over <= 50 * PRICE_NANOUSD
        store.complete(success(claim))
        return True

    with ThreadPoolExecutor(8) as pool:
        worked = list(pool.map(work, runs))
    assert sum(worked) == 50
    assert set(accounts(store).values()) == {(50 * PRICE_NANOUSD, 0)}
    assert {state(store, run_id) for run_id, done in zip(runs, worked, strict=True) if not done} == {
        ("paused", "budget")
    }


class BudgetedLives(Lives):
    """Lives under budgets that are raised and lowered."""

    def act(self) -> None:
        super().act()
        if self.random.random() < 0.2:
            subject = self.random.choice(("all", "agent=count", "agent=write"))
            period = self.random.choice((Period.RUN, Period.DAY))
            unit = self.random.choice(tuple(Unit))
            amount = self.random.randint(1, 10**13 if unit is Unit.USD else 10**7 if unit is Unit.TOKENS else 20)
            limit(self.store, amount, subject, period=period, unit=unit)
        if self.random.random() < 0.2:
            sweep(self.store)


def check_accounts(store: Store) -> None:
    """Each account holds what its attempts have reserved and what their calls cost."""
    reserved = store.rows(
        "SELECT a.key, a.reserved, coalesce(sum(r.remaining), 0) AS expected FROM budget_accounts a "
        "LEFT JOIN reservations r ON r.namespace = a.namespace AND r.account = a.key GROUP BY a.key, a.reserved"
    )
    assert [(row.key, row.reserved) for row in reserved] == [(row.key, row.expected) for row in reserved]
    assert store.rows("SELECT * FROM budget_accounts WHERE reserved < 0 OR spent < 0") == []
    assert (
        store.rows("SELECT * FROM reservations WHERE remaining < 0 OR (ended_at_us IS NOT NULL AND remaining > 0)")
        == []
    )
    attempts = store.rows(
        "SELECT r.unit, r.spent, coalesce(sum(c.cost_nanousd), 0) AS usd, coalesce(sum(coalesce(c.input_tokens, 0) + "
        "coalesce(c.output_tokens, 0)), 0) AS tokens FROM reservations r LEFT JOIN calls c ON c.run_id = r.run_id "
        "AND c.position = r.position AND c.attempt = r.attempt "
        "GROUP BY r.run_id, r.position, r.attempt, r.account, r.unit, r.spent"
    )
    assert all(row.spent == (row.usd if row.unit == "usd" else row.tokens) for row in attempts)
    open_attempts = store.rows(
        "SELECT 1 FROM reservations r JOIN attempts a ON a.run_id = r.run_id AND a.position = r.position "
        "AND a.number = r.attempt WHERE a.outcome IS NOT NULL AND r.ended_at_us IS NULL"
    )
    assert open_attempts == []


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=5, suppress_health_check=CHECKS)
@given(seed=st.integers(0, 2**32), acts=st.integers(20, 90))
def test_accounts_hold_what_is_reserved_and_spent_whatever_happens(shared_store: Store, seed: int, acts: int) -> None:
    live_and_check(shared_store, seed, acts)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=share_of(25), suppress_health_check=CHECKS)
@given(seed=st.integers(0, 2**32), acts=st.integers(20, 90))
def test_accounts_hold_what_is_reserved_and_spent_in_many_lives(shared_store: Store, seed: int, acts: int) -> None:
    live_and_check(shared_store, seed, acts)


def live_and_check(store: Store, seed: int, acts: int) -> None:
    store.clear()
    lives = BudgetedLives(store, random.Random(seed))
    for _ in range(acts):
        lives.act()
    check_accounts(store)


def test_accounts_stay_right_while_several_claim_settle_and_change_limits(store: Store) -> None:
    def live(seed: int) -> None:
        lives = BudgetedLives(store, random.Random(seed))
        for _ in range(80):
            lives.act()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(live, seed) for seed in range(4)]:
            done.result()
    check_accounts(store)


def test_the_view_says_what_each_budget_holds_now(store: Store) -> None:
    store.clock.now_us = time.time_ns() // 1000  # on SQLite the view goes by the machine's clock
    store.maxima[STEP] = Maxima(nanousd=PRICE_NANOUSD)
    limit(store, PRICE_NANOUSD, "agent=count")
    store.transact(declare_budgets, NAMESPACE, "count", {Unit.USD: 9_000})
    store.complete(success(store.claimed(store.running())))
    assert store.claim(store.running()) is None
    assert [(each.spent, each.held_steps) for each in store.read(read_budgets_now, NAMESPACE)] == [
        (PRICE_NANOUSD, 1),
        (PRICE_NANOUSD, 0),
    ]
    rows = store.rows(
        "SELECT subject, period, unit, source, limit_amount, accounts, spent, reserved, unpriced_calls, held_steps "
        "FROM budgets_now ORDER BY period"
    )
    assert [tuple(row) for row in rows] == [
        ("agent=count", "day", "usd", "set", PRICE_NANOUSD, 1, PRICE_NANOUSD, 0, 0, 1),
        ("agent=count", "run", "usd", "declared", 9_000, 2, PRICE_NANOUSD, 0, 0, 0),
    ]
    assert store.head(store.submit(queue=QUEUE).run_id).state is RunState.PENDING
