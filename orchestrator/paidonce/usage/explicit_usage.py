"""``record_usage``: a paid call that a step's own code reports.

Owns the validation of what is reported, and its price if none is stated. The attempt's recorder keeps the call.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from paidonce.usage.call_recorder import current_recorder
from paidonce.usage.captured_calls import Statement
from paidonce_models.errors import InvalidInput
from paidonce_models.money import NANOUSD_PER_USD, exact_amount, nanousd_from_usd
from paidonce_models.usage import CallKind, CallRecord, CallStatus, Usage, UsageSource

Amount = Decimal | str | int | float


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
    """Record one paid call of the running step, and return what was recorded.

    Pass the provider's response, or numbers: tokens (``input_tokens`` includes the
    cache's, ``output_tokens`` the reasoning), a cost, or units with their price.
    ``provider`` and ``model`` name who bills and the requested model. A stated cost is
    used as it is; otherwise the tokens are priced, and an unknown model keeps its tokens
    and has an unknown cost. ``estimated`` marks the numbers as the caller's own count, as
    for a stream that reported none.

    A response that usage capture has seen on the wire is not counted again: it is
    recognised by the provider's id of the request or the response, and the captured call
    is returned, with the usage or the cost added that only the caller knows. Plain numbers
    without ``request_id`` are always a separate call. Raises ``InvalidInput`` outside a
    step's body.
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
        raise InvalidInput("estimated=True applies to token counts; give them, or leave it out")
    cost_nanousd, price_source = stated_cost(cost_usd, units, unit_price_usd)
    if response is None and not has_tokens and cost_nanousd is None:
        raise InvalidInput(
            "record_usage got nothing to record: pass the provider's response, token counts, "
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
        # As above: response readers are imported only if there is a response.
        from paidonce_models.pricing.usage_from_responses import extract_usage, request_ids_of  # noqa: PLC0415

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
    """The status, also given as its plain name; names are text or left out. Raises ``InvalidInput``."""
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
    """The caller's stated cost in nano-dollars, rounded half to even, and its price source."""
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
    """A call with a model or tokens is a model call, any other a tool call."""
    model = usage.model_billed or usage.model_requested or ""
    if "embed" in model.lower():
        return CallKind.EMBEDDING
    return CallKind.LLM if model or usage.is_known else CallKind.TOOL
