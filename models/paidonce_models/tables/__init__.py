"""The tables, one module per noun.

A run's life, in rows: ``runs`` gets a row and ``run_events`` its first event;
an advance consumes events and inserts ``steps``; a worker's claim inserts an
``attempts`` row before money is spent; its completion writes the result to
``payloads``, the money to ``calls`` and ``attempts``, and the next event.
Recovery from a lost attempt writes ``avoided``. What a call costs is looked up
in ``price_rows`` before the price list; once its cause is final it is counted in
``daily_costs``, ``run_costs`` and ``run_totals``. Where ``budgets`` apply, the
claim also writes ``reservations`` and counts them in ``budget_accounts``, or the
step goes to ``held_steps``; where a circuit is open, it goes to
``parked_steps``. A step whose paid result does not fit the code, or whose arguments
do not, goes to ``blocked_steps``. A paid call whose usage is still to come waits in
``awaited_calls``. A process that has reason to marks runs in
``slice_marks`` before it runs their agents. Times are integer microseconds since the epoch in UTC
(``*_at_us``), read from the store's clock. Money is integer nano-dollars,
unknown is NULL.
"""

from paidonce_models.tables.attempts import Attempt
from paidonce_models.tables.awaited_calls import AwaitedCall
from paidonce_models.tables.blocked_steps import StoredBlockedStep
from paidonce_models.tables.budgets import BudgetAccount, StoredBudget, StoredReservation
from paidonce_models.tables.calls import Avoided, Call
from paidonce_models.tables.circuits import BreakerTransition, ParkedStep
from paidonce_models.tables.events import RunEvent
from paidonce_models.tables.held_steps import HeldStep
from paidonce_models.tables.payloads import Payload
from paidonce_models.tables.price_rows import StoredPriceRow
from paidonce_models.tables.registry import METADATA
from paidonce_models.tables.rollups import DailyCost, RunCost, RunTotal
from paidonce_models.tables.runs import Run, RunAlias
from paidonce_models.tables.slice_marks import SliceMark
from paidonce_models.tables.steps import Step
from paidonce_models.tables.witnesses import StoredWitness
from paidonce_models.tables.workers import Sweep, Worker

__all__ = [
    "METADATA",
    "Attempt",
    "Avoided",
    "AwaitedCall",
    "BreakerTransition",
    "BudgetAccount",
    "Call",
    "DailyCost",
    "HeldStep",
    "ParkedStep",
    "Payload",
    "Run",
    "RunAlias",
    "RunCost",
    "RunEvent",
    "RunTotal",
    "SliceMark",
    "Step",
    "StoredBlockedStep",
    "StoredBudget",
    "StoredPriceRow",
    "StoredReservation",
    "StoredWitness",
    "Sweep",
    "Worker",
]
