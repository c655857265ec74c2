"""Three days of a small company's agents: the data behind the answers to cost questions. The same on every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paidonce_models.states import RunState
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.ledger.rolling_up import roll_up
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.advancing import RunEnd
from paidonce_models.store.steps.claims import Claim
from paidonce_models.usage import CallKind, CallRecord, CallStatus, UsageSource
from tests.models.stored_runs import SECOND_US, Store, failure, key_of, succeeded, success

NAMESPACE = "default"
FIRST_DAY_US = 1_793_606_400_000_000
"""2026-11-02 at 8:00 UTC."""
DAY_US = 86_400 * SECOND_US
CRASHED_RUN = "019a4f00-0000-7000-8000-000000000003"
FAILED = RunEnd(state=RunState.FAILED, error={"type": "ValueError", "message": "no sources found"})


class Company:
    """Writes the runs, one after the other."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self._runs = 0
        self._requests = 0

    def write(self) -> None:
        """Three days of three agents."""
        for day in range(3):
            self.store.clock.now_us = FIRST_DAY_US + day * DAY_US
            for number, customer in enumerate(("acme", "globex", "acme", "initech")):
                self.research(customer, searches=2 + number, crashes=day == 0 and number == 2)
            for number in range(5):
                self.support(("globex", "acme")[number % 2], fails=day == 1 and number == 3)
        self.research("initech", searches=24)
        self.review()
        self.store.transact(roll_up, NAMESPACE)
        self.support("acme", ends=False)
        self.store.database.close()

    def research(self, customer: str, *, searches: int, crashes: bool = False) -> None:
        """Plans, searches and writes; the second search fails once, and one run loses its worker while it writes."""
        run_id = self._start("research", customer)
        self._step(run_id, "plan", [self._llm("claude-sonnet-4-5", 2_000, 400, 12_000_000)])
        for number in range(searches):
            self._step(run_id, "search", [self._tool("web_search", 5_000_000)], fails_first=number == 1)
        draft = self._llm("claude-sonnet-4-5", 9_000, 1_500, 49_500_000)
        self._step(run_id, "write", [draft], crashes=crashes)
        self._end(run_id, succeeded())

    def support(self, customer: str, *, fails: bool = False, ends: bool = True) -> None:
        """One answer; the first request is sometimes sent twice by the client's library."""
        run_id = self._start("support", customer)
        retried = self._llm("gpt-5-mini", None, None, None, status=CallStatus.FAILED)
        answer = self._llm("gpt-5-mini", 3_000, 300, 1_350_000)
        twice = self._runs % 3 == 0
        self._step(run_id, "answer", [retried, replace(answer, http_retry=1)] if twice else [answer])
        if ends:
            self._end(run_id, FAILED if fails else succeeded())

    def review(self) -> None:
        """A model of one's own without a price, and a stream that was cut."""
        run_id = self._start("review", None)
        unpriced = self._llm("our-own-8b", 1_200, 90, None)
        cut = self._llm("gpt-5-mini", 800, 40, 280_000, status=CallStatus.CUT, source=UsageSource.ESTIMATED)
        self._step(run_id, "judge", [unpriced, cut])
        self._end(run_id, succeeded())

    def _start(self, agent: str, customer: str | None) -> str:
        self._runs += 1
        run_id = f"019a4f00-0000-7000-8000-{self._runs:012d}"
        tags = {} if customer is None else {"customer": customer}
        self.store.submit(self._runs, namespace=NAMESPACE, agent=agent, run_id=run_id, tags=tags)
        return run_id

    def _step(
        self, run_id: str, name: str, calls: Sequence[CallRecord], *, fails_first: bool = False, crashes: bool = False
    ) -> None:
        self.store.advance(run_id, steps=1, name=name)
        (position,) = self.store.row("SELECT max(position) FROM steps WHERE run_id = :run_id", run_id=run_id)
        if fails_first:
            claim = self._claim(run_id, position)
            self.store.complete(replace(failure(claim, retry_after_us=0), calls=self._dated(claim, calls)))
        if crashes:
            claim = self._claim(run_id, position)
            early = [self._llm("claude-sonnet-4-5", 1_000, 100, 4_500_000)]
            self.store.transact(insert_calls, claim=claim, records=self._dated(claim, early))
            self.store.clock.move(30 * SECOND_US)
            self.store.transact(reclaim_step, key_of(claim), why="no heartbeat for 30 s", alone=True, anyway=True)
        claim = self._claim(run_id, position)
        self.store.complete(replace(success(claim), calls=self._dated(claim, calls)))

    def _claim(self, run_id: str, position: int) -> Claim:
        self.store.clock.move(SECOND_US)
        claim = self.store.claimed(run_id, position)
        self.store.clock.move(2 * SECOND_US)
        return claim

    def _end(self, run_id: str, end: RunEnd) -> None:
        self.store.advance(run_id, end=end)

    def _dated(self, claim: Claim, calls: Sequence[CallRecord]) -> list[CallRecord]:
        """Calls of this attempt: each with an id, a time and a provider's request id of its own."""
        dated = []
        for number, call in enumerate(calls):
            self._requests += 1
            dated.append(
                replace(
                    call,
                    id=f"019a4f00-0000-7001-8000-{self._requests:012d}",
                    started_at_us=claim.claimed_at_us + number,
                    provider_request_id=f"req_{self._requests:04d}",
                )
            )
        return dated

    def _llm(
        self,
        model: str,
        input_tokens: int | None,
        output_tokens: int | None,
        cost_nanousd: int | None,
        *,
        status: CallStatus = CallStatus.OK,
        source: UsageSource | None = None,
    ) -> CallRecord:
        known = UsageSource.MISSING if input_tokens is None else UsageSource.PROVIDER
        return CallRecord(
            kind=CallKind.LLM,
            started_at_us=0,
            duration_us=1_800_000,
            model_requested=model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            usage_source=known if source is None else source,
            status=status,
            cost_nanousd=cost_nanousd,
        )

    def _tool(self, name: str, cost_nanousd: int) -> CallRecord:
        return CallRecord(
            kind=CallKind.TOOL,
            started_at_us=0,
            duration_us=300_000,
            tool=name,
            usage_source=UsageSource.EXPLICIT,
            cost_nanousd=cost_nanousd,
            other_cost_nanousd=cost_nanousd,
        )
