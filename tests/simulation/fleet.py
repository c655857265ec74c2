"""The fleet: a broker that is a list, a few workers, a sweeper, and a clock that moves when nothing else can.

Single-threaded. What threads and processes would do at once happens at the edges of
transactions, where ``store`` lets something else of the fleet go first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Connection, text

from paidonce.advance import Advanced
from paidonce.taking_on import TakeOn
from paidonce_models.budgets import Budget
from paidonce_models.errors import StoreUnreachable
from paidonce_models.queues import full_queue_name
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.blocking import block_unheld
from paidonce_models.store.budget_rules import read_budgets, set_budget
from paidonce_models.store.cancel_run import cancel_run
from paidonce_models.store.claims import Claim, Claimant
from paidonce_models.store.completion import Acceptance, Completion
from paidonce_models.store.held_steps import let_go, steps_with_room
from paidonce_models.store.leases import LeaseKey, hand_back, renew_leases
from paidonce_models.store.ledger import insert_calls
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.sweeping import company_of, due_timers, expired_leases, fire_timer, take_back, take_due
from paidonce_models.store.workers import HeldAgent, Registration, register_worker, worker_seen
from tests.simulation.programs import interpret
from tests.simulation.schedule import Fault, Schedule, Turn
from tests.simulation.store import NAMESPACE, SimulatedDatabase
from tests.simulation.worker import LEASE_US, PRICE_NANOUSD, STEPS, Crash, Execution, Worker

T = TypeVar("T")

MOST_TURNS = 5_000
DEEPEST_INTERLEAVING = 3
GRACE_SECONDS = 3.0
"""Short, so that some runs end while their `finally` still waits for a step."""
NO_WORKER_US = 60_000_000
BLOCK_EVERY_US = 5_000_000
REGISTERED = "the whole fleet"


class NothingGoesOn(AssertionError):
    """Work is left that nobody will ever do."""


class Fleet:
    """Runs until nothing is left to do. ``executed`` and ``reported`` are what a counting server would have seen."""

    def __init__(
        self,
        database: SimulatedDatabase,
        schedule: Schedule,
        *,
        workers: int = 1,
        cache_size: int = 100,
        without_agents: int = 0,
        budgets: Sequence[Budget] = (),
    ) -> None:
        self.database = database
        self.schedule = schedule
        self.messages: list[Message] = []
        self.executions: list[Execution] = []
        self.executed: list[LeaseKey] = []
        self.reported: list[Completion] = []
        self.crashes = 0
        self.raises = 0
        self._dead: list[Worker] = []
        self._block_from = database.clock + BLOCK_EVERY_US
        self._expired_before: list[LeaseKey] = []
        self._cache_size = cache_size
        self._born = 0
        self.workers = [self._new_worker(index >= without_agents) for index in range(workers)]
        self._acting: list[Worker] = []
        self._turns = 0
        database.transact(self._register)
        for budget in budgets:
            database.transact(lambda connection, budget=budget: set_budget(connection, NAMESPACE, budget))  # type: ignore[misc]
        database.before, database.after = self._before_transaction, self._after_commit

    # -- what a scenario does --------------------------------------------------------

    def cancel(self, run_id: str) -> None:
        """A client cancels a run."""
        self.messages += self._undisturbed(
            lambda: self.database.transact(
                lambda connection: cancel_run(connection, NAMESPACE, run_id, grace_seconds=GRACE_SECONDS)
            )
        )

    def go_on(self, turns: int | None = None) -> None:
        """Go on until nothing is left to do, or for so many turns."""
        until = MOST_TURNS if turns is None else self._turns + turns
        while self._turns < until:
            if not self._turn():
                return
        if turns is None:
            raise NothingGoesOn(f"{MOST_TURNS} turns were not enough: {self.messages[:3]} {self.executions[:3]}")

    def close(self) -> None:
        """Drop every coroutine as silently as the death of a process does."""
        for worker in self.workers + self._dead:
            worker.cache.clear()

    # -- turns -----------------------------------------------------------------------

    def _turn(self) -> bool:
        self._turns += 1
        running = [execution for execution in self.executions if not execution.is_frozen]
        if not self.messages and not running:
            return self._idle()
        turn = self.schedule.turn()
        if turn is Turn.DROP and self.messages:
            del self.messages[self.schedule.below(len(self.messages))]
        elif turn is Turn.DUPLICATE and self.messages:
            self.messages.append(self.messages[self.schedule.below(len(self.messages))])
        elif turn is Turn.SWEEP:
            self._pass_some_time()
        elif turn is Turn.FREEZE and running:
            running[self.schedule.below(len(running))].is_frozen = True
        elif turn is Turn.THAW and len(running) < len(self.executions):
            self._thaw()
        elif turn is Turn.KILL:
            self._kill(self._some_worker())
        elif turn is Turn.HAND_BACK and running:
            self._hand_back(running[self.schedule.below(len(running))])
        elif turn is Turn.EVICT:
            self._some_worker().cache.clear()
        else:
            self._go_on_with(running)
        return True

    def _go_on_with(self, running: list[Execution]) -> None:
        chosen = self.schedule.below(len(self.messages) + len(running))
        if chosen < len(self.messages):
            self._deliver(self.messages.pop(chosen))
        else:
            self._finish(running[chosen - len(self.messages)])

    def _idle(self) -> bool:
        if self._let_go_held():
            return True
        due = self.database.next_due_us()
        if due is not None:
            if due > self.database.clock + LEASE_US:
                self._undisturbed(lambda: self.database.transact(lambda c: worker_seen(c, REGISTERED)))
            self._pass_time(max(0, due - self.database.clock) + 1)
            self._sweep()
            if self.executions and self.schedule.below(3) == 1:
                self._thaw()  # while the next attempt is under way
            return True
        if self.executions:
            self._thaw()
            return True
        return False

    def _thaw(self) -> None:
        for execution in self.executions:
            if execution.is_frozen:
                execution.is_frozen = False
                return

    # -- workers ---------------------------------------------------------------------

    def _new_worker(self, holds_agents: bool) -> Worker:
        self._born += 1
        return Worker(f"worker-{self._born}", self.database, self._cache_size, holds_agents)

    def _some_worker(self) -> Worker:
        return self.workers[self.schedule.below(len(self.workers))]

    def _kill(self, worker: Worker) -> None:
        worker.is_alive = False
        self.crashes += 1
        self.executions = [execution for execution in self.executions if execution.worker is not worker]
        self._dead.append(worker)
        self.workers[self.workers.index(worker)] = self._new_worker(worker.holds_agents)

    def _as(self, worker: Worker, act: Callable[[], None]) -> None:
        """Let a worker act; should it die meanwhile, the rest of the fleet goes on."""
        self._acting.append(worker)
        try:
            act()
        except Crash:
            if worker.is_alive:
                self._kill(worker)
        finally:
            self._acting.pop()

    def _deliver(self, message: Message) -> None:
        worker = self._some_worker()
        if isinstance(message, StepMessage):
            self._as(worker, lambda: self._execute(worker, message))
            return
        if not worker.holds_agents:
            worker = next(each for each in self.workers if each.holds_agents)
        self._as(worker, lambda: self._advance(worker, message))

    def _advance(self, worker: Worker, message: AdvanceMessage) -> None:
        result = self._patiently(lambda: worker.advancer.advance(message.run_id))
        self._publish(result.messages)

    def _execute(self, worker: Worker, message: StepMessage) -> None:
        claim = self._patiently(lambda: worker.claimer.claim(message.run_id, message.position))
        if claim is not None:
            self._begin(worker, claim)

    def _begin(self, worker: Worker, claim: Claim) -> None:
        execution = worker.run_body(claim)
        self.executed.append(execution.key)
        self.executions.append(execution)

    def _take_on(self, worker: Worker) -> TakeOn:
        """A thread may go on with the run or have used up its turn."""
        return TakeOn(
            claimant=Claimant(namespace=NAMESPACE, worker=worker.name, lease_us=LEASE_US),
            may_take=lambda step: self.schedule.below(2) == 1,
        )

    def _finish(self, execution: Execution) -> None:
        self.executions.remove(execution)
        self._as(execution.worker, lambda: self._complete(execution))

    def _complete(self, execution: Execution) -> None:
        completion = execution.completion
        result = self._patiently(
            lambda: execution.worker.advancer.complete(
                completion, recorded_at_us=lambda: self.database.clock, take_on=self._take_on(execution.worker)
            )
        )
        self.reported.append(completion)
        if result.acceptance is Acceptance.ACCEPTED:
            self._publish(result.messages)
            if result.claim is not None:
                self._begin(execution.worker, result.claim)
            if result.outcome is Advanced.NOT_HELD:
                claim = execution.claim
                self._publish([AdvanceMessage(run_id=claim.run_id, agent=claim.agent, queue="", priority=5)])

    def _hand_back(self, execution: Execution) -> None:
        self.executions.remove(execution)
        claim, completion = execution.claim, execution.completion

        def act() -> None:
            message = self.database.transact(lambda connection: hand_back(connection, execution.key, reason="stopping"))
            self.database.transact(lambda connection: insert_calls(connection, claim, completion.calls))
            self.reported.append(completion)
            self._publish([] if message is None else [message])

        self._as(execution.worker, lambda: self._tolerantly(act))

    def _publish(self, messages: list[Message]) -> None:
        if messages and self.schedule.fault() is Fault.CRASH:
            raise Crash
        self.messages += messages

    # -- time ------------------------------------------------------------------------

    def _pass_some_time(self) -> None:
        self._pass_time((1 + self.schedule.below(8)) * 1_000_000)
        self._sweep()

    def _pass_time(self, microseconds: int) -> None:
        """Move the clock; who is not frozen renews its leases in time and learns what was cancelled."""
        self.database.clock += microseconds
        for worker in self.workers:
            held = {e.key: e for e in self.executions if e.worker is worker and not e.is_frozen}
            if not held:
                continue
            states = self._undisturbed(
                lambda worker=worker, held=held: self.database.transact(  # type: ignore[misc]
                    lambda c: renew_leases(c, worker=worker.name, held=list(held), lease_us=LEASE_US)
                )
            )
            for key, execution in held.items():
                if states.get(key) != "running":
                    self._interrupt(execution)

    def _interrupt(self, execution: Execution) -> None:
        """The heartbeat says that the step is no longer this worker's: its body is stopped, if it can be."""
        if self.schedule.below(2) == 0:
            execution.completion = replace(
                execution.completion,
                outcome=AttemptOutcome.CANCELLED,
                result=None,
                result_json=None,
                retry_after_us=None,
                error={"type": "BodyCancelled", "code": "cancelled", "message": "stopped"},
            )

    def _sweep(self) -> None:
        worker = self._some_worker()
        self._as(worker, lambda: self._tolerantly(self._sweep_once))

    def _let_go_held(self) -> bool:
        """Nothing else goes on: what a budget holds does, once somebody has raised it. Before any time passes."""
        held = self._undisturbed(lambda: self.database.transact(_held_steps))
        if held == 0:
            return False
        self.raises += 1
        self._undisturbed(lambda: self.database.transact(self._raise))
        self._sweep()
        return True

    def _raise(self, connection: Connection) -> None:
        for budget in read_budgets(connection, NAMESPACE):
            set_budget(connection, NAMESPACE, replace(budget, amount=budget.amount + PRICE_NANOUSD))

    def _sweep_once(self) -> None:
        database = self.database
        with database.read() as connection:
            roomy = steps_with_room(connection, namespace=NAMESPACE, shard=0)
        for held in roomy:
            gone = database.transact(lambda c, held=held: let_go(c, held))  # type: ignore[misc]
            self._publish([] if gone is None else [gone])
        with database.read() as connection:
            expired = expired_leases(connection, namespace=NAMESPACE, shard=0)
        # A slow sweeper acts on what it read long ago.
        for key in self._expired_before + list(expired):
            with database.read() as connection:
                alone = company_of(connection, key)[1] == 1
            message = database.transact(
                lambda c, key=key, alone=alone: take_back(c, key, why="not heard of", alone=alone)  # type: ignore[misc]
            )
            self._publish([] if message is None else [message])
        self._expired_before = list(expired)
        with database.read() as connection:
            timers = due_timers(connection, namespace=NAMESPACE, shard=0)
        for timer in timers:
            fired = database.transact(lambda c, timer=timer: fire_timer(c, timer.run_id))  # type: ignore[misc]
            self._publish([] if fired is None else [fired])
        due = database.transact(lambda c: take_due(c, namespace=NAMESPACE, shard=0))
        self._publish([entry.message for entry in due])
        if database.clock >= self._block_from:
            self._block_from = database.clock + BLOCK_EVERY_US
            blocked = database.transact(_blocked)
            assert blocked == 0, "a run was blocked although every worker of the fleet is alive"

    # -- what goes wrong -------------------------------------------------------------

    def _patiently(self, act: Callable[[], T]) -> T:
        while True:
            try:
                return act()
            except StoreUnreachable:
                continue

    def _tolerantly(self, act: Callable[[], None]) -> None:
        try:
            act()
        except StoreUnreachable:
            pass  # the next sweep finds what this one left

    def _undisturbed(self, act: Callable[[], T]) -> T:
        database = self.database
        hooks = database.before, database.after
        database.before = database.after = lambda: None
        try:
            return act()
        finally:
            database.before, database.after = hooks

    def _before_transaction(self) -> None:
        fault = self.schedule.fault()
        if fault is Fault.INTERLEAVE and 0 < len(self._acting) < DEEPEST_INTERLEAVING:
            for _ in range(1 + self.schedule.below(3)):
                self._interleave()
        self._go_wrong(fault)

    def _after_commit(self) -> None:
        self._go_wrong(self.schedule.fault())

    def _interleave(self) -> None:
        running = [execution for execution in self.executions if not execution.is_frozen]
        if self.schedule.below(4) == 3:
            self._pass_some_time()
        elif self.messages or running:
            self._go_on_with(running)

    def _go_wrong(self, fault: Fault) -> None:
        if not self._acting:
            return
        if fault is Fault.CRASH or not self._acting[-1].is_alive:
            raise Crash
        if fault is Fault.UNREACHABLE:
            raise StoreUnreachable("simulated")

    def _register(self, connection: Connection) -> None:
        register_worker(
            connection,
            Registration(
                worker=REGISTERED,
                namespace=NAMESPACE,
                hostname="simulation",
                pid=1,
                python_minor="3",
                queues=[full_queue_name(queue) for queue in ("default", "tools")],
                agents=[HeldAgent(name=interpret.name, version=interpret.version, signature=interpret.signature)],
                steps=list(STEPS),
            ),
        )


def _blocked(connection: Connection) -> int:
    worker_seen(connection, REGISTERED)
    return block_unheld(connection, namespace=NAMESPACE, shard=0, patience_us=NO_WORKER_US)


def _held_steps(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM steps WHERE state = 'held'")).scalar_one())
