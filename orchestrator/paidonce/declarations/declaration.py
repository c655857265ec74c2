"""What a decorator makes of a function: its name, its parameters, its options.

A declaration is a value that both sides share: replay uses it to encode a call, the
worker to run one. Calling it runs nothing; it returns an ``Invocation`` to be awaited in
an agent.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeAlias

from typing_extensions import TypeVar

from paidonce.declarations.invocation import Invocation, run_inline
from paidonce.policies.policy import DecoratorKeys
from paidonce.policies.retry import NO_RETRY, Retry
from paidonce.values.codecs import Codec
from paidonce.values.parameters import Parameters
from paidonce.values.signatures import signature_hash
from paidonce_models.budgets import Maxima, Unit

P = ParamSpec("P")
R = TypeVar("R")
"""The result of awaiting a call."""
F = TypeVar("F", default=Any)
"""The return type of the plain function: the same, or a coroutine of it."""

Awaited: TypeAlias = Coroutine[object, None, R]
"""An awaitable of R. If it yielded and accepted Any, all overloads of ``asyncio.gather`` would match: Any, for mypy."""

DEFAULT_QUEUE = "default"

_SUBMIT = "Paidonce sends its message itself; submit a run of an agent: Client().submit(AGENT, {...}) or agent.submit()"
_WAYS_OUT = {
    **dict.fromkeys(("delay", "apply_async", "apply", "s", "si", "signature", "subtask"), _SUBMIT),
    "__name__": "it is a declaration of Paidonce and not a function, so no other decorator or Celery app can make a "
    "task of it; it is a Celery task of Paidonce's workers already. The plain function is its .fn",
}
"""Attributes of a task or a function that Celery's users and Celery itself look for, and what to use instead."""


def module_name_of(fn: Callable[..., object]) -> str:
    """The module's importable name; a script run as ``__main__`` has the name under which it would be imported."""
    module = fn.__module__
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        name: str = spec.name
        return name.removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


@dataclass(frozen=True, kw_only=True)
class Declaration(Generic[P, R, F]):
    """The common part of steps, tools and agents. ``fn`` is the plain function, for unit tests."""

    name: str
    kind: str
    fn: Callable[P, F]
    parameters: Parameters
    queue: str
    file: str
    line: int

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaited[R]:
        """Make a call: encodes the arguments now, schedules the call when it is awaited in an agent."""
        return Invocation(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    if not TYPE_CHECKING:  # type checkers must still report what does not exist

        def __getattr__(self, name: str) -> Any:
            """Explain what to do where a declaration is used like a task or a function of Celery's."""
            way_out = _WAYS_OUT.get(name)
            if way_out is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise AttributeError(f"{self!r} has no {name}: {way_out}")

    @property
    def result_codec(self) -> Codec:
        """The codec of what the function returns."""
        return self.parameters.result

    @property
    def is_async(self) -> bool:
        """Whether the function is ``async def``."""
        return inspect.iscoroutinefunction(self.fn)

    @property
    def is_local(self) -> bool:
        """Whether the function was defined inside another one, as tests do."""
        return "<locals>" in self.fn.__qualname__

    @property
    def place(self) -> str:
        """Where it is defined, as ``file:line``."""
        return f"{self.file}:{self.line}"

    @property
    def short_place(self) -> str:
        """The same, relative if the file is below the current folder."""
        file, folder = Path(self.file), Path.cwd()
        return f"{file.relative_to(folder) if file.is_relative_to(folder) else file}:{self.line}"


@dataclass(frozen=True, kw_only=True, repr=False)
class StepDeclaration(Declaration[P, R, F]):
    """A ``@step`` or ``@tool``. ``timeout_seconds`` ``None`` means the setting's default."""

    timeout_seconds: float | None = None
    retry: Retry = NO_RETRY
    max_lost: int = 5
    delivery: str = "at_least_once"
    policy: str | None = None
    policy_keys: DecoratorKeys = ()
    """The policy keys of the decorator itself, by key path; including ``timeout`` and ``retry``."""
    provider: str | None = None
    """The provider whose API a step calls, such as ``openai``; ``None`` if it is not declared, and for tools."""
    idempotent: bool = True
    maxima: Maxima = field(default_factory=Maxima)
    """The declared maximum cost of an attempt; budgets reserve it before the attempt starts."""

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a ``def`` tool inline from the body of a ``def`` step; recorded as a call of that step."""
        result: R = run_inline(self, args, kwargs)
        return result


@dataclass(frozen=True, kw_only=True, repr=False)
class AgentDeclaration(Declaration[P, R, F]):
    """An ``@agent``: replayed from its run's event history, never executed as a step."""

    version: str = "1"
    limits: Mapping[Unit, int] = field(default_factory=dict)
    """What each run may spend, including its child runs: nano-dollars, tokens, steps."""
    signature: str = field(default="")


def code_signature(fn: Callable[..., object]) -> str:
    """A hash that changes with the text of the module that holds an agent, and with its parameters."""
    digest = hashlib.sha256(signature_hash(fn).encode())
    file = inspect.getsourcefile(fn)
    try:
        digest.update(Path(file).read_bytes() if file else fn.__code__.co_code)
    except OSError:
        digest.update(fn.__code__.co_code)
    return digest.hexdigest()
