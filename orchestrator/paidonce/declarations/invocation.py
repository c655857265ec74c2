"""``Invocation``: what calling a step, tool or agent returns; a coroutine that the agent awaits.

On the replay loop it becomes a command of the run. In the body of a step, a tool runs
inline. Anywhere else it raises an error that says what to do instead.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio.events import _get_running_loop
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Protocol

from paidonce.declarations.lazy_results import drop, is_lazy, lazy_message
from paidonce.policies.attempt_policies import attempt_policies
from paidonce.usage.call_recorder import current_recorder, innermost_tool
from paidonce.values.parameters import Parameters
from paidonce_models.errors import DeclarationError, InvalidInput, NotSerialisable
from paidonce_models.payloads.documents import Encoded


class Callee(Protocol):
    """The part of a declaration that a call needs."""

    @property
    def name(self) -> str:
        """The full name."""

    @property
    def kind(self) -> str:
        """``step``, ``tool`` or ``agent``."""

    @property
    def fn(self) -> Callable[..., Any]:
        """The plain function."""

    @property
    def parameters(self) -> Parameters:
        """The codecs of its parameters."""


class Invocation(Coroutine[Any, Any, Any]):
    """One call of a declaration. Its arguments are encoded at creation; it is scheduled when first awaited.

    Hashed by the order of creation, so that a set of invocations is iterated in the same
    order on every replay.
    """

    __slots__ = ("_args", "_hash", "_kwargs", "_machine", "_started", "arguments", "declaration")

    def __init__(self, declaration: Callee, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.declaration = declaration
        loop = _get_running_loop()
        self._machine = machine = getattr(loop, "machine", None)
        self._started: Coroutine[Any, Any, Any] | None = None
        self._hash: int
        self._args: Sequence[Any] = ()
        self._kwargs: Mapping[str, Any] = {}
        self.arguments: Encoded = b""
        if machine is not None:
            machine.note_call()
            self._hash = machine.loop.next_ordinal()
            try:
                self.arguments = declaration.parameters.encode_arguments(args, kwargs, memory=machine.memory)
            except (NotSerialisable, DeclarationError) as error:
                machine.note_unfit(error)
                raise
        else:
            self._hash = id(self) >> 4
            self._args, self._kwargs = args, kwargs

    @property
    def _inner(self) -> Coroutine[Any, Any, Any]:
        started = self._started
        if started is None:
            if self._machine is not None:
                started = _replayed(self._machine, self)
            else:
                started = _elsewhere(self.declaration, self._args, self._kwargs)
            self._started = started
        return started

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<call of {self.declaration!r}>"

    def __await__(self) -> Generator[Any, None, Any]:
        return self._inner.__await__()

    def send(self, value: Any, /) -> Any:
        return self._inner.send(value)

    def throw(self, *exception: Any) -> Any:
        return self._inner.throw(*exception)

    def close(self) -> None:
        if self._started is not None:
            self._started.close()

    @property
    def cr_await(self) -> Any:
        """What the call waits for, as of a native coroutine."""
        return None if self._started is None else self._started.cr_await  # type: ignore[attr-defined]  # a coroutine

    @property
    def cr_frame(self) -> Any:
        """Its frame, as of a native coroutine."""
        return None if self._started is None else self._started.cr_frame  # type: ignore[attr-defined]  # a coroutine

    @property
    def cr_running(self) -> bool:
        """Whether it runs right now, as of a native coroutine."""
        return self._started is not None and bool(self._started.cr_running)  # type: ignore[attr-defined]  # a coroutine


async def _replayed(machine: Any, invocation: Invocation) -> Any:
    position, future = machine.schedule(invocation.declaration, invocation.arguments)
    try:
        return await future
    except asyncio.CancelledError:
        machine.cancel_step(position)
        raise


async def _elsewhere(declaration: Callee, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if current_recorder.get() is None or declaration.kind != "tool":
        raise InvalidInput(_out_of_place(declaration))
    _refuse_uncertain(declaration)

    async def body() -> Any:
        if inspect.iscoroutinefunction(declaration.fn):
            return await declaration.fn(*args, **kwargs)
        return _done(declaration, await asyncio.to_thread(declaration.fn, *args, **kwargs))

    policies = attempt_policies.get()
    with innermost_tool(declaration.name):
        return await (body() if policies is None else policies.call_async(declaration, body))


def run_inline(declaration: Callee, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``tool.call``: the tool's body within the running step. Raises ``InvalidInput`` elsewhere."""
    if current_recorder.get() is None or declaration.kind != "tool":
        raise InvalidInput(_out_of_place(declaration))
    if inspect.iscoroutinefunction(declaration.fn):
        raise InvalidInput(f"{declaration!r} is async: await it from an `async def` step, or make it a plain def")
    _refuse_uncertain(declaration)

    def body() -> Any:
        return _done(declaration, declaration.fn(*args, **kwargs))

    policies = attempt_policies.get()
    with innermost_tool(declaration.name):
        return body() if policies is None else policies.call(declaration, body)


def _done(declaration: Callee, value: Any) -> Any:
    """The value of a plain ``def``. Raises ``DeclarationError`` if it is a coroutine or generator that was not run."""
    if is_lazy(value):
        drop(value)
        raise DeclarationError(f"{declaration!r}: {lazy_message(declaration.fn, type(value).__name__)}")
    return value


def _refuse_uncertain(declaration: Callee) -> None:
    if getattr(declaration, "delivery", "") == "at_most_once" or not getattr(declaration, "idempotent", True):
        raise InvalidInput(
            f"{declaration!r} is declared delivery='at_most_once' or idempotent=False and cannot run inside a step, "
            "which may be repeated after a crash; await it from the agent"
        )


def _out_of_place(declaration: Callee) -> str:
    if current_recorder.get() is not None:
        return (
            f"{declaration!r} was called inside a step; only tools run inside a step: "
            f"await it from the agent, or call {declaration.name.rpartition('.')[2]}.fn(...) for the plain function"
        )
    return (
        f"{declaration!r} was awaited outside an agent: await it in an @agent, "
        f"or call {declaration.name.rpartition('.')[2]}.fn(...) for the plain function in a unit test"
    )
