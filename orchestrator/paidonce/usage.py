"""``record_usage`` and the recorder of the attempt that is being executed.

Owns how a paid call inside a step's body becomes a ``CallRecord``: who is
asked (the current attempt's recorder, found through a context variable), what
it costs (the worker's price book, as it is at that moment) and which tool it belongs to (the innermost
one). Writes nothing to the store: the worker flushes the recorder with each
heartbeat and drains it with the completion. Imports no prices before the first call is
recorded.

Context variables follow ``async`` code and ``asyncio.to_thread``; in a worker
the usage capture hands them to threads that a step starts as well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from paidonce.captured_calls import CapturedCall, SeenCalls, Statement, with_price, with_tokens, without_tokens
from paidonce_models.errors import InvalidInput
from paidonce_models.ids import uuid7
from paidonce_models.money import NANOUSD_PER_USD, exact_amount, nanousd_from_usd
from paidonce_models.usage import CallKind, CallRecord, CallStatus, Usage, UsageSource

if TYPE_CHECKING:
    from paidonce_models.pricing import PriceBook

log = logging.getLogger(__name__)

Amount = Decimal | str | int | float

MOST_AWAITED: Final = 10_000
"""Of more calls whose usage is still to come the others are written at once, as unknown."""
MAX_UNFLUSHED_CALLS: Final = 10_000
"""A heartbeat empties the recorder every few seconds, so this is thousands of paid calls a second."""


def wall_clock_us() -> int:
    """Microseconds since the epoch by this host; it dates calls and decides nothing."""
    return time.time_ns() // 1000


class CallRecorder:
    """The calls of one attempt that the store does not have yet. Safe to use from many threads.

    Bounded: past ``max_calls`` a call is refused loudly rather than spent unseen.
    """

    def __init__(
        self,
        *,
        prices: Callable[[], PriceBook] | None = None,
        now_us: Callable[[], int] = wall_clock_us,
        max_calls: int = MAX_UNFLUSHED_CALLS,
    ) -> None:
        """``prices`` gives the book that prices a call when it is recorded or drained; ``None``: list prices only."""
        self._prices = prices
        self._now_us = now_us
        self._max_calls = max_calls
        self._calls: list[CallRecord | CapturedCall] = []
        self._awaited: dict[str, CapturedCall] = {}
        """Calls whose usage is still to come, by the id of their work. They are written when it has come, or with the
        attempt's end, then as unknown: a row that is written is never changed."""
        self._seen = SeenCalls()
        self._when_late: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._flushes = 0
        self._no_flush = threading.Condition(self._lock)

    def now_us(self) -> int:
        """The recorder's clock, for the start of a call."""
        return self._now_us()

    def priced(self, call: CallRecord, usage: Usage) -> CallRecord:
        """``call`` with the tokens of ``usage`` and, unless it has a cost already, its price where one is known."""
        if call.cost_nanousd is not None:
            return with_tokens(call, usage)
        priced = self._price_book().price(usage, call.started_at_us)
        return with_tokens(call, usage) if priced is None else with_price(call, usage, priced)

    def append(self, call: CallRecord, usage: Usage | None = None, ids: tuple[str, ...] = ()) -> None:
        """Keep a finished call until the next drain; the innermost tool's name is added if it has none.

        ``ids`` are the provider's names of it, by which a capture that ends later knows it.
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
        """Keep a call seen on the wire, unless ``record_usage`` was given its response before it ended."""
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
        """Whether any call waits for its usage."""
        return bool(self._awaited)

    def awaits(self, awaited_id: str) -> bool:
        """Whether the call that began this work waits for its usage."""
        return awaited_id in self._awaited

    def complete_awaited(self, awaited_id: str, answer: Mapping[str, object]) -> None:
        """The work is done, and this is what it used; does nothing the second time."""
        with self._lock:
            captured = self._awaited.pop(awaited_id, None)
            if captured is None:
                return
            captured.complete(answer, self._now_us() - captured.call.started_at_us)
            self._calls.append(captured)
        self._tell_if_late()

    def captured_already(self, ids: tuple[str, ...], statement: Statement) -> CallRecord | None:
        """The captured call with one of these ids, completed by the statement; ``None``: it is a call of its own.

        What the capture knows stands. Usage that it did not see and a cost
        that is stated are added while the row is not written. A row that is
        written is never changed: what was unknown in it becomes another row.
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
            # Only the money is new: the tokens stand in the row that is written.
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
        """Take every call recorded so far, oldest first; each is handed out once. For whoever ends the attempt.

        Waits while calls of it are being flushed: what that does not come to write belongs to the end of the attempt,
        and what it writes is in the store before the attempt gives back what it has reserved.
        """
        with self._no_flush:
            self._no_flush.wait_for(lambda: self._flushes == 0)
            calls, self._calls = [*self._calls, *self._awaited.values()], []
            self._awaited = {}
        return self._recorded(calls)

    def begin_flush(self) -> list[CallRecord]:
        """Take every call recorded so far to write it while the attempt goes on; ``end_flush`` must follow.

        But for those whose usage is still to come.
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
        """What ``begin_flush`` gave, all of it, is in the store; or it is not, and is put in front again."""
        with self._no_flush:
            if not written:
                self._calls[:0] = calls
            self._flushes -= bool(calls)
            self._no_flush.notify_all()
        self._tell_if_late()

    def take_over(self, calls: Sequence[CallRecord]) -> None:
        """Keep the calls that a child process has recorded and drained."""
        with self._lock:
            self._calls += calls
        self._tell_if_late()

    def end(self, when_late: Callable[[], object]) -> None:
        """The attempt is over and drains no more; ``when_late`` is called for what is here now and what still comes."""
        with self._lock:
            self._when_late = when_late
            self._calls += self._awaited.values()
            self._awaited = {}
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
            # Importing prices costs a process something; most steps record nothing.
            from paidonce_models.pricing import PriceBook  # noqa: PLC0415

            book = PriceBook()
            self._prices = lambda: book
        return self._prices()


current_recorder: ContextVar[CallRecorder | None] = ContextVar("paidonce_current_recorder", default=None)
tool_stack: ContextVar[tuple[str, ...]] = ContextVar("paidonce_tool_stack", default=())


@contextmanager
def recording_into(recorder: CallRecorder) -> Iterator[CallRecorder]:
    """Make ``recorder`` the current attempt's while a step's body runs."""
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


def record_usage(
    response: object = None,
    *,
    provider: str | None = None,
    model: str | None = None,
    input_tokens: int | None = None,
    cache_read_tokens: int | None = None,
    cache_write_tokens: int | None = None,
    output_tokens: int | None = None,
    reasoning_tokens: int | None = None,
    cost_usd: Amount | None = None,
    units: Amount | None = None,
    unit_price_usd: Amount | None = None,
    request_id: str | None = None,
    started_at_us: int | None = None,
    duration_us: int | None = None,
    status: CallStatus = CallStatus.OK,
    estimated: bool = False,
) -> CallRecord:
    """Record one paid call of the step that is running, and return what was recorded.

    Hand over the provider's response, or numbers: tokens (``input_tokens``
    includes the cache's, ``output_tokens`` the reasoning), a cost, or units
    with their price. ``provider`` and ``model`` say who bills and what was
    asked for. A stated cost is taken as it is; otherwise the tokens are
    priced, and an unknown model keeps its tokens and has an unknown cost.
    ``estimated`` says that the numbers are the caller's own count, as for a
    stream that reported none.

    A response that usage capture has seen on the wire is not counted again:
    it is known by the provider's id of the request or the response, and the
    captured call is returned, with the usage or the cost added that only the
    caller knows. Plain numbers without ``request_id`` are always a call of
    their own. Raises ``InvalidInput`` outside a step's body.
    """
    recorder = current_recorder.get()
    if recorder is None:
        raise InvalidInput(
            "record_usage was called outside a step: call it inside the body of a @step or @tool; in a thread that "
            "the step started itself, run the work with asyncio.to_thread or contextvars.copy_context().run"
        )
    status = _check_words(status, provider=provider, model=model, request_id=request_id)
    tokens = (input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens)
    has_tokens = any(count is not None for count in tokens)
    if response is not None and has_tokens:
        raise InvalidInput("record_usage takes a response or token counts, not both; leave one out")
    if estimated and not has_tokens:
        raise InvalidInput("estimated=True speaks of token counts; give them, or leave it out")
    cost_nanousd, price_source = stated_cost(cost_usd, units, unit_price_usd)
    if response is None and not has_tokens and cost_nanousd is None:
        raise InvalidInput(
            "record_usage got nothing to record: hand over the provider's response, token counts, "
            "cost_usd=, or units= with unit_price_usd="
        )
    ids: tuple[str, ...] = () if request_id is None else (request_id,)
    usage = Usage(
        provider=provider,
        model_requested=model,
        input_tokens=input_tokens,
        cache_read_tokens=cache_read_tokens,
        cache_write_tokens=cache_write_tokens,
        output_tokens=output_tokens,
        reasoning_tokens=reasoning_tokens,
    )
    source = UsageSource.ESTIMATED if estimated else UsageSource.EXPLICIT
    if response is not None:
        # As above: readers of responses are imported when there is one.
        from paidonce_models.pricing.extraction import extract_usage, request_ids_of  # noqa: PLC0415

        usage = extract_usage(response, provider=provider, model_requested=model)
        source = UsageSource.PROVIDER if usage.is_known else UsageSource.MISSING
        ids = (*ids, *request_ids_of(response))
    captured = recorder.captured_already(
        ids, Statement(usage=usage, source=source, cost_nanousd=cost_nanousd, price_source=price_source)
    )
    if captured is not None:
        return captured
    call = CallRecord(
        kind=kind_of(usage),
        started_at_us=recorder.now_us() if started_at_us is None else started_at_us,
        duration_us=duration_us,
        usage_source=source,
        status=status,
        provider_request_id=ids[0] if ids else None,
        cost_nanousd=cost_nanousd,
        other_cost_nanousd=None if usage.is_known else cost_nanousd,
        price_source=price_source,
    )
    if started_at_us is None and duration_us is not None:
        call = replace(call, started_at_us=max(0, call.started_at_us - duration_us))
    call = recorder.priced(call, usage)
    recorder.append(call, usage, ids)
    return call


def _check_words(status: object, **names: object) -> CallStatus:
    """The status, which may be its plain name; names are text or left out. Raises ``InvalidInput``."""
    for name, value in names.items():
        if value is not None and not isinstance(value, str):
            raise InvalidInput(f"{name} must be text or None, got {type(value).__name__} {value!r:.50}")
    try:
        return CallStatus(status)  # type: ignore[arg-type]  # whatever it is, the enumeration looks it up
    except ValueError:
        raise InvalidInput(f"status {status!r:.50}: expected {', '.join(CallStatus)}") from None


def stated_cost(
    cost_usd: Amount | None, units: Amount | None, unit_price_usd: Amount | None
) -> tuple[int | None, str | None]:
    """A cost the caller states, in nano-dollars rounded half to even, and the price source that says so."""
    if (units is None) != (unit_price_usd is None):
        raise InvalidInput(f"units ({units}) and unit_price_usd ({unit_price_usd}) belong together; give both")
    if cost_usd is not None and units is not None:
        raise InvalidInput(f"give cost_usd ({cost_usd}) or units ({units}) with unit_price_usd, not both")
    for name, value in (("cost_usd", cost_usd), ("units", units), ("unit_price_usd", unit_price_usd)):
        if value is not None and exact_amount(value, name) < 0:
            raise InvalidInput(f"{name} ({value}) cannot be below 0; leave it out if it is unknown")
    if cost_usd is not None:
        return nanousd_from_usd(cost_usd, round_to_nano=True), "explicit"
    if units is not None and unit_price_usd is not None:
        exact = exact_amount(units, "units") * exact_amount(unit_price_usd, "unit_price_usd") * NANOUSD_PER_USD
        return round(exact), f"explicit {units} x ${unit_price_usd}"
    return None, None


def kind_of(usage: Usage) -> CallKind:
    """A call with a model or tokens is a model's, anything else a tool's."""
    model = usage.model_billed or usage.model_requested or ""
    if "embed" in model.lower():
        return CallKind.EMBEDDING
    return CallKind.LLM if model or usage.is_known else CallKind.TOOL
