"""``@agent``: declares an agent, which can submit its own runs through this process's client.

Sits above the client, which knows agents only as declarations.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, overload

from typing_extensions import TypeVar

from paidonce.declarations.declaration import DEFAULT_QUEUE, AgentDeclaration, Awaited, code_signature
from paidonce.declarations.lazy_results import lazy_message, wrapped_lazily
from paidonce.declarations.option_checks import check_queue, check_stored, count_of, nanousd_of, parameters_of
from paidonce.declarations.registry import default_registry
from paidonce.stored_texts import MAX_NAME_BYTES, MAX_VERSION_BYTES
from paidonce_models.budgets import Unit
from paidonce_models.errors import DeclarationError, InvalidInput

if TYPE_CHECKING:
    from paidonce.run_handle import RunHandle

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", default=Any)


@dataclass(frozen=True, kw_only=True, repr=False)
class Agent(AgentDeclaration[P, R, F]):
    """A function decorated with ``@agent``."""

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> RunHandle[R]:
        """Enqueue a run of this agent with the settings of this process; see ``Client.submit``."""
        # Imports the store and its settings only to submit: a worker, or a command that lists tools, does not.
        from paidonce.client import default_client  # noqa: PLC0415

        return default_client().submit(self, self._by_name(args, kwargs))

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            given = dict(self.parameters.signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise InvalidInput(f"{self!r}: {error}") from None
        for parameter in self.parameters.signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL and parameter.name in given:
                given[parameter.name] = list(given[parameter.name])
        return given

    async def submit_async(self, *args: P.args, **kwargs: P.kwargs) -> RunHandle[R]:
        """``submit`` for web handlers: writes to the store in a thread."""
        return await asyncio.to_thread(self.submit, *args, **kwargs)


class AgentDecorator(Protocol):
    """What ``@agent(...)`` returns."""

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Agent[P, R, Awaited[R]]: ...


@overload
def agent(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Agent[P, R, Awaited[R]]: ...
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
    """Make an ``async def`` function an agent: it awaits steps, tools and other agents, and survives any crash.

    Its body is replayed from recorded results, so it must do nothing but decide: clock,
    randomness and I/O belong in steps (or use ``paidonce.now``, ``uuid``, ``random``).
    ``version`` separates runs of different code. ``budget_usd``, ``max_tokens`` and
    ``max_steps`` limit what one run may spend, including its child runs: a run that has
    used one up is paused before its next call, and continues when the limit is raised.
    Raises ``DeclarationError``.
    """

    def decorate(fn: Callable[..., Any]) -> Agent[..., Any]:
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
) -> Agent[..., Any]:
    parameters = parameters_of("agent", fn)
    own_name = name or fn.__name__
    lazy = wrapped_lazily(fn)
    if lazy is not None:
        raise DeclarationError(f"agent {own_name!r}: {lazy_message(lazy, 'coroutine')}")
    if not inspect.iscoroutinefunction(fn):
        raise DeclarationError(f"agent {own_name!r} is a plain def; declare it with `async def`, it must await steps")
    where = f"agent {own_name!r}"
    check_stored(where, "name", own_name, MAX_NAME_BYTES)
    check_queue(where, queue or DEFAULT_QUEUE)
    check_stored(where, "version", str(version), MAX_VERSION_BYTES)
    limits = {
        Unit.USD: nanousd_of(where, "budget_usd", budget_usd, least=1),
        Unit.TOKENS: count_of(where, "max_tokens", max_tokens, least=1),
        Unit.STEPS: count_of(where, "max_steps", max_steps, least=1),
    }
    declaration: Agent[..., Any] = Agent(
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
