"""What waits is committed together, and each thread learns what became of its own item, whatever strikes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from paidonce_models.database import dedicated_session
from paidonce_models.database.dedicated_session import RolledBack
from paidonce_models.database.session_choices import Pooler
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreUnreachable
from paidonce_models.payloads.payload_parts import split
from paidonce_models.states import RunState
from paidonce_models.store.commits import committer as module
from paidonce_models.store.commits.batch_statement import commit_items
from paidonce_models.store.commits.committer import MOST_ITEMS, Committer
from paidonce_models.store.commits.items import LARGE_BYTES, Item, advance_item, completion_item, together_item
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.advancing import Progress
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.steps.claims import Claim, claim_step
from tests.models.stored_runs import LEASE_US, NAMESPACE, Store, failure, key_of, succeeded, success
from tests.services.postgres import fresh_database
from tests.services.waiting import wait_until


class GatedDatabase(Database):
    """The first statement waits at the gate; what comes meanwhile waits for the next."""

    def __init__(self, url: str, **options: Any) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.before: Callable[[], object] = lambda: None
        self.strikes_at_the_gate = False
        super().__init__(url, **options)

    def execute_dedicated(self, statement: str, parameters: Sequence[str]) -> list[tuple[Any, ...]]:
        self.sizes.append(parameters[0].count('"run":'))
        if len(self.sizes) == 1:
            self.gate.wait(30)
            if self.strikes_at_the_gate:
                raise KeyboardInterrupt
        else:
            self.before()
        return super().execute_dedicated(statement, parameters)


@pytest.fixture(scope="module")
def shared_store(postgres_server: str) -> Iterator[Store]:
    with fresh_database(postgres_server) as url:
        store = Store(url)
        yield store
        store.database.close()


@pytest.fixture
def store(shared_store: Store) -> Store:
    shared_store.clear()
    return shared_store


@pytest.fixture
def database(store: Store) -> Iterator[GatedDatabase]:
    database = GatedDatabase(store.url, pool_size=2)
    yield database
    database.close()


class Together:
    """Threads that hand over their items while the first of them is held at the gate, so that the rest is one batch."""

    def __init__(self, database: GatedDatabase, items: Sequence[Item]) -> None:
        self.committer = Committer(database)
        self._database = database
        self._pool = ThreadPoolExecutor(len(items))
        self.futures: list[Future[bool]] = []
        for number, item in enumerate(items, start=1):
            self.futures.append(self._pool.submit(self.committer.commit, item))
            wait_until(lambda count=number: len(self.committer._waiting) == count, "it waits")
            if number == 1:
                wait_until(lambda: bool(database.sizes), "the first leads")

    def outcomes(self) -> list[bool | str]:
        self._database.gate.set()
        with self._pool:
            return [future.result(60) if future.exception(60) is None else _name(future) for future in self.futures]


def _name(future: Future[bool]) -> str:
    return type(future.exception()).__name__


def claims(store: Store, number: int) -> list[Claim]:
    return [store.claimed(store.running()) for _ in range(number)]


def accepted(store: Store) -> int:
    return int(store.row("SELECT count(*) AS n FROM attempts WHERE outcome = 'accepted'").n)


def test_what_waits_is_committed_in_one_statement(store: Store, database: GatedDatabase) -> None:
    together = Together(database, [completion_item(success(claim)) for claim in claims(store, 5)])
    assert together.outcomes() == [True] * 5
    assert database.sizes == [1, 4]
    assert accepted(store) == 5
    assert store.row("SELECT count(*) AS n FROM calls").n == 5


def test_a_batch_has_a_bound_in_items_and_in_bytes(store: Store, database: GatedDatabase) -> None:
    some = claims(store, MOST_ITEMS + 9)
    large = [success(claim, os.urandom(60_000).hex()) for claim in some[:16]]
    assert not any(completion_item(each).is_large for each in large)
    small = [success(claim) for claim in some[16:]]
    together = Together(database, [completion_item(each) for each in [*large, *small]])
    assert together.outcomes() == [True] * len(some)
    assert database.sizes[0] == 1 and max(database.sizes) <= MOST_ITEMS and len(database.sizes) >= 4
    assert accepted(store) == len(some)


def test_a_large_item_is_left_to_its_own_thread(store: Store, database: GatedDatabase) -> None:
    (claim,) = claims(store, 1)
    data = os.urandom(LARGE_BYTES).hex().encode()
    item = completion_item(replace(success(claim), result=split(b'"' + data + b'"')))
    assert item.is_large and item.payloads == ""
    assert not Committer(database).commit(item)
    assert database.sizes == []


def test_steps_of_one_run_that_end_at_once_are_one_batch(store: Store, database: GatedDatabase) -> None:
    run_id = store.running(steps=9)
    items = [completion_item(success(store.claimed(run_id, position))) for position in range(1, 10)]
    together = Together(database, [completion_item(success(claims(store, 1)[0])), *items])
    assert together.outcomes() == [True] * 10
    assert database.sizes == [1, 9]
    assert accepted(store) == 10
    assert store.row(f"SELECT last_seq, consumed_seq FROM runs WHERE id = '{run_id}'") == (10, 1)


def test_a_zombie_beside_its_steps_next_attempt_in_one_batch_is_refused(store: Store, database: GatedDatabase) -> None:
    run_id = store.running()
    zombie = store.claimed(run_id)
    store.transact(reclaim_step, key_of(zombie), why="dead", alone=False, anyway=True)
    fresh = store.claimed(run_id, worker="w2")
    items = [completion_item(success(each)) for each in (claims(store, 1)[0], zombie, fresh)]
    together = Together(database, items)
    assert together.outcomes() == [True, False, True]
    assert database.sizes == [1, 2]
    attempts = store.rows(f"SELECT number, outcome FROM attempts WHERE run_id = '{run_id}' ORDER BY number")
    assert [tuple(row) for row in attempts] == [(1, "lost"), (2, "accepted")]


def test_an_advance_is_alone_of_its_run_in_a_batch_and_nothing_overtakes_it(
    store: Store, database: GatedDatabase
) -> None:
    run_id = store.running(steps=3)
    steps = [success(store.claimed(run_id, position)) for position in (1, 2)]
    head = store.head(run_id)
    store.complete(success(store.claimed(run_id, 3)))
    items = [
        completion_item(success(claims(store, 1)[0])),
        completion_item(steps[0]),
        advance_item(head, _nothing_more(head)),
        completion_item(steps[1]),
    ]
    together = Together(database, items)
    assert together.outcomes() == [True] * 4
    assert database.sizes == [1, 1, 1, 1]
    events = store.rows(f"SELECT position FROM run_events WHERE run_id = '{run_id}' AND seq > 1 ORDER BY seq")
    assert [row.position for row in events] == [3, 1, 2]


def test_a_run_that_is_locked_or_whose_guard_fails_hinders_no_other(store: Store, database: GatedDatabase) -> None:
    first, locked, ended, good = claims(store, 4)
    store.complete(success(ended))
    items = [completion_item(success(claim)) for claim in (first, locked, ended, good)]
    together = Together(database, items)
    with store.database.write() as connection:
        connection.exec_driver_sql(f"SELECT 1 FROM runs WHERE id = '{locked.run_id}' FOR UPDATE")
        database.gate.set()
        assert together.futures[3].result(60)
        wait_until(lambda: waits_for_a_lock(store), "the one whose run is locked waits by itself")
    assert together.outcomes() == [True, True, False, True]
    assert accepted(store) == 4


def test_data_that_the_store_refuses_is_refused_for_its_own_item_only(store: Store, database: GatedDatabase) -> None:
    first, bad, good = claims(store, 3)
    refused = replace(failure(bad), traceback="a NUL \0 in it", calls=())
    items = [completion_item(each) for each in (success(first), refused, success(good))]
    assert Together(database, items).outcomes() == [True, "StatementRefused", True], "split: each tries by itself"
    assert accepted(store) == 2
    assert [row.state for row in store.rows("SELECT state FROM steps ORDER BY state")] == [
        "running",
        "succeeded",
        "succeeded",
    ]


@pytest.fixture
def patient_with_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a database that is made afterwards."""
    monkeypatch.setitem(dedicated_session.SETTINGS, "lock_timeout", "20000")


def test_a_deadlock_that_is_planted_resolves_and_the_batch_is_split(
    store: Store, patient_with_locks: None, database: GatedDatabase
) -> None:
    first, low, high = claims(store, 3)
    together = Together(database, [completion_item(success(claim)) for claim in (first, low, high)])
    lock = "SELECT 1 FROM attempts WHERE run_id = '{}' FOR UPDATE"
    with psycopg.connect(plain(store.url)) as other:
        other.execute("SET deadlock_timeout = '60s'")  # it is the batch that finds it, and ends it
        other.execute(lock.format(high.run_id))
        database.gate.set()
        wait_until(lambda: waits_for_a_lock(store), "the batch waits for the lock")
        other.execute(lock.format(low.run_id))  # waits for the batch, which waits for this
    assert together.outcomes() == [True, True, True]
    assert database.sizes == [1, 2]
    assert accepted(store) == 3


def waits_for_a_lock(store: Store) -> bool:
    return bool(
        store.rows("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    )


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.parametrize("after_the_commit", [False, True])
def test_a_lost_response_leaves_every_item_in_doubt(
    store: Store, database: GatedDatabase, monkeypatch: pytest.MonkeyPatch, after_the_commit: bool
) -> None:
    some = claims(store, 4)
    together = Together(database, [completion_item(success(claim)) for claim in some])
    original = module.commit_items

    def lose(execute: Any, items: Sequence[Item]) -> set[str]:
        if len(items) > 1 and after_the_commit:
            original(execute, items)
        kill_sessions(store)
        return original(execute, items)

    monkeypatch.setattr(module, "commit_items", lose)
    assert together.outcomes() == [True, *["StoreUnreachable"] * 3]
    assert accepted(store) == (4 if after_the_commit else 1), "all or none"
    monkeypatch.undo()
    again = [together.committer.commit(completion_item(success(claim))) for claim in some[1:]]
    assert again == [not after_the_commit] * 3
    assert accepted(store) == 4


def kill_sessions(store: Store) -> None:
    store.database.engine.dispose()
    with psycopg.connect(plain(store.url), autocommit=True) as owner:
        owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_leader_that_is_interrupted_leaves_nobody_waiting(store: Store, database: GatedDatabase) -> None:
    some = claims(store, 6)
    together = Together(database, [completion_item(success(claim)) for claim in some])
    struck: list[int] = []

    def strike() -> None:
        if not struck:
            struck.append(1)
            raise KeyboardInterrupt

    database.before = strike
    outcomes = together.outcomes()
    # The first leads on for the others, and its own item was committed before.
    assert outcomes == ["KeyboardInterrupt", *["StoreUnreachable"] * 5]
    assert [together.committer.commit(completion_item(success(claim))) for claim in some[1:]] == [True] * 5
    assert accepted(store) == 6


def test_what_waits_behind_an_interrupted_leader_is_led_by_another(store: Store, database: GatedDatabase) -> None:
    together = Together(database, [completion_item(success(claim)) for claim in claims(store, 3)])
    database.strikes_at_the_gate = True
    assert together.outcomes() == ["KeyboardInterrupt", True, True]


def test_a_follower_that_is_interrupted_withdraws_its_item(
    store: Store, database: GatedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = claims(store, 2)
    together = Together(database, [completion_item(success(first))])
    item = completion_item(success(second))

    sleep = Item.sleep

    def strike(self: Item, seconds: float) -> None:
        if self is item:
            raise KeyboardInterrupt
        sleep(self, seconds)

    monkeypatch.setattr(Item, "sleep", strike)
    with pytest.raises(KeyboardInterrupt):
        together.committer.commit(item)
    assert together.outcomes() == [True]
    assert accepted(store) == 1
    assert together.committer.commit(completion_item(success(second)))


def test_a_thread_in_the_middle_of_a_commit_does_not_wait_for_itself(store: Store, database: GatedDatabase) -> None:
    first, second, third = claims(store, 3)
    committer = Committer(database)
    database.gate.set()
    assert committer.commit(completion_item(success(first)))
    nested: list[bool] = []
    database.before = lambda: nested.append(committer.commit(completion_item(success(third))))
    assert committer.commit(completion_item(success(second)))
    assert nested == [True]
    assert accepted(store) == 3


def test_a_forked_child_commits_with_a_session_of_its_own(store: Store, database: GatedDatabase) -> None:
    committer = Committer(database)
    database.gate.set()
    first, in_child, second = claims(store, 3)
    assert committer.commit(completion_item(success(first)))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if committer.commit(completion_item(success(in_child))) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert committer.commit(completion_item(success(second)))
    assert accepted(store) == 3


def test_behind_a_pooler_nothing_is_prepared_and_the_settings_hold(store: Store) -> None:
    database = Database(store.url, pool_size=1, pooler=Pooler.TRANSACTION)
    committer = Committer(database)
    assert [committer.commit(completion_item(success(claim))) for claim in claims(store, 6)] == [True] * 6
    shown = "SELECT current_setting('lock_timeout'), current_setting('enable_hashjoin'), current_setting('jit')"
    assert database.execute_dedicated(shown, []) == [("500ms", "off", "off")]
    assert database.execute_dedicated("SELECT count(*) FROM pg_prepared_statements", []) == [(0,)]
    database.close()


def test_the_address_does_not_change_how_long_a_process_may_wait_for_a_lock(store: Store) -> None:
    url = make_url(store.url).update_query_dict({"options": "-c lock_timeout=0 -c work_mem=5MB"})
    database = Database(url.render_as_string(hide_password=False), pool_size=1)
    shown = "SELECT current_setting('lock_timeout'), current_setting('work_mem')"
    assert database.execute_dedicated(shown, []) == [("500ms", "5MB")]
    with database.read() as connection:
        assert connection.exec_driver_sql(shown).one() == ("0", "5MB")
    database.close()


def test_a_commit_that_a_pooler_does_not_confirm_is_in_doubt(store: Store) -> None:
    database = Database(store.url, pool_size=1, pooler=Pooler.TRANSACTION)
    assert database.execute_dedicated("SELECT 1", []) == [(1,)]
    session = database._dedicated
    assert session is not None
    cursor = session._cursor

    class Proxy:
        def execute(self, statement: str, *given: Any) -> Any:
            done = cursor.execute(statement, *given)
            if statement == "COMMIT":
                raise psycopg.InternalError("connection to database closed")
            return done

    session._cursor = Proxy()
    with pytest.raises(StoreUnreachable, match="has not confirmed a commit"):
        database.execute_dedicated("SELECT 2", [])
    assert database.execute_dedicated("SELECT 1", []) == [(1,)]
    database.close()


def test_an_interrupt_before_its_thread_waits_takes_the_item_out(
    store: Store, database: GatedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = claims(store, 2)
    committer = Committer(database)
    database.gate.set()
    accepts = Committer._accepts

    def strike(self: Committer, item: Item) -> bool:
        accepts(self, item)
        raise KeyboardInterrupt

    monkeypatch.setattr(Committer, "_accepts", strike)
    with pytest.raises(KeyboardInterrupt):
        committer.commit(completion_item(success(first)))
    monkeypatch.undo()
    assert committer.commit(completion_item(success(second)))
    assert accepted(store) == 1, "nobody commits for a caller that is gone"
    assert committer.commit(completion_item(success(first)))


def test_a_session_that_the_server_refuses_leaves_the_work_to_the_pool(
    store: Store, database: GatedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise psycopg.OperationalError("sorry, too many clients already")

    database.gate.set()
    assert database._dedicated is not None
    monkeypatch.setattr(database._dedicated._sessions, "open", refuse)
    (claim,) = claims(store, 1)
    assert Committer(database).commit(completion_item(success(claim)))
    assert accepted(store) == 1


def test_an_error_that_the_server_has_told_is_no_doubt_even_if_the_session_ends_then(store: Store) -> None:
    database = Database(store.url, pool_size=1)
    assert database.execute_dedicated("SELECT 1", []) == [(1,)]
    session = database._dedicated
    assert session is not None
    connection, cursor = session._connection, session._cursor

    class Ending:
        def execute(self, *given: Any) -> Any:
            try:
                return cursor.execute(*given)
            finally:
                connection.close()

    session._cursor = Ending()
    with pytest.raises(RolledBack):
        database.execute_dedicated("SELECT 1 / $1::int", ["0"])
    assert database.execute_dedicated("SELECT 1", []) == [(1,)]
    database.close()


def test_a_closed_store_is_opened_again(store: Store, database: GatedDatabase) -> None:
    committer = Committer(database)
    database.gate.set()
    for claim in claims(store, 3):
        assert committer.commit(completion_item(success(claim)))
        database.close()
    with pytest.raises(StoreUnreachable):
        kill_after_opening(database, store)


def kill_after_opening(database: GatedDatabase, store: Store) -> None:
    committer = Committer(database)
    first, second = claims(store, 2)
    assert committer.commit(completion_item(success(first)))
    kill_sessions(store)
    committer.commit(completion_item(success(second)))


def test_of_two_advances_of_the_same_log_one_is_committed(store: Store, database: GatedDatabase) -> None:
    database.gate.set()
    head = store.head(store.submit().run_id)
    progress = replace(_nothing_more(head), to_seq=head.last_seq)
    committer = Committer(database)
    assert [committer.commit(advance_item(head, progress)) for _ in range(2)] == [True, False]


def test_the_end_of_a_run_with_an_open_child_is_left_to_who_cancels_that(store: Store, database: GatedDatabase) -> None:
    database.gate.set()
    run_id = store.submit().run_id
    store.advance(run_id, steps=1, children=1)
    first, head = store.claimed(run_id), store.head(run_id)
    progress = replace(_nothing_more(head), state=RunState.SUCCEEDED, end=succeeded())
    assert not Committer(database).commit(together_item(success(first), head, progress, first.claimed_at_us))
    assert [row.state for row in store.rows("SELECT state FROM steps")] == ["running", "running"]


@pytest.mark.parametrize("beside_another", [False, True])
def test_a_step_that_is_being_claimed_while_its_run_ends_is_cancelled(
    store: Store, database: GatedDatabase, beside_another: bool
) -> None:
    """The claim is committed after the statement has begun: what it sees is an older version of the step."""
    database.gate.set()
    run_id = store.running(steps=2)
    first, head = store.claimed(run_id), store.head(run_id)
    progress = replace(_nothing_more(head), state=RunState.SUCCEEDED, end=succeeded())
    items = [together_item(success(first), head, progress, first.claimed_at_us)]
    items += [completion_item(success(claim)) for claim in claims(store, int(beside_another))]
    committed: list[set[str]] = []
    with ThreadPoolExecutor(1) as pool:
        with store.database.write() as connection:
            claim_step(connection, namespace=NAMESPACE, run_id=run_id, position=2, worker="w2", lease_us=LEASE_US)
            ending = pool.submit(commit_items, database.execute_dedicated, items)
            wait_until(lambda: waits_for_a_lock(store), "the end waits for the claim")
        committed.append(ending.result(30))
    assert committed == [{item.key for item in items}]
    assert [
        row.state for row in store.rows("SELECT state FROM steps WHERE run_id = :r ORDER BY position", r=run_id)
    ] == [
        "succeeded",
        "cancelled",
    ]


def test_an_attempt_that_is_being_written_meanwhile_keeps_both(store: Store, database: GatedDatabase) -> None:
    """A heartbeat adds to its sums: nobody's write is lost."""
    database.gate.set()
    items = [completion_item(success(claim)) for claim in claims(store, 2)]
    with ThreadPoolExecutor(1) as pool:
        with store.database.write() as connection:
            connection.exec_driver_sql(f"UPDATE attempts SET calls = 7 WHERE run_id = '{items[0].run_id}'")
            ending = pool.submit(Committer(database).commit, items[0])
            wait_until(lambda: waits_for_a_lock(store), "it waits for the heartbeat")
        assert ending.result(60)
    assert accepted(store) == 1
    assert store.row(f"SELECT calls FROM attempts WHERE run_id = '{items[0].run_id}'").calls == 8
    assert Committer(database).commit(items[1])


def _nothing_more(head: RunHead) -> Progress:
    return Progress(
        from_seq=head.consumed_seq,
        to_seq=head.consumed_seq + 1,
        state=RunState.RUNNING,
        state_reason=None,
        wake_at_us=None,
        agent_version="1",
        python_minor="3.11",
    )
