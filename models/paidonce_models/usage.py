"""What one paid call used and cost: ``Usage`` and ``CallRecord``.

Owns the two values that travel from where a call is seen (a response, an HTTP tap,
``record_usage``) to the ``calls`` table, and their validation. Knows no prices
(``paidonce_models.pricing``), no run and no store: the statement that writes the row
adds run, step and attempt. ``None`` is unknown and is never turned into zero here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from paidonce_models.errors import InvalidInput
from paidonce_models.ids import uuid7
from paidonce_models.unpriced_calls import is_unpriced

LARGEST_COUNT: Final = 10**15
"""Far above any request, far below the store's integer range."""
LARGEST_COST_NANOUSD: Final = 10**15
"""A million US dollars for one call must be a wrong unit. The store's sums can hold nine thousand of them."""
LATEST_START_US: Final = 253_402_300_800 * 1_000_000
"""The end of the year 9999, the last that a date can name."""
LONGEST_DURATION_US: Final = 10**15
"""Thirty years in microseconds; more must be a wrong unit."""
TEXT_LIMITS: Final = {
    "tool": 200,
    "provider": 100,
    "model_requested": 200,
    "model_billed": 200,
    "provider_request_id": 200,
    "price_source": 200,
}
"""Widths of the columns of ``calls``; a longer text is truncated, because a name must not cost the row of money."""


class CallKind(StrEnum):
    """What was paid for."""

    LLM = "llm"
    EMBEDDING = "embedding"
    TOOL = "tool"


class UsageSource(StrEnum):
    """The source of the usage."""

    PROVIDER = "provider"
    EXPLICIT = "explicit"
    ESTIMATED = "estimated"
    MISSING = "missing"


class CallStatus(StrEnum):
    """How the request ended; ``cut`` is a response that broke off, or that the client did not wait for."""

    OK = "ok"
    FAILED = "failed"
    CUT = "cut"


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one request as the ledger counts them, whatever the provider's conventions.

    ``input_tokens`` includes what was read from and written to a cache, and
    ``output_tokens`` includes reasoning, also for providers that report it separately.
    ``other_units`` are further billed units by their genai-prices name
    (``cache_write_1h_tokens``, ``input_audio_tokens``, ``web_searches``), and
    ``price_context`` is what the response reports about its tariff
    (``service_tier``, ``processing``, ``speed``); nothing of it is guessed.
    """

    provider: str | None = None
    model_requested: str | None = None
    model_billed: str | None = None
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    other_units: tuple[tuple[str, int], ...] = ()
    price_context: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, count in (*self.token_counts(), *self.other_units):
            if count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, int):
                raise InvalidInput(f"{name} must be an int or None, got {type(count).__name__} {count!r}")
            if count < 0:
                raise InvalidInput(f"{name} ({count}) cannot be below 0; leave it out if it is unknown")
            if count > LARGEST_COUNT:
                raise InvalidInput(f"{name} ({count}) cannot exceed {LARGEST_COUNT}; check the unit")
        read = self.cache_read_tokens or 0
        written = self.cache_write_tokens or 0
        known = self.input_tokens
        if known is None:
            if read or written:
                raise InvalidInput(
                    f"cache_read_tokens ({read}) and cache_write_tokens ({written}) are part of input_tokens (None); "
                    "give input_tokens too, including them"
                )
            return
        for name, count in (("cache_read_tokens", read), ("cache_write_tokens", written)):
            if count > known:
                raise InvalidInput(
                    f"{name} ({count}) cannot exceed input_tokens ({known}); input_tokens includes the cache's tokens"
                )
        if read + written > known:
            raise InvalidInput(
                f"cache_read_tokens ({read}) and cache_write_tokens ({written}) together cannot exceed "
                f"input_tokens ({known}); input_tokens includes the cache's tokens"
            )

    def token_counts(self) -> tuple[tuple[str, int | None], ...]:
        """The five token counts by name, unknown ones as ``None``."""
        return (
            ("input_tokens", self.input_tokens),
            ("cache_read_tokens", self.cache_read_tokens),
            ("cache_write_tokens", self.cache_write_tokens),
            ("output_tokens", self.output_tokens),
            ("reasoning_tokens", self.reasoning_tokens),
        )

    @property
    def is_known(self) -> bool:
        """Whether anything at all was reported."""
        return bool(self.other_units) or any(count is not None for _, count in self.token_counts())


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRecord:
    """One row of ``calls`` without its run, step and attempt.

    Money is integer nano-dollars, ``None`` where unknown. If the parts are known, they
    add up to ``cost_nanousd`` exactly; ``other_cost_nanousd`` is what is charged besides
    tokens (searches, a fee per request, other units). Unit prices are the plain ones of
    the four kinds of token in nano-dollars per million tokens, as of the pricing of the
    call. The ``id`` is drawn once, here, so that a write that is retried cannot count
    twice.
    """

    id: str = field(default_factory=uuid7)
    kind: CallKind
    started_at_us: int
    duration_us: int | None = None
    tool: str | None = None
    provider: str | None = None
    model_requested: str | None = None
    model_billed: str | None = None
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage_source: UsageSource
    status: CallStatus = CallStatus.OK
    http_retry: int = 0
    provider_request_id: str | None = None
    cost_nanousd: int | None = None
    input_cost_nanousd: int | None = None
    cache_read_cost_nanousd: int | None = None
    cache_write_cost_nanousd: int | None = None
    output_cost_nanousd: int | None = None
    other_cost_nanousd: int | None = None
    input_nanousd_per_mtok: int | None = None
    cache_read_nanousd_per_mtok: int | None = None
    cache_write_nanousd_per_mtok: int | None = None
    output_nanousd_per_mtok: int | None = None
    price_source: str | None = None

    @property
    def is_unpriced(self) -> bool:
        """Whether it makes a sum of money a lower bound."""
        return is_unpriced(
            cost_nanousd=self.cost_nanousd,
            has_failed=self.status is CallStatus.FAILED,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
        )

    def __post_init__(self) -> None:
        parts = (
            self.input_cost_nanousd,
            self.cache_read_cost_nanousd,
            self.cache_write_cost_nanousd,
            self.output_cost_nanousd,
            self.other_cost_nanousd,
        )
        known = [part for part in parts if part is not None]
        if known and sum(known) != self.cost_nanousd:
            raise InvalidInput(
                f"the parts of a call's cost ({sum(known)}) must add up to its cost ({self.cost_nanousd})"
            )
        if self.cost_nanousd is not None and self.cost_nanousd < 0:
            raise InvalidInput(f"cost_nanousd ({self.cost_nanousd}) cannot be below 0; leave it out if it is unknown")
        if self.cost_nanousd is not None and self.cost_nanousd > LARGEST_COST_NANOUSD:
            raise InvalidInput(
                f"cost_nanousd ({self.cost_nanousd}) cannot exceed {LARGEST_COST_NANOUSD}; check the unit"
            )
        self._check_times()
        for name, limit in TEXT_LIMITS.items():
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, _storable(name, text)[:limit])

    def _check_times(self) -> None:
        """If the store refused this row, it would refuse everything written with it."""
        for name, value, largest in (
            ("started_at_us", self.started_at_us, LATEST_START_US - 1),
            ("duration_us", self.duration_us, LONGEST_DURATION_US),
        ):
            if value is None and name == "duration_us":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidInput(f"{name} must be an int of microseconds, got {type(value).__name__} {value!r}")
            if not 0 <= value <= largest:
                raise InvalidInput(f"{name} ({value}) must lie between 0 and {largest} microseconds; check the unit")


def _storable(name: str, text: object) -> str:
    """The text without NUL and unpaired surrogates, which no store accepts. Raises ``InvalidInput`` for other types."""
    if not isinstance(text, str):
        raise InvalidInput(f"{name} must be text or None, got {type(text).__name__}")
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
