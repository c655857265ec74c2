"""Random lives of runs for the tests of the ledger: failures, retries, crashes, zombies, cancellations, children."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.ledger.rolling_up import roll_up
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.advancing import RunEnd
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.steps.claims import Claim
from paidonce_models.usage import CallKind, CallRecord, CallStatus, UsageSource
from tests.models.stored_runs import NAMESPACE, Store, failure, key_of, success

DAY_US = 86_400_000_000
MODELS = ("claude-sonnet", "gpt-mini", None)
TOOLS = ("web_search", "sql", None)
CUSTOMERS = ("ada", 'o"hara', "名前", "a,b=c", "%s :x '")


@dataclass
class Lives:
    """Acts on a few runs of one store, drawn from one source of randomness. Several may share a store."""

    store: Store
    random: random.Random
    runs: list[str] = field(default_factory=list)
    held: list[Claim] = field(default_factory=list)
    zombies: list[Claim] = field(default_factory=list)

    def act(self) -> None:
        """Do one thing that can happen to a run, if it can happen now."""
        acts = (
            *(self.submit, self.ask, self.ask, self.claim, self.claim, self.claim, self.flush, self.succeed),
            *(self.succeed, self.succeed, self.fail, self.crash, self.report_late, self.cancel, self.end, self.roll_up),
        )
        self.random.choice(acts)()

    def submit(self) -> None:
        """A new run, with tags or without."""
        tags = {"customer": self.random.choice(CUSTOMERS)} if self.random.random() < 0.8 else {}
        agent = self.random.choice(("count", "write"))
        self.runs.append(self.store.submit(self.random.random(), tags=tags, agent=agent).run_id)

    def ask(self) -> None:
        """The agent of a run asks for steps, sometimes for a child run."""
        if run_id := self._open_run():
            name = self.random.choice(("plan", "search"))
            self.store.advance(run_id, steps=self.random.randint(1, 2), name=name)
            if self.random.random() < 0.3:
                self.store.advance(run_id, children=1)
            self.runs += [
                row.id
                for row in self.store.rows("SELECT id FROM runs WHERE root_run_id = :run_id", run_id=run_id)
                if row.id not in self.runs
            ]

    def claim(self) -> None:
        """A worker takes a step."""
        if run_id := self._open_run():
            due = self.store.rows(
                "SELECT position FROM steps WHERE run_id = :run_id AND kind <> 'agent' "
                "AND state IN ('scheduled', 'retrying') ORDER BY position",
                run_id=run_id,
            )
            claim = self.store.claim(run_id, self.random.choice(due).position) if due else None
            if claim is not None:
                self.held.append(claim)

    def flush(self) -> None:
        """A heartbeat writes calls of a step under way."""
        if self.held:
            claim = self.random.choice(self.held)
            self.store.transact(insert_calls, claim=claim, records=self.calls(claim))

    def succeed(self) -> None:
        """A step ends well."""
        if self.held:
            claim = self._take(self.held)
            self.store.complete(replace(success(claim), calls=self.calls(claim)))

    def fail(self) -> None:
        """A step fails, is tried again, or runs out of time."""
        if self.held:
            claim = self._take(self.held)
            retry = self.random.choice((0, None))
            outcome = self.random.choice((AttemptOutcome.FAILED, AttemptOutcome.TIMED_OUT))
            self.store.complete(replace(failure(claim, retry_after_us=retry), outcome=outcome, calls=self.calls(claim)))

    def crash(self) -> None:
        """A worker is not heard of; it may still come back."""
        if self.held:
            claim = self._take(self.held)
            self.store.transact(reclaim_step, key_of(claim), why="gone", alone=True, anyway=True)
            self.zombies.append(claim)

    def report_late(self) -> None:
        """A worker that was given up reports."""
        if self.zombies:
            claim = self._take(self.zombies)
            self.store.complete(replace(success(claim), calls=self.calls(claim)))

    def cancel(self) -> None:
        """Somebody asks a run to end."""
        if self.runs and self.random.random() < 0.3:
            run_id = self.random.choice(self.runs)
            self.store.transact(cancel_run, NAMESPACE, run_id, grace_seconds=0)

    def end(self) -> None:
        """An agent returns, raises or ends its cancellation, whatever its steps do."""
        if self.random.random() < 0.5 and (run_id := self._open_run()):
            state = self.random.choice((RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED))
            error = None if state is RunState.SUCCEEDED else {"type": "ValueError", "message": "no"}
            self.store.advance(run_id, end=RunEnd(state=state, error=error))

    def roll_up(self) -> None:
        """The sweeper's leader adds settled calls to the sums."""
        self.store.transact(roll_up, NAMESPACE, most=self.random.choice((1, 3, 1000)))

    def calls(self, claim: Claim) -> list[CallRecord]:
        """Up to three calls, some without a price, without usage, failed, or of another day."""
        return [self._call(claim) for _ in range(self.random.randint(0, 3))]

    def _call(self, claim: Claim) -> CallRecord:
        draw = self.random
        known = draw.random() < 0.8
        cost = draw.randint(0, 10**12) if known and draw.random() < 0.8 else None
        return CallRecord(
            kind=CallKind.LLM,
            started_at_us=claim.claimed_at_us + draw.randint(0, 2) * DAY_US,
            tool=draw.choice(TOOLS),
            model_requested=draw.choice(MODELS),
            input_tokens=draw.randint(0, 10**6) if known else None,
            output_tokens=draw.randint(0, 10**6) if known else None,
            reasoning_tokens=draw.choice((None, 7)),
            usage_source=UsageSource.PROVIDER if known else draw.choice((UsageSource.MISSING, UsageSource.ESTIMATED)),
            status=draw.choice(tuple(CallStatus)),
            http_retry=draw.choice((0, 0, 1)),
            cost_nanousd=cost,
        )

    def _open_run(self) -> str | None:
        found = self.store.rows("SELECT id FROM runs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')")
        known = sorted({row.id for row in found}.intersection(self.runs))
        return self.random.choice(known) if known else None

    def _take(self, claims: list[Claim]) -> Claim:
        return claims.pop(self.random.randrange(len(claims)))
