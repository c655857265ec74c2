"""A call that usage capture saw on the wire, and how ``record_usage`` recognises it.

Owns two things. ``CapturedCall`` keeps what was seen (the facts of the HTTP request, the
usage block and the model's name, nothing of prompts or responses) until the recorder is
drained: tokens are counted and priced there, not on the user's event loop. ``SeenCalls``
knows the recent calls of one attempt by the provider's ids, so that a response that is
also passed to ``record_usage`` is not counted twice. Knows no HTTP and no store; never
raises.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from paidonce_models.errors import InvalidInput
from paidonce_models.usage import LONGEST_DURATION_US, CallRecord, CallStatus, Usage, UsageSource

if TYPE_CHECKING:
    from paidonce_models.pricing import PricedUsage

log = logging.getLogger(__name__)

REMEMBERED_IDS: Final = 2_000
"""How many ids of an attempt's latest calls are kept; ``record_usage`` follows its call closely."""

V = TypeVar("V")
Pricing = Callable[[CallRecord, Usage], CallRecord]


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """The arguments of ``record_usage`` about a call."""

    usage: Usage
    source: UsageSource
    cost_nanousd: int | None = None
    price_source: str | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class CapturedCall:
    """One HTTP request to a provider. ``call`` has no tokens yet; ``answer`` holds the few fields for counting them.

    ``answer`` is what ``extract_usage`` reads (``model``, ``usage``, the tariff), or
    ``None`` if no response came. ``output_is_known`` is False if a stream broke off before
    the provider had reported the output.
    """

    call: CallRecord
    answer: Mapping[str, object] | None = None
    output_is_known: bool = True
    ids: tuple[str, ...] = ()
    awaited_id: str | None = None
    """The id of work that continues after the response: its usage comes with a later one, see ``complete``."""
    _stated: tuple[Usage, UsageSource] | None = field(default=None, init=False)
    _record: CallRecord | None = field(default=None, init=False)

    @property
    def has_usage(self) -> bool:
        """Whether any usage was reported."""
        if self._stated is not None:
            return True
        return bool(self.answer and any(self.answer.get(name) for name in ("usage", "usageMetadata")))

    def restate(self, statement: Statement) -> None:
        """Apply what the user's code states about this call; only before it was written."""
        self._record = None
        if not self.has_usage and statement.usage.is_known:
            self._stated = (statement.usage, statement.source)
        if statement.cost_nanousd is not None:
            self.call = replace(self.call, cost_nanousd=statement.cost_nanousd, price_source=statement.price_source)

    def complete(self, answer: Mapping[str, object], duration_us: int) -> None:
        """A later response has reported the usage of the work, from start to end."""
        self._record = None
        self.answer = {**(self.answer or {}), **answer}
        self.output_is_known = True
        self.call = replace(self.call, duration_us=min(max(0, duration_us), LONGEST_DURATION_US), status=CallStatus.OK)

    def unknown(self) -> CallRecord:
        """The row of this call if its usage never arrives; has the same id as ``record``."""
        model = None if self.answer is None else self.answer.get("model")
        names = Usage(
            provider=self.call.provider,
            model_requested=self.call.model_requested,
            model_billed=model if isinstance(model, str) else None,
        )
        call = replace(self.call, usage_source=UsageSource.MISSING, other_cost_nanousd=self.call.cost_nanousd)
        return with_tokens(call, names)

    def settle(self, record: CallRecord, usage: Usage) -> None:
        """The user's code recorded this call before it ended."""
        self._record = record
        self._stated = (usage, record.usage_source) if usage.is_known else None

    def record(self, priced: Pricing) -> CallRecord:
        """The row of this call, the same each time; ``priced`` adds tokens and money."""
        if self._record is None:
            usage, source, has_price = self._usage()
            call = replace(
                self.call,
                usage_source=source,
                other_cost_nanousd=None if usage.is_known else self.call.cost_nanousd,
            )
            try:
                self._record = priced(call, usage) if has_price else with_tokens(call, usage)
            except Exception as error:  # noqa: BLE001 - a price that cannot be computed must not cost the row
                log.warning(
                    "a captured call could not be priced (%s); its cost is unknown",
                    type(error).__name__,
                    extra={"event": "captured_call_unpriced"},
                )
                self._record = with_tokens(call, usage)
        return self._record

    def _usage(self) -> tuple[Usage, UsageSource, bool]:
        """The tokens, their source, and whether they may be priced: not if counts contradict each other."""
        if self._stated is not None:
            return *self._stated, True
        asked = Usage(provider=self.call.provider, model_requested=self.call.model_requested)
        if self.answer is None:
            return asked, UsageSource.MISSING, True
        model = self.answer.get("model")
        billed = replace(asked, model_billed=model if isinstance(model, str) else None)
        if not self.has_usage:
            return billed, UsageSource.MISSING, True
        # Response readers take 0.2 s to import: the first call pays for that, on the thread that writes it.
        from paidonce_models.pricing.usage_from_responses import extract_usage, legible_counts  # noqa: PLC0415

        names = {"provider": asked.provider, "model_requested": asked.model_requested}
        is_legible = True
        try:
            usage = extract_usage(self.answer, **names)
        except Exception as error:  # noqa: BLE001 - whatever a provider sends, the row is kept
            is_legible = False
            usage = legible_counts(self.answer, **names) or billed
            log.warning(
                "the usage of a captured call could not be read (%s); contradictory counts in it are unknown, "
                "and so is its cost",
                error.code if isinstance(error, InvalidInput) else type(error).__name__,
                extra={"event": "captured_usage_unreadable"},
            )
        if not self.output_is_known:
            usage = replace(usage, output_tokens=None, reasoning_tokens=None)
        return usage, UsageSource.PROVIDER if usage.is_known else UsageSource.MISSING, is_legible


def with_price(call: CallRecord, usage: Usage, priced: PricedUsage) -> CallRecord:
    """``call`` with names and token counts of ``usage``, its cost and the unit prices that were used."""
    return replace(
        call,
        **_tokens(usage),
        cost_nanousd=priced.cost_nanousd,
        input_cost_nanousd=priced.input_cost_nanousd,
        cache_read_cost_nanousd=priced.cache_read_cost_nanousd,
        cache_write_cost_nanousd=priced.cache_write_cost_nanousd,
        output_cost_nanousd=priced.output_cost_nanousd,
        other_cost_nanousd=priced.other_cost_nanousd,
        input_nanousd_per_mtok=priced.input_nanousd_per_mtok,
        cache_read_nanousd_per_mtok=priced.cache_read_nanousd_per_mtok,
        cache_write_nanousd_per_mtok=priced.cache_write_nanousd_per_mtok,
        output_nanousd_per_mtok=priced.output_nanousd_per_mtok,
        price_source=priced.price_source,
    )


def with_tokens(call: CallRecord, usage: Usage) -> CallRecord:
    """``call`` with names and token counts of ``usage``, and unchanged money."""
    return replace(call, **_tokens(usage))


def _tokens(usage: Usage) -> dict[str, Any]:
    return {
        "provider": usage.provider,
        "model_requested": usage.model_requested,
        "model_billed": usage.model_billed,
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def without_tokens(call: CallRecord) -> CallRecord:
    """``call`` with its names and no counts."""
    names = Usage(provider=call.provider, model_requested=call.model_requested, model_billed=call.model_billed)
    return with_tokens(call, names)


class SeenCalls:
    """Recent calls of one attempt by the provider's ids. Not thread-safe: the recorder's lock guards it."""

    def __init__(self) -> None:
        self._captured: OrderedDict[str, CapturedCall] = OrderedDict()
        self._explicit: OrderedDict[str, tuple[CallRecord, Usage]] = OrderedDict()

    def captured(self, ids: Iterable[str]) -> CapturedCall | None:
        """The captured call that has one of these ids."""
        return next((self._captured[each] for each in ids if each in self._captured), None)

    def add_captured(self, captured: CapturedCall) -> None:
        """Remember a captured call."""
        _remember(self._captured, captured.ids, captured)

    def add_explicit(self, ids: Iterable[str], call: CallRecord, usage: Usage) -> None:
        """Remember what ``record_usage`` wrote for a response whose capture is not finished: a stream's last chunk."""
        _remember(self._explicit, ids, (call, usage))

    def take_explicit(self, ids: Iterable[str]) -> tuple[CallRecord, Usage] | None:
        """What ``record_usage`` wrote for this response, once."""
        found = next((self._explicit[each] for each in ids if each in self._explicit), None)
        if found is not None:
            for each in [each for each, known in self._explicit.items() if known is found]:
                del self._explicit[each]
        return found


def _remember(calls: OrderedDict[str, V], ids: Iterable[str], call: V) -> None:
    for each in ids:
        calls[each] = call
        calls.move_to_end(each)
    while len(calls) > REMEMBERED_IDS:
        calls.popitem(last=False)
