"""What a decorator makes of a function: its name, its parameters, its options.

A declaration is a value that both sides share: the replay side asks it to
encode a call, the worker asks it to run one. Calling it runs nothing; it
returns an ``Invocation`` to be awaited in an agent.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from paidonce.invocation import Invocation, run_inline
from paidonce.policies.book import DecoratorKeys
from paidonce.retry import NO_RETRY, Retry
from paidonce.values import Codec, Parameters, signature_hash
from paidonce_models.budgets import Maxima, Unit
from paidonce_models.errors import InvalidInput

if TYPE_CHECKING:
    from paidonce.client import RunHandle

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_QUEUE = "default"

_SUBMIT = "Paidonce sends its message itself; submit a run of an agent: Client().submit(AGENT, {...}) or agent.submit()"
_WAYS_OUT = {
    **dict.fromkeys(("delay", "apply_async", "apply", "s", "si", "signature", "subtask"), _SUBMIT),
    "__name__": "it is a declaration of Paidonce and no function, so no other decorator or Celery app can make a task "
    "of it; it is a Celery task of Paidonce's workers already. The plain function is its .fn",
}
"""What Celery's users and Celery itself look for in a task or a function, and where to go instead."""


def module_name_of(fn: Callable[..., object]) -> str:
    """The module's importable name; a script run as ``__main__`` goes by the name it would be imported under."""
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
class Declaration(Generic[P, R]):
    """What steps, tools and agents have in common. ``fn`` is the plain function, for unit tests."""

    name: str
    kind: str
    fn: Callable[P, Any]
    parameters: Parameters
    queue: str
    file: str
    line: int

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Ask for a call: encodes the arguments now, schedules it when awaited in an agent."""
        return Invocation(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    if not TYPE_CHECKING:  # a checker shall go on reporting what does not exist

        def __getattr__(self, name: str) -> Any:
            """What is looked for where a declaration is taken for a task or a function of Celery's says what to do."""
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
        """The same, short where the file lies in the current folder."""
        file, folder = Path(self.file), Path.cwd()
        return f"{file.relative_to(folder) if file.is_relative_to(folder) else file}:{self.line}"


@dataclass(frozen=True, kw_only=True, repr=False)
class StepDeclaration(Declaration[P, R]):
    """A ``@step`` or ``@tool``. ``timeout_seconds`` None takes the setting's default."""

    timeout_seconds: float | None = None
    retry: Retry = NO_RETRY
    max_lost: int = 5
    delivery: str = "at_least_once"
    policy: str | None = None
    policy_keys: DecoratorKeys = ()
    """The keys of a policy that the decorator gave itself, by key path; ``timeout`` and ``retry`` among them."""
    provider: str | None = None
    """Whose API a step calls, as ``openai``; ``None`` if it was not said, and for tools."""
    idempotent: bool = True
    maxima: Maxima = field(default_factory=Maxima)
    """What an attempt costs at most, as declared; budgets reserve it before the attempt starts."""

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a ``def`` tool inline from the body of a ``def`` step; recorded as a call of that step."""
        result: R = run_inline(self, args, kwargs)
        return result


@dataclass(frozen=True, kw_only=True, repr=False)
class AgentDeclaration(Declaration[P, R]):
    """An ``@agent``: replayed from its run's log, never executed as a step."""

    version: str = "1"
    limits: Mapping[Unit, int] = field(default_factory=dict)
    """What each run may spend, its child runs included: nano-dollars, tokens, steps."""
    signature: str = field(default="")

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> RunHandle:
        """Enqueue a run of this agent with the settings of this process; see ``Client.submit``."""
        from paidonce.client import default_client  # noqa: PLC0415  # the client imports declarations

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

    async def submit_async(self, *args: P.args, **kwargs: P.kwargs) -> RunHandle:
        """``submit`` for web handlers: the store is written to in a thread."""
        import asyncio  # noqa: PLC0415  # only needed here

        return await asyncio.to_thread(self.submit, *args, **kwargs)


def code_signature(fn: Callable[..., object]) -> str:
    """A hash that changes with the text of the module that holds an agent, and with its parameters."""
    digest = hashlib.sha256(signature_hash(fn).encode())
    file = inspect.getsourcefile(fn)
    try:
        digest.update(Path(file).read_bytes() if file else fn.__code__.co_code)
    except OSError:
        digest.update(fn.__code__.co_code)
    return digest.hexdigest()
