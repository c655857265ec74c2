"""``@step`` and ``@tool``; ``@agent`` is declared in ``paidonce.agents``, above the client that submits its runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from paidonce.declarations.declaration import (
    DEFAULT_QUEUE,
    Awaited,
    StepDeclaration,
    module_name_of,
)
from paidonce.declarations.lazy_results import lazy_message, wrapped_lazily
from paidonce.declarations.option_checks import (
    check_queue,
    check_stored,
    checked_name,
    count_of,
    nanousd_of,
    parameters_of,
)
from paidonce.declarations.registry import default_registry
from paidonce.policies.policy import DecoratorKeys, WhenOpen
from paidonce.policies.retry import Retry, retry_from
from paidonce.stored_texts import MAX_STEP_NAME_BYTES
from paidonce_models.budgets import Maxima
from paidonce_models.errors import DeclarationError

P = ParamSpec("P")
R = TypeVar("R")

Timeout: TypeAlias = float | timedelta | str | Mapping[str, Any]
"""For an attempt: seconds, a ``timedelta`` or text such as ``"10s"``; or ``{"attempt": …, "total": …}``."""

DELIVERIES = ("at_least_once", "at_most_once")
MOST_LOST = 1_000
"""The limit of a counter in the store."""


class StepDecorator(Protocol):
    """What ``@step(...)`` returns: accepts ``def`` and ``async def`` functions."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> StepDeclaration[P, R, Awaited[R]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> StepDeclaration[P, R, R]: ...


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> StepDeclaration[P, R, Awaited[R]]: ...
@overload
def step(fn: Callable[P, R], /) -> StepDeclaration[P, R, R]: ...
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
    ``max_lost`` limits the attempts whose worker vanished. ``policy`` names one of ``paidonce.yaml``; ``timeout``,
    ``retry``, ``breaker`` and ``when_open`` override single keys of it. ``provider`` names whose API the step calls,
    so that the provider's open circuit also parks the step. ``max_cost_usd`` and ``max_tokens`` declare the maximum
    of one attempt, which a budget reserves before it starts (default: learned from the step's history). Raises
    ``DeclarationError``.
    """
    return _decorate("step", fn, options)


@overload
def tool(fn: Callable[P, Coroutine[Any, Any, R]], /) -> StepDeclaration[P, R, Awaited[R]]: ...
@overload
def tool(fn: Callable[P, R], /) -> StepDeclaration[P, R, R]: ...
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
    """Make a function a durable step that represents a dependency; inside a step's body it runs inline.

    It has a circuit breaker unless a policy or ``breaker=False`` says otherwise. Options as for ``step``, without
    ``provider``. Raises ``DeclarationError``.
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
    parameters = parameters_of(kind, fn)
    own_name = name or f"{module_name_of(fn)}.{fn.__name__}"
    where = f"{kind} {own_name}"
    check_stored(where, "name", own_name, MAX_STEP_NAME_BYTES)
    check_queue(where, queue or DEFAULT_QUEUE)
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
    keys = _policy_keys(where, timeout=timeout, retry=retry, breaker=breaker, when_open=when_open)
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
        policy=checked_name(where, "policy", policy),
        policy_keys=keys,
        provider=checked_name(where, "provider", provider),
        idempotent=idempotent,
        maxima=Maxima(
            nanousd=nanousd_of(where, "max_cost_usd", max_cost_usd, least=0),
            tokens=count_of(where, "max_tokens", max_tokens, least=0),
        ),
    )
    default_registry.add_step(declaration)
    return declaration


def _policy_keys(where: str, **given: Any) -> DecoratorKeys:
    if all(value is None for value in given.values()):
        return ()
    # The policies' schema takes 0.05 s to import, and most declarations name no policy of their own.
    from paidonce.policies.declared import decorator_keys  # noqa: PLC0415

    return decorator_keys(where, **given)
