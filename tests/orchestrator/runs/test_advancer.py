"""Advancing: each event is fed once, what an agent asks for is written once, whoever comes second reads on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from paidonce import agent, step
from paidonce.declarations.registry import Registry
from paidonce.replay import run_replay as machine_module
from paidonce.replay.cache import MachineCache
from paidonce.replay.slice_threads import SliceThreads
from paidonce.runs.advance_result import Advanced
from paidonce.runs.advance_settings import AdvanceSettings
from paidonce.runs.advancer import Advancer
from paidonce.runs.eager_claims import EagerClaim
from paidonce.runs.new_run import new_run
from paidonce.settings import Settings
from paidonce.testing.clock import FakeClock
from paidonce.testing.memory_store import open_memory_store
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreUnreachable
from paidonce_models.payloads.payload_parts import split
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.queries import RunView, StepView, read_attempts, read_run, read_steps
from paidonce_models.store.runs.advancing import NewStep
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.runs.submission import submit_run
from paidonce_models.store.steps.claims import Claim, Claimant, claim_step
from paidonce_models.store.steps.completion import Acceptance, Completion


@step(name="advanced.first")
def first(text: str) -> str: ...


@step(name="advanced.second")
def second(text: str) -> str: ...


@agent(name="advanced")
async def advanced(text: str) -> str:
    return await second(await first(text))


@agent(name="advanced-both")
async def both(text: str) -> list[str]:
    return await asyncio.gather(first(text), second(text))


@agent(name="advanced-parent")
async def parent(text: str) -> str:
    return await advanced(text) + "!"


@agent(name="advanced-io")
async def does_io() -> None:
    await first("before")
    await asyncio.to_thread(print)


class Process:
    """One process that advances runs: a cache of its own."""

    def __init__(
        self,
        store: Store,
        *declarations: Any,
        cache_size: int = 10,
        slices: SliceThreads | None = None,
        **settings: Any,
    ) -> None:
        registry = Registry()
        for declaration in declarations or (first, second, advanced, both, parent, does_io):
            (registry.add_step if declaration.kind == "step" else registry.add_agent)(declaration)
        self._store = store
        self.cache = MachineCache(cache_size)
        self.advancer = Advancer(
            store.database, registry, self.cache, AdvanceSettings(**settings), namespace="default", slices=slices
        )

    def advance(self, run_id: str) -> list[Any]:
        """The messages that the advance led to."""
        return self.advancer.advance(run_id).messages

    def complete(self, claim: Claim, value: Any) -> Any:
        result = json.dumps(value).encode()
        completion = Completion(
            claim=claim, worker="w", outcome=AttemptOutcome.ACCEPTED, result=split(result), result_json=result
        )
        return self.advancer.complete(completion, recorded_at_us=self._store.clock.now_us)

    def fail(self, claim: Claim) -> Any:
        error: dict[str, object] = {"type": "ValueError", "message": "wrong"}
        completion = Completion(claim=claim, worker="w", outcome=AttemptOutcome.FAILED, error=error)
        return self.advancer.complete(completion, recorded_at_us=self._store.clock.now_us)


class Store:
    """A store in memory that counts its write transactions."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.database: Database = open_memory_store(self.clock)
        self.writes = 0
        self.before_write: Callable[[], object] | None = None
        transact = self.database.transact

        def counted(work: Any, **options: Any) -> Any:
            before, self.before_write = self.before_write, None
            if before is not None:
                before()
            self.writes += 1
            return transact(work, **options)

        self.database.transact = counted  # type: ignore[method-assign]  # counts, and lets another go first

    def submit(self, declaration: Any, **given: Any) -> str:
        new = new_run(Settings.model_construct(), declaration.name, given, declaration=declaration)
        return self.database.transact(lambda connection: submit_run(connection, new)).run_id

    def claim(self, run_id: str, position: int) -> Claim:
        claim = self.database.transact(
            lambda connection: claim_step(
                connection, namespace="default", run_id=run_id, position=position, worker="w", lease_us=10_000_000
            )
        )
        assert claim is not None
        return claim

    def run(self, run_id: str) -> RunView:
        with self.database.read() as connection:
            return read_run(connection, "default", run_id)

    def steps(self, run_id: str) -> list[StepView]:
        with self.database.read() as connection:
            return read_steps(connection, "default", run_id)

    def counts(self, run_id: str) -> tuple[int, int]:
        """``consumed_seq`` and ``last_seq``."""
        with self.database.read() as connection:
            row = connection.exec_driver_sql("SELECT consumed_seq, last_seq FROM runs WHERE id = ?", (run_id,)).one()
        return row[0], row[1]


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.database.close()


def test_the_first_advance_schedules_and_a_second_finds_nothing_to_do(store: Store) -> None:
    process, run_id = Process(store), store.submit(advanced, text="a")
    (message,) = process.advance(run_id)
    assert isinstance(message, StepMessage) and (message.position, message.name) == (1, "advanced.first")
    writes = store.writes
    assert process.advance(run_id) == []
    assert Process(store).advance(run_id) == []
    assert store.writes == writes
    assert len(store.steps(run_id)) == 1


def test_a_step_of_a_sequence_costs_two_commits_and_one_message(store: Store) -> None:
    process, run_id = Process(store), store.submit(advanced, text="a")
    process.advance(run_id)
    writes = store.writes
    result = process.complete(store.claim(run_id, 1), "b")
    assert store.writes - writes == 2
    assert result.acceptance is Acceptance.ACCEPTED
    (message,) = result.messages
    assert isinstance(message, StepMessage) and message.position == 2
    process.complete(store.claim(run_id, 2), "c")
    assert (store.run(run_id).state, store.run(run_id).result) == ("succeeded", b'"c"')
    assert store.counts(run_id) == (3, 3)


def test_any_process_may_take_over_after_any_commit(store: Store) -> None:
    run_id = store.submit(advanced, text="a")
    Process(store).advance(run_id)
    Process(store).complete(store.claim(run_id, 1), "b")
    assert Process(store).advance(run_id) == []
    Process(store).complete(store.claim(run_id, 2), "c")
    assert store.run(run_id).result == b'"c"'
    assert [shown.name for shown in store.steps(run_id)] == ["advanced.first", "advanced.second"]


def test_whoever_is_overtaken_catches_up_and_writes_nothing_twice(store: Store) -> None:
    run_id = store.submit(advanced, text="a")
    slow, fast = Process(store), Process(store)
    store.before_write = lambda: fast.advance(run_id)
    assert slow.advance(run_id) == []
    assert len(store.steps(run_id)) == 1
    slow.complete(store.claim(run_id, 1), "b")
    slow.complete(store.claim(run_id, 2), "c")
    assert store.run(run_id).result == b'"c"'


def test_a_completion_overtaken_by_another_event_is_recorded_alone_and_nothing_is_lost(store: Store) -> None:
    run_id = store.submit(advanced, text="a")
    process, other = Process(store), Process(store)
    process.advance(run_id)
    claim = store.claim(run_id, 1)

    def cancel() -> None:
        store.database.transact(lambda connection: cancel_run(connection, "default", run_id, grace_seconds=60.0))

    store.before_write = cancel
    process.complete(claim, "b")
    other.advance(run_id)
    assert store.run(run_id).state == "cancelled"
    with store.database.read() as connection:
        (attempt,) = read_attempts(connection, run_id, 1)
    assert attempt.outcome == "accepted", "it was complete before the cancellation was delivered"


def test_steps_side_by_side_complete_in_any_order(store: Store) -> None:
    for order in ((1, 2), (2, 1)):
        run_id = store.submit(both, text="x")
        process, other = Process(store), Process(store)
        messages = process.advance(run_id)
        assert [message.position for message in messages] == [1, 2]
        claims = {position: store.claim(run_id, position) for position in order}
        for position, by in zip(order, (process, other), strict=True):
            by.complete(claims[position], f"value {position}")
        assert store.run(run_id).result == b'["value 1","value 2"]'


def test_children_are_runs_whose_end_is_an_event_of_the_parent(store: Store) -> None:
    process, run_id = Process(store), store.submit(parent, text="a")
    (message,) = process.advance(run_id)
    assert isinstance(message, AdvanceMessage) and message.agent == "advanced"
    child = message.run_id
    assert store.run(run_id).state == "waiting"
    process.advance(child)
    process.complete(store.claim(child, 1), "b")
    (message,) = process.complete(store.claim(child, 2), "c").messages
    assert isinstance(message, AdvanceMessage) and message.run_id == run_id
    process.advance(run_id)
    assert store.run(run_id).result == b'"c!"'


def test_an_agent_that_is_not_held_is_left_alone(store: Store) -> None:
    run_id = store.submit(advanced, text="a")
    assert Process(store, first, second).advancer.advance(run_id).outcome is Advanced.NOT_HELD
    Process(store).advance(run_id)
    tools = Process(store, first, second)
    result = tools.complete(store.claim(run_id, 1), "b")
    assert (result.acceptance, result.outcome) == (Acceptance.ACCEPTED, Advanced.NOT_HELD)
    assert store.counts(run_id) == (1, 2)
    assert [message.position for message in Process(store).advance(run_id)] == [2]


def changed(change: str) -> Any:
    """The agent ``advanced`` in other code."""
    if change == "another step":

        @agent(name="advanced")
        async def other(text: str) -> str:
            return await first(await second(text))

    elif change == "other arguments":

        @agent(name="advanced")
        async def other(text: str) -> str:
            return await second(await first(text + "!"))

    elif change == "no step":

        @agent(name="advanced")
        async def other(text: str) -> str:
            return text

    else:

        @agent(name="advanced")
        async def other(text: str) -> str:
            return (await asyncio.gather(first(text), second(text)))[0]

    return other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("another step", "step 1: history holds 'advanced.first', the code now requests 'advanced.second'"),
        (
            "other arguments",
            """holds 'advanced.first' with {"text":"a"}, the code now requests 'advanced.first' with""",
        ),
        ("no step", "step 1: history holds 'advanced.first', the code now requests nothing"),
        ("one more", "step 2: history holds nothing, the code now requests 'advanced.second'"),
    ],
)
def test_code_that_differs_from_history_blocks_the_run_and_writes_nothing_else(
    store: Store, change: str, said: str
) -> None:
    run_id = store.submit(advanced, text="a")
    Process(store).advance(run_id)
    Process(store, first, second).complete(store.claim(run_id, 1), "b")
    assert Process(store, first, second, changed(change)).advance(run_id) == []
    run = store.run(run_id)
    assert (run.state, run.state_reason) == ("blocked", "history_mismatch")
    assert run.error is not None and said in str(run.error["message"]), run.error
    assert store.counts(run_id) == (1, 2)
    assert len(store.steps(run_id)) == 1


def test_a_completion_is_kept_although_its_advance_blocks_the_run(store: Store) -> None:
    process, run_id = Process(store), store.submit(does_io)
    process.advance(run_id)
    assert process.complete(store.claim(run_id, 1), "b").acceptance is Acceptance.ACCEPTED
    run = store.run(run_id)
    assert (run.state, run.state_reason) == ("blocked", "not_replayable")
    assert [shown.state for shown in store.steps(run_id)] == ["succeeded"]


def test_a_coroutine_fed_in_part_is_not_used_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever went wrong: what such a coroutine asks for is not what its log leads to."""
    process, run_id = Process(store), store.submit(advanced, text="a")
    with monkeypatch.context() as patched:

        def fail(self: Any) -> None:
            raise SystemError("something of Python's own")

        patched.setattr(machine_module.Machine, "_run", fail)
        with pytest.raises(SystemError):
            process.advance(run_id)
    assert [message.position for message in process.advance(run_id)] == [1]
    claim = store.claim(run_id, 1)
    with monkeypatch.context() as patched:
        patched.setattr(machine_module.Machine, "_run", fail)
        with pytest.raises(SystemError):
            process.complete(claim, "b")
    assert process.complete(claim, "b").acceptance is Acceptance.ACCEPTED
    assert [shown.name for shown in store.steps(run_id)] == ["advanced.first", "advanced.second"]


def test_a_store_that_goes_away_in_the_commit_changes_nothing(store: Store) -> None:
    process, run_id = Process(store), store.submit(advanced, text="a")
    process.advance(run_id)
    claim = store.claim(run_id, 1)

    def away() -> None:
        raise StoreUnreachable("away")

    store.before_write = away
    with pytest.raises(StoreUnreachable):
        process.complete(claim, "b")
    result = process.complete(claim, "b")
    assert result.acceptance is Acceptance.ACCEPTED
    assert [message.position for message in result.messages] == [2]


def test_an_evicted_run_is_replayed(store: Store) -> None:
    process = Process(store, cache_size=1)
    runs = [store.submit(advanced, text=str(number)) for number in range(3)]
    for run_id in runs:
        process.advance(run_id)
    for run_id in runs:
        process.complete(store.claim(run_id, 1), "b")
    for run_id in runs:
        process.complete(store.claim(run_id, 2), "c")
    assert {store.run(run_id).result for run_id in runs} == {b'"c"'}


def test_a_thread_that_finds_the_run_busy_leaves_its_wish_behind(store: Store) -> None:
    """The thread that advances the run looks again before it leaves."""
    process, run_id = Process(store), store.submit(both, text="x")
    process.advance(run_id)
    claims = [store.claim(run_id, position) for position in (1, 2)]
    tools = Process(store, first, second)
    tools.complete(claims[0], "one")
    found: list[Advanced] = []

    def meanwhile() -> None:
        tools.complete(claims[1], "two")
        thread = threading.Thread(target=lambda: found.append(process.advancer.advance(run_id).outcome))
        thread.start()
        thread.join()

    store.before_write = meanwhile
    process.advance(run_id)
    assert found == [Advanced.BUSY]
    assert store.run(run_id).result == b'["one","two"]'


def test_a_failed_step_reaches_the_agent(store: Store) -> None:
    process, run_id = Process(store), store.submit(advanced, text="a")
    process.advance(run_id)
    process.fail(store.claim(run_id, 1))
    run = store.run(run_id)
    assert run.state == "failed" and run.error is not None
    assert run.error["type"] == "StepFailed" and "ValueError: wrong" in str(run.error["message"])


def test_a_run_that_has_ended_is_left_alone(store: Store) -> None:
    process, run_id = Process(store), store.submit(advanced, text="a")
    store.database.transact(lambda connection: cancel_run(connection, "default", run_id, grace_seconds=60.0))
    assert process.advance(run_id) == []
    assert process.advance("no such run") == []
    assert store.run(run_id).state == "cancelled"


@agent(name="advanced-thread-bound")
async def thread_bound(text: str) -> list[object]:
    """Keeps its place in a thread-local, as tenacity does, and looks which thread it is in."""
    own: Any = threading.local()
    own.asked = 0
    threads = set()
    for _ in range(3):
        await first(text)
        own.asked += 1
        threads.add(threading.get_ident())
    return [own.asked, len(threads)]


def run_on_many_threads(process: Process, store: Store, run_id: str) -> None:
    """Each delivery comes to another thread of the process, as in a worker."""

    def in_thread(act: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(act).result(60)

    messages = in_thread(lambda: process.advance(run_id))
    while messages:
        claim = store.claim(run_id, messages[0].position)
        messages = in_thread(lambda claim=claim: process.complete(claim, "x")).messages


def test_an_agent_sees_one_thread_whichever_of_the_workers_threads_has_its_event(store: Store) -> None:
    process = Process(store, first, thread_bound, slices=SliceThreads(2, patience_seconds=60))
    run_ids = [store.submit(thread_bound, text="x") for _ in range(4)]
    for run_id in run_ids:
        run_on_many_threads(process, store, run_id)
    for run_id in run_ids:
        view = store.run(run_id)
        assert (view.state, json.loads(view.result or b"")) == ("succeeded", [3, 1])


class Marks:
    """What was marked, and whether the agent ran meanwhile."""

    are_needed = True

    def __init__(self) -> None:
        self.marked: list[tuple[str, str]] = []

    @contextmanager
    def around(self, run_id: str, signature: str) -> Iterator[None]:
        self.marked.append((run_id, signature))
        yield


def test_only_code_that_runs_here_is_marked_and_results_are_committed_before_it(store: Store) -> None:
    process, stranger = Process(store), Process(store, first)
    marks, nothing = Marks(), Marks()
    process.advancer._feed._marks, stranger.advancer._feed._marks = marks, nothing
    run_id = store.submit(advanced, text="t")
    assert stranger.advancer.advance(run_id).outcome is Advanced.NOT_HELD
    assert nothing.marked == []
    process.advance(run_id)
    assert marks.marked == [(run_id, advanced.signature)]
    claim = store.claim(run_id, 1)
    before = store.writes
    process.complete(claim, "one")
    assert store.writes == before + 2, "the completion, then the advance"
    assert len(marks.marked) == 2
    process.advance(run_id)
    assert len(marks.marked) == 2, "there was nothing to run"


def test_a_claim_is_the_last_act_of_an_advance_and_what_is_requested_meanwhile_gets_a_message(store: Store) -> None:
    """Nobody renews its lease before the advance returns."""
    process = Process(store)
    run_id = store.submit(advanced, text="x")

    def may_take(step: NewStep, agent: str) -> bool:
        process.cache.entry(run_id).requests += 1  # another thread's
        return True

    claimant = Claimant(namespace="default", worker="w", lease_us=1_000_000)
    result = process.advancer.advance(run_id, EagerClaim(claimant=claimant, may_take=may_take))
    assert result.claim is not None and (result.claim.position, result.claim.attempt) == (1, 1)
    assert [type(message) for message in result.messages] == [AdvanceMessage]
    assert result.messages[0].run_id == run_id
