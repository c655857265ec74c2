"""The fleet: a broker that is a list, a few workers, a sweeper, and a clock that moves when nothing else can.

Single-threaded. What threads and processes would do at once happens at the edges of
transactions, where ``store`` lets something else of the fleet go first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy import Connection, text

from paidonce.testing import simulated_worker
from paidonce_models.budgets import Budget, Unit
from paidonce_models.errors import StoreUnreachable
from paidonce_models.store.budgets.budget_rules import read_budgets, set_budget
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.recovery.lost_steps import expired_leases, holding_of, reclaim_step
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.execution.attempt import Execution
from paidonce_workers.execution.eager_execution import EagerExecution, current_eager_execution
from paidonce_workers.resilience import Timing
from tests.simulation.programs import PRICE_NANOUSD
from tests.simulation.schedule import Fault, Schedule, Turn
from tests.simulation.store import NAMESPACE, START_US, SimulatedDatabase
from tests.simulation.worker import Crash, FleetBodies, UnderWay, Worker

T = TypeVar("T")

MOST_TURNS = 5_000
DEEPEST_INTERLEAVING = 3
GRACE_SECONDS = 3.0
"""Short, so that some runs end while their `finally` still waits for a step."""
LEASE_SECONDS = 10.0
LEASE_US = 10_000_000


class NothingGoesOn(AssertionError):
    """Work is left that nobody will ever do."""


@dataclass
class FaultyBroker:
    """Messages go to the fleet's list, unless their worker dies before it has sent them."""

    fleet: Fleet

    def publish(self, messages: Sequence[Message]) -> int:
        if messages and self.fleet.schedule.fault() is Fault.CRASH:
            raise Crash
        self.fleet.messages += messages
        return len(messages)

    def depth(self, queues: Iterable[str]) -> Mapping[str, int]:
        return {}


class Fleet:
    """Runs until nothing is left to do. ``executed`` and ``spent`` are what a counting server would have seen."""

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
        self.executions: list[UnderWay] = []
        self.reported: set[LeaseKey] = set()
        self.crashes = 0
        self.raises = 0
        self._bodies = FleetBodies(database, self._interrupt)
        self._shared = simulated_worker.Fleet(
            database=database,
            publisher=FaultyBroker(self),
            bodies=self._bodies,
            namespace=NAMESPACE,
            timing=Timing(
                now_us=lambda: database.clock,
                monotonic=lambda: (database.clock - START_US) / 1e6,
                uniform=lambda low, high: high,
            ),
            guesses=dict.fromkeys(Unit, PRICE_NANOUSD),
            lease_seconds=LEASE_SECONDS,
        )
        self._expired_before: list[LeaseKey] = []
        self._cache_size = cache_size
        self._born: list[Worker] = []
        self._acting: list[Worker] = []
        self._turns = 0
        for budget in budgets:
            database.transact(lambda connection, budget=budget: set_budget(connection, NAMESPACE, budget))  # type: ignore[misc]
        self.workers = [self._new_worker(index >= without_agents) for index in range(workers)]
        database.before, database.after = self._before_transaction, self._after_commit

    @property
    def executed(self) -> list[LeaseKey]:
        """The attempts whose bodies ran, once for each time."""
        return self._bodies.executed

    @property
    def spent(self) -> set[LeaseKey]:
        """The attempts that have cost something."""
        return self._bodies.spent

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
        for worker in self._born:
            worker.cache.clear()

    # -- turns -----------------------------------------------------------------------

    def _turn(self) -> bool:
        self._turns += 1
        running = [execution for execution in self.executions if not execution.worker.is_frozen]
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
            self._freeze(running[self.schedule.below(len(running))].worker)
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

    def _go_on_with(self, running: list[UnderWay]) -> None:
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
            self._pass_time(max(0, due - self.database.clock) + 1)
            self._sweep()
            if self.executions and self.schedule.below(3) == 1:
                self._thaw()  # while the next attempt is under way
            return True
        if self.executions:
            self._thaw()
            return True
        return False

    def _freeze(self, worker: Worker) -> None:
        """Stop a process; another one takes its messages."""
        worker.is_frozen = True
        if worker in self.workers:
            self.workers[self.workers.index(worker)] = self._new_worker(worker.holds_agents)

    def _thaw(self) -> None:
        for execution in self.executions:
            if execution.worker.is_frozen:
                execution.worker.is_frozen = False
                return

    # -- workers ---------------------------------------------------------------------

    def _new_worker(self, holds_agents: bool) -> Worker:
        name = f"worker-{len(self._born) + 1}"
        worker = Worker(self._shared, name, holds_agents=holds_agents, cache_size=self._cache_size)
        self._born.append(worker)
        self.messages += self._undisturbed(worker.register)
        return worker

    def _some_worker(self) -> Worker:
        return self.workers[self.schedule.below(len(self.workers))]

    def _kill(self, worker: Worker) -> None:
        worker.is_alive = False
        self.crashes += 1
        self.executions = [execution for execution in self.executions if execution.worker is not worker]
        if worker in self.workers:
            self.workers[self.workers.index(worker)] = self._new_worker(worker.holds_agents)

    def _as(self, worker: Worker, act: Callable[[], None]) -> None:
        """Let a worker act; should it die meanwhile, the rest of the fleet goes on."""
        self._acting.append(worker)
        token = current_eager_execution.set(None)  # of whoever is interrupted by this
        try:
            act()
        except Crash:
            if worker.is_alive:
                self._kill(worker)
        finally:
            current_eager_execution.reset(token)
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
        """A thread may go on with the run's first step, claimed in the same commit."""
        with self._eagerly() as eager:
            worker.executor.advance(message.run_id)
            following = eager.take()
            if following is not None and following.claim is not None:
                self._begin(worker, worker.executor.begin_claimed(following.claim))
            elif following is not None:
                self.messages.append(following.message)

    @contextmanager
    def _eagerly(self) -> Iterator[EagerExecution[object]]:
        eager: EagerExecution[object] = EagerExecution(
            may_take=lambda queue, task: self.schedule.below(2) == 1, seconds=float("inf")
        )
        token = current_eager_execution.set(eager)
        try:
            yield eager
        finally:
            current_eager_execution.reset(token)

    def _execute(self, worker: Worker, message: StepMessage) -> None:
        execution = worker.executor.begin(message.run_id, message.position, message.name, message.agent)
        if execution is not None:
            self._begin(worker, execution)

    def _begin(self, worker: Worker, execution: Execution) -> None:
        self.executions.append(UnderWay(worker, execution))

    def _finish(self, under_way: UnderWay) -> None:
        self.executions.remove(under_way)
        self._as(under_way.worker, lambda: self._complete(under_way))

    def _complete(self, under_way: UnderWay) -> None:
        """A thread may go on with the run or have used up its time."""
        executor = under_way.worker.executor
        with self._eagerly() as eager:
            recorded = executor.finish(under_way.execution)
            self.reported.add(under_way.key)
            following = eager.take()
            if recorded is not None and recorded.next_claim is not None:
                self._begin(under_way.worker, executor.begin_claimed(recorded.next_claim))
            elif following is not None:
                self.messages.append(following.message)

    def _hand_back(self, under_way: UnderWay) -> None:
        under_way.stop(Reason.HANDED_BACK)
        self._finish(under_way)

    # -- time ------------------------------------------------------------------------

    def _pass_some_time(self) -> None:
        self._pass_time((1 + self.schedule.below(8)) * 1_000_000)
        self._sweep()

    def _pass_time(self, microseconds: int) -> None:
        """Move the clock; who is not frozen renews its leases in time and learns what was cancelled."""
        self.database.clock += microseconds
        busy = [execution.worker for execution in self.executions if execution.worker not in self.workers]
        for worker in dict.fromkeys([*self.workers, *busy]):
            if not worker.is_frozen:
                self._undisturbed(worker.beat)

    def _interrupt(self, key: Hashable, reason: Reason) -> bool:
        """The heartbeat says that the step is no longer this worker's: its body is stopped, if it can be."""
        if self.schedule.below(2) == 0:
            for execution in self.executions:
                if execution.key == key:
                    execution.stop(reason)
        return True

    def _sweep(self) -> None:
        worker = self._some_worker()
        self._as(worker, lambda: self._tolerantly(lambda: self._sweep_once(worker)))

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

    def _sweep_once(self, worker: Worker) -> None:
        database = self.database
        with database.read() as connection:
            expired = expired_leases(connection, namespace=NAMESPACE, shard=0)
        self._shared.publisher.publish(worker.sweep())
        # A slow sweeper acts on what it read long ago.
        for key in self._expired_before:
            with database.read() as connection:
                alone = holding_of(connection, key).held == 1
            message = database.transact(
                lambda c, key=key, alone=alone: reclaim_step(c, key, why="not heard of", alone=alone)  # type: ignore[misc]
            )
            self._shared.publisher.publish([] if message is None else [message])
        self._expired_before = list(expired)
        with database.read() as connection:
            blocked = connection.execute(_BLOCKED).scalar_one()
        assert blocked == 0, "a run was blocked although every worker of the fleet is alive"

    # -- what goes wrong -------------------------------------------------------------

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
        running = [execution for execution in self.executions if not execution.worker.is_frozen]
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


_BLOCKED = text("SELECT count(*) FROM runs WHERE state = 'blocked'")


def _held_steps(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM steps WHERE state = 'held'")).scalar_one())
