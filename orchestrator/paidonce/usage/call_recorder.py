"""``CallRecorder``: where each paid call of an attempt, captured or stated, is priced and recorded.

Owns how a paid call inside a step's body becomes a ``CallRecord``, whether it was captured or stated
(``explicit_usage``): which recorder gets it (the current attempt's, found through a context variable), what it costs
(by the worker's price book at that moment) and which tool it belongs to (the innermost one). Writes nothing to the
store: the worker flushes the recorder with each heartbeat and drains it with the completion. Imports no prices before
the first call is recorded.

Context variables follow ``async`` code and ``asyncio.to_thread``; in a worker, usage
capture also passes them to threads that a step starts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from paidonce.usage.captured_calls import CapturedCall, SeenCalls, Statement, with_price, with_tokens, without_tokens
from paidonce_models.errors import InvalidInput
from paidonce_models.ids import uuid7
from paidonce_models.usage import CallRecord, Usage, UsageSource

if TYPE_CHECKING:
    from paidonce_models.pricing import PriceBook

log = logging.getLogger(__name__)

MOST_AWAITED: Final = 10_000
"""Maximum number of calls that await their usage; further ones are written at once, as unknown."""
MAX_UNFLUSHED_CALLS: Final = 10_000
"""A heartbeat empties the recorder every few seconds, so this allows thousands of paid calls per second."""


def wall_clock_us() -> int:
    """Microseconds since the epoch by this host; it dates calls and decides nothing."""
    return time.time_ns() // 1000


class CallRecorder:
    """The calls of one attempt that the store does not have yet. Thread-safe.

    Bounded: beyond ``max_calls`` a call is refused with an error rather than spent unrecorded.
    """

    def __init__(
        self,
        *,
        prices: Callable[[], PriceBook] | None = None,
        now_us: Callable[[], int] = wall_clock_us,
        max_calls: int = MAX_UNFLUSHED_CALLS,
    ) -> None:
        """``prices`` returns the book that prices a call when it is recorded or drained; ``None``: list prices only."""
        self._prices = prices
        self._now_us = now_us
        self._max_calls = max_calls
        self._calls: list[CallRecord | CapturedCall] = []
        self._awaited: dict[str, CapturedCall] = {}
        """Calls whose usage is still to come, by the id of their work. They are written when it has arrived, or as
        unknown at the attempt's end: a written row is never changed."""
        self._awaited_in_child: list[CallRecord] = []
        self._seen = SeenCalls()
        self._when_late: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._flushes = 0
        self._no_flush = threading.Condition(self._lock)

    def now_us(self) -> int:
        """The recorder's clock, for the start of a call."""
        return self._now_us()

    def priced(self, call: CallRecord, usage: Usage) -> CallRecord:
        """``call`` with the tokens of ``usage`` and, unless it has a cost, its price if one is known."""
        if call.cost_nanousd is not None:
            return with_tokens(call, usage)
        priced = self._price_book().price(usage, call.started_at_us)
        return with_tokens(call, usage) if priced is None else with_price(call, usage, priced)

    def append(self, call: CallRecord, usage: Usage | None = None, ids: tuple[str, ...] = ()) -> None:
        """Keep a finished call until the next drain; adds the innermost tool's name if it has none.

        ``ids`` are the provider's ids of it, by which a capture that ends later recognises it.
        """
        if call.tool is None:
            stack = tool_stack.get()
            call = replace(call, tool=stack[-1] if stack else None)
        with self._lock:
            self._keep(call)
            if usage is not None:
                self._seen.add_explicit(ids, call, usage)
        self._tell_if_late()

    def append_captured(self, captured: CapturedCall) -> None:
        """Keep a call seen on the wire, unless ``record_usage`` was passed its response before it ended."""
        with self._lock:
            explicit = self._seen.take_explicit(captured.ids)
            if explicit is None:
                if captured.awaited_id is not None and self._when_late is None and len(self._awaited) < MOST_AWAITED:
                    self._awaited[captured.awaited_id] = captured
                else:
                    self._keep(captured)
            else:
                captured.settle(*explicit)
            self._seen.add_captured(captured)
        self._tell_if_late()

    @property
    def is_awaiting(self) -> bool:
        """Whether any call awaits its usage."""
        return bool(self._awaited)

    def awaited(self) -> list[CallRecord]:
        """The calls that await their usage, as the ledger gets them if it never arrives; the heartbeat stores them."""
        with self._lock:
            return [*(captured.unknown() for captured in self._awaited.values()), *self._awaited_in_child]

    def awaits(self, awaited_id: str) -> bool:
        """Whether the call that started this work awaits its usage."""
        return awaited_id in self._awaited

    def complete_awaited(self, awaited_id: str, answer: Mapping[str, object]) -> None:
        """The work is done, with this usage; does nothing the second time."""
        with self._lock:
            captured = self._awaited.pop(awaited_id, None)
            if captured is None:
                return
            captured.complete(answer, self._now_us() - captured.call.started_at_us)
            self._calls.append(captured)
        self._tell_if_late()

    def captured_already(self, ids: tuple[str, ...], statement: Statement) -> CallRecord | None:
        """The captured call with one of these ids, completed by the statement; ``None``: it is a separate call.

        What the capture knows takes precedence. Usage that it did not see and a stated cost
        are added while the row is not written. A written row is never changed: what was
        unknown in it becomes another row.
        """
        with self._lock:
            captured = self._seen.captured(ids)
            if captured is None:
                return None
            is_awaited = captured.awaited_id is not None and self._awaited.get(captured.awaited_id) is captured
            unwritten = is_awaited or captured in self._calls
            says_more = statement.usage.is_known and not captured.has_usage
            if unwritten:
                captured.restate(statement)
            if is_awaited and captured.has_usage and captured.awaited_id is not None:
                self._calls.append(self._awaited.pop(captured.awaited_id))
        record = captured.record(self.priced)
        if unwritten or (not says_more and statement.cost_nanousd is None):
            return record
        if says_more:
            return None
        if record.cost_nanousd is None:
            # Only the money is new: the tokens are in the row that was written.
            cost = replace(
                without_tokens(record),
                id=uuid7(),
                usage_source=UsageSource.EXPLICIT,
                cost_nanousd=statement.cost_nanousd,
                other_cost_nanousd=statement.cost_nanousd,
                price_source=statement.price_source,
            )
            self.append(cost)
            return cost
        log.warning(
            "a stated cost came after the captured call was written to the ledger; the price recorded there stands",
            extra={"event": "stated_cost_too_late"},
        )
        return record

    def drain(self) -> list[CallRecord]:
        """Take every call recorded so far, oldest first, each once. For the code that ends the attempt.

        Waits while calls are being flushed: what the flush fails to write belongs to the end of the attempt, and what
        it writes is in the store before the attempt releases its reservations.
        """
        with self._no_flush:
            self._no_flush.wait_for(lambda: self._flushes == 0)
            calls, self._calls = [*self._calls, *self._awaited.values(), *self._awaited_in_child], []
            self._awaited, self._awaited_in_child = {}, []
        return self._recorded(calls)

    def begin_flush(self) -> list[CallRecord]:
        """Take every call recorded so far, to write it while the attempt continues; ``end_flush`` must follow.

        Excludes calls whose usage is still to come.
        """
        with self._lock:
            calls, self._calls = self._calls, []
            self._flushes += bool(calls)
        try:
            return self._recorded(calls)
        except BaseException:
            self.end_flush(calls, written=False)
            raise

    def end_flush(self, calls: Sequence[CallRecord | CapturedCall], *, written: bool) -> None:
        """All calls of ``begin_flush`` are in the store; or none is, and they are put back in front."""
        with self._no_flush:
            if not written:
                self._calls[:0] = calls
            self._flushes -= bool(calls)
            self._no_flush.notify_all()
        self._tell_if_late()

    def take_over(self, calls: Sequence[CallRecord], awaited: Sequence[CallRecord] = ()) -> None:
        """Add the calls that a child process has recorded and drained, and those whose usage it awaits now."""
        with self._lock:
            self._calls += calls
            # A call that completes while the child reports it is reported twice.
            told = {call.id for call in calls}
            self._awaited_in_child = [call for call in awaited if call.id not in told]
        self._tell_if_late()

    def end(self, when_late: Callable[[], object]) -> None:
        """The attempt is over and drains no more; ``when_late`` is called for calls that are left or still arrive."""
        with self._lock:
            self._when_late = when_late
            self._calls += [*self._awaited.values(), *self._awaited_in_child]
            self._awaited, self._awaited_in_child = {}, []
        self._tell_if_late()

    def _recorded(self, calls: Sequence[CallRecord | CapturedCall]) -> list[CallRecord]:
        return [call.record(self.priced) if isinstance(call, CapturedCall) else call for call in calls]

    def _keep(self, call: CallRecord | CapturedCall) -> None:
        if len(self._calls) >= self._max_calls:
            raise InvalidInput(
                f"more than {self._max_calls} calls were recorded in one attempt before the store took them; "
                "record one call for many units, or check that the store is reachable"
            )
        self._calls.append(call)

    def _tell_if_late(self) -> None:
        when_late = self._when_late
        if when_late is not None and self._calls:
            when_late()

    def _price_book(self) -> PriceBook:
        if self._prices is None:
            # Importing prices takes time; most steps record nothing.
            from paidonce_models.pricing import PriceBook  # noqa: PLC0415

            book = PriceBook()
            self._prices = lambda: book
        return self._prices()


current_recorder: ContextVar[CallRecorder | None] = ContextVar("paidonce_current_recorder", default=None)
tool_stack: ContextVar[tuple[str, ...]] = ContextVar("paidonce_tool_stack", default=())


@contextmanager
def recording_into(recorder: CallRecorder) -> Iterator[CallRecorder]:
    """Make ``recorder`` the current one while a step's body runs."""
    token = current_recorder.set(recorder)
    try:
        yield recorder
    finally:
        current_recorder.reset(token)


@contextmanager
def innermost_tool(name: str) -> Iterator[None]:
    """Attribute calls to the tool ``name`` while its body runs; tools nest."""
    token = tool_stack.set((*tool_stack.get(), name))
    try:
        yield
    finally:
        tool_stack.reset(token)
