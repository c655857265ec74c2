"""``@step``, ``@tool`` and ``@agent``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from paidonce.budget_texts import LARGEST_AMOUNT
from paidonce.declarations import DEFAULT_QUEUE, AgentDeclaration, StepDeclaration, code_signature, module_name_of
from paidonce.lazy_results import lazy_message, wrapped_lazily
from paidonce.policies.declared import decorator_keys
from paidonce.policies.policy import WhenOpen
from paidonce.registry import default_registry
from paidonce.retry import Retry, retry_from
from paidonce.stored_texts import MAX_NAME_BYTES, MAX_STEP_NAME_BYTES, MAX_VERSION_BYTES, fits, found_instead
from paidonce.values import Parameters
from paidonce_models.budgets import Maxima, Unit
from paidonce_models.errors import DeclarationError, InvalidInput
from paidonce_models.money import nanousd_from_usd
from paidonce_models.queues import is_reserved

P = ParamSpec("P")
R = TypeVar("R")

Timeout: TypeAlias = float | timedelta | str | Mapping[str, Any]
"""Of an attempt: seconds, a ``timedelta`` or text such as ``"10s"``; or ``{"attempt": …, "total": …}``."""

DELIVERIES = ("at_least_once", "at_most_once")
MOST_LOST = 1_000
"""Of a count that the store keeps."""


class StepDecorator(Protocol):
    """What ``@step(...)`` returns: takes ``def`` and ``async def`` alike."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> StepDeclaration[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> StepDeclaration[P, R]: ...


class AgentDecorator(Protocol):
    """What ``@agent(...)`` returns."""

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AgentDeclaration[P, R]: ...


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> StepDeclaration[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> StepDeclaration[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    queue: str | None = None,
    timeout: Timeout | None = None,
    retry: int | Retry | dict[str, Any] | None = None,
    max_lost: int = 5,
    policy: str | None = None,
    breaker: bool | Mapping[str, Any] | None = None,
    when_open: WhenOpen | None = None,
    provider: str | None = None,
    idempotent: bool = True,
    delivery: str = "at_least_once",
    max_cost_usd: str | Decimal | None = None,
    max_tokens: int | None = None,
) -> StepDecorator: ...
def step(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a durable step: it runs on a worker, and once it has finished it is never run again.

    ``timeout`` is in seconds or a ``timedelta``; ``retry`` a number of attempts or a ``Retry`` (default: none);
    ``max_lost`` bounds the attempts whose worker vanished. ``policy`` names one of ``paidonce.yaml``; ``timeout``,
    ``retry``, ``breaker`` and ``when_open`` set single keys above it, as the file would. ``provider`` names whose API
    the step calls, so that its open circuit holds the step back. ``max_cost_usd`` and ``max_tokens`` say what one
    attempt costs at most: what a budget reserves before it starts (default: learned from the step's history).
    Raises ``DeclarationError``.
    """
    return _decorate("step", fn, options)


@overload
def tool(fn: Callable[P, Coroutine[Any, Any, R]], /) -> StepDeclaration[P, R]: ...
@overload
def tool(fn: Callable[P, R], /) -> StepDeclaration[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    queue: str | None = None,
    timeout: Timeout | None = None,
    retry: int | Retry | dict[str, Any] | None = None,
    max_lost: int = 5,
    policy: str | None = None,
    breaker: bool | Mapping[str, Any] | None = None,
    when_open: WhenOpen | None = None,
    idempotent: bool = True,
    delivery: str = "at_least_once",
    max_cost_usd: str | Decimal | None = None,
    max_tokens: int | None = None,
) -> StepDecorator: ...
def tool(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a durable step that stands for a dependency; inside a step's body it runs inline.

    It has a circuit breaker unless a policy or ``breaker=False`` says otherwise. Options as for ``step``, without
    ``provider``.
    """
    return _decorate("tool", fn, options)


def _decorate(kind: str, fn: Callable[..., Any] | None, options: dict[str, Any]) -> Any:
    def decorate(fn: Callable[..., Any]) -> StepDeclaration[..., Any]:
        return _declare_step(kind, fn, **options)

    return decorate if fn is None else decorate(fn)


def _declare_step(
    kind: str,
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    queue: str | None = None,
    timeout: Timeout | None = None,
    retry: object = None,
    max_lost: int = 5,
    policy: str | None = None,
    breaker: bool | Mapping[str, Any] | None = None,
    when_open: str | None = None,
    provider: str | None = None,
    idempotent: bool = True,
    delivery: str = "at_least_once",
    max_cost_usd: str | Decimal | None = None,
    max_tokens: int | None = None,
) -> StepDeclaration[..., Any]:
    parameters = _parameters(kind, fn)
    own_name = name or f"{module_name_of(fn)}.{fn.__name__}"
    where = f"{kind} {own_name}"
    _stored(where, "name", own_name, MAX_STEP_NAME_BYTES)
    _queue(where, queue or DEFAULT_QUEUE)
    lazy = wrapped_lazily(fn)
    if lazy is not None:
        kind_of_work = "coroutine" if inspect.iscoroutinefunction(lazy) else "generator"
        raise DeclarationError(f"{where}: {lazy_message(lazy, kind_of_work)}")
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise DeclarationError(f"{where} is a generator; return a list instead, its result is stored as one value")
    if delivery not in DELIVERIES:
        raise DeclarationError(f"{where}: delivery={delivery!r}; expected one of {', '.join(DELIVERIES)}")
    if not 1 <= max_lost <= MOST_LOST:
        raise DeclarationError(f"{where}: max_lost={max_lost:.6g}; expected at least 1 and at most {MOST_LOST:,}")
    if kind == "tool" and provider is not None:
        raise DeclarationError(
            f"{where}: provider={provider!r}; only a @step names its model's provider, a tool has a circuit of its own"
        )
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, int | float) and not seconds > 0:
        raise DeclarationError(f"{where}: timeout={timeout!r}; expected a time above 0")
    retrying = retry_from(retry, where)
    keys = decorator_keys(where, timeout=timeout, retry=retry, breaker=breaker, when_open=when_open)
    attempt_seconds = dict(keys).get("timeout.attempt")
    declaration: StepDeclaration[..., Any] = StepDeclaration(
        name=own_name,
        kind=kind,
        fn=fn,
        parameters=parameters,
        queue=queue or DEFAULT_QUEUE,
        file=fn.__code__.co_filename,
        line=fn.__code__.co_firstlineno,
        timeout_seconds=attempt_seconds if isinstance(attempt_seconds, float) else None,
        retry=retrying,
        max_lost=max_lost,
        delivery=delivery,
        policy=_name(where, "policy", policy),
        policy_keys=keys,
        provider=_name(where, "provider", provider),
        idempotent=idempotent,
        maxima=Maxima(
            nanousd=_nanousd(where, "max_cost_usd", max_cost_usd, least=0),
            tokens=_count(where, "max_tokens", max_tokens, least=0),
        ),
    )
    default_registry.add_step(declaration)
    return declaration


@overload
def agent(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AgentDeclaration[P, R]: ...
@overload
def agent(
    *,
    name: str | None = None,
    version: str = "1",
    queue: str | None = None,
    budget_usd: str | Decimal | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
) -> AgentDecorator: ...
def agent(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make an ``async def`` an agent: it awaits steps, tools and other agents, and survives any crash.

    Its body is replayed from recorded results, so it must do nothing itself but
    decide: clock, randomness and I/O belong into steps (or ``paidonce.now``,
    ``uuid``, ``random``). ``version`` keeps runs of older code apart.
    ``budget_usd``, ``max_tokens`` and ``max_steps`` limit what one run may spend,
    its child runs included: a run that has used one up is paused before its next
    call, and goes on when the limit is raised.
    """

    def decorate(fn: Callable[..., Any]) -> AgentDeclaration[..., Any]:
        return _declare_agent(fn, **options)

    return decorate if fn is None else decorate(fn)


def _declare_agent(
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    version: str = "1",
    queue: str | None = None,
    budget_usd: str | Decimal | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
) -> AgentDeclaration[..., Any]:
    parameters = _parameters("agent", fn)
    own_name = name or fn.__name__
    lazy = wrapped_lazily(fn)
    if lazy is not None:
        raise DeclarationError(f"agent {own_name!r}: {lazy_message(lazy, 'coroutine')}")
    if not inspect.iscoroutinefunction(fn):
        raise DeclarationError(f"agent {own_name!r} is a plain def; declare it with `async def`, it has to await steps")
    where = f"agent {own_name!r}"
    _stored(where, "name", own_name, MAX_NAME_BYTES)
    _queue(where, queue or DEFAULT_QUEUE)
    _stored(where, "version", str(version), MAX_VERSION_BYTES)
    limits = {
        Unit.USD: _nanousd(where, "budget_usd", budget_usd, least=1),
        Unit.TOKENS: _count(where, "max_tokens", max_tokens, least=1),
        Unit.STEPS: _count(where, "max_steps", max_steps, least=1),
    }
    declaration: AgentDeclaration[..., Any] = AgentDeclaration(
        name=own_name,
        kind="agent",
        fn=fn,
        parameters=parameters,
        queue=queue or DEFAULT_QUEUE,
        file=fn.__code__.co_filename,
        line=fn.__code__.co_firstlineno,
        version=str(version),
        limits={unit: amount for unit, amount in limits.items() if amount is not None},
        signature=code_signature(fn),
    )
    default_registry.add_agent(declaration)
    return declaration


def _stored(where: str, option: str, value: object, limit_bytes: int) -> None:
    """Refuse a name that the store has no room for, where it is written rather than where its first run fails."""
    if not isinstance(value, str) or not fits(value, limit_bytes) or not value.isprintable():
        raise DeclarationError(
            f"{where:.200}: {option}= must be 1 to {limit_bytes} bytes of printable text in UTF-8, found "
            f"{found_instead(value)}; give it a shorter {option}="
        )


def _queue(where: str, name: str) -> None:
    _stored(where, "queue", name, MAX_NAME_BYTES)
    if is_reserved(name):
        raise DeclarationError(
            f"{where:.200}: queue={name!r} is the name of what Paidonce keeps of submissions on Redis; choose another"
        )


def _name(where: str, option: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.strip() and fits(value, MAX_NAME_BYTES)):
        return value
    raise DeclarationError(f"{where}: {option}={value!r:.80}; expected a name of {MAX_NAME_BYTES} bytes at most")


def _nanousd(where: str, name: str, usd: str | Decimal | None, *, least: int) -> int | None:
    if usd is None:
        return None
    try:
        nanousd = nanousd_from_usd(usd)
    except InvalidInput as error:
        raise DeclarationError(f"{where}: {name}={usd!r}: {error.message}") from None
    return _count(where, name, nanousd, least=least, given=usd)


def _count(where: str, name: str, value: int | None, *, least: int, given: object = None) -> int | None:
    if value is None:
        return None
    shown = value if given is None else given
    if isinstance(value, bool) or not isinstance(value, int):
        raise DeclarationError(f"{where}: {name}={shown!r}; expected a whole number")
    if value < least:
        raise DeclarationError(f"{where}: {name}={shown!r}; expected {'more than 0' if least else '0 or more'}")
    if value > LARGEST_AMOUNT:
        raise DeclarationError(f"{where}: {name}={shown!r:.50} is more than anybody spends; check the unit")
    return value


def _parameters(kind: str, fn: Callable[..., Any]) -> Parameters:
    if not inspect.isfunction(fn):
        raise DeclarationError(f"@{kind} on {fn!r}; it takes a plain function, not a method, class or callable object")
    return Parameters.for_function(fn, name=f"{kind} {fn.__name__}")
