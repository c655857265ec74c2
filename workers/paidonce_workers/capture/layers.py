"""``Layer``: a method of somebody else's class, wrapped so that neighbours may wrap it too, before or after us.

Sentry, OpenTelemetry and Datadog wrap the same methods. So what stands on the class is a plain function (Datadog
rewrites the code of functions, everybody binds them); what it wraps is bound as Python binds it, never called with
the instance in front (wrapt tells whose method it is by the binding); it takes over no attribute of what it wraps
(Datadog keeps its way back in one). Taken away, it goes only where it still is what the class has; below somebody
else's wrapper it stays and passes through, and serves the next installation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, cast

Tap = Callable[..., Any]
"""Called with the bound original, the instance and the call's arguments."""
_OF: Final = "_paidonce_layer"


class Layer:
    """One wrapped method; ``tap`` is ``None`` while it passes through."""

    def __init__(self, owner: type, name: str, *, is_async: bool) -> None:
        self.tap: Tap | None = None
        self._owner = owner
        self.name = name
        self._original: Any = owner.__dict__[name]
        self._function = (_async_function if is_async else _function)(self, self._original)
        self._code = self._function.__code__
        setattr(owner, name, self._function)

    def take_away(self) -> None:
        """Tap no more, and leave the class as it was unless somebody has wrapped us since."""
        self.tap = None
        function = self._function
        if self._owner.__dict__.get(self.name) is function and function.__code__ is self._code:
            setattr(self._owner, self.name, self._original)


def put(owner: type, name: str, tap: Tap, *, is_async: bool = False, abstract: tuple[type, ...] = ()) -> Layer | None:
    """Have calls of the method go through ``tap``; ``None`` where no class above ``owner`` has it.

    A neighbour may have put a subclass of its own in the place of ``owner``: the lowest class that has the method is
    the library's own, which is below them all. ``abstract`` are classes that only name it.
    """
    definers = [each for each in owner.__mro__ if name in each.__dict__ and each not in abstract]
    if not definers:
        return None
    layer = _left_behind(definers[-1].__dict__[name]) or Layer(definers[-1], name, is_async=is_async)
    layer.tap = tap
    return layer


def _left_behind(found: Any) -> Layer | None:
    """Our layer below wrappers of others, as far as they tell what they wrap: a second one would pile up."""
    for _ in range(100):
        layer = getattr(found, _OF, None)
        if isinstance(layer, Layer) and layer._function is found:
            return layer
        found = getattr(found, "__wrapped__", None)
        if found is None:
            return None
    return None


def _bound(original: Any, instance: Any) -> Callable[..., Any]:
    binding = getattr(type(original), "__get__", None)
    bound: Callable[..., Any] = original if binding is None else binding(original, instance, type(instance))
    return bound


def _function(layer: Layer, original: Any) -> FunctionType:
    def through(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
        call, tap = _bound(original, instance), layer.tap
        return call(*args, **kwargs) if tap is None else tap(call, instance, *args, **kwargs)

    return _named(through, layer, original)


def _async_function(layer: Layer, original: Any) -> FunctionType:
    async def through(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
        call, tap = _bound(original, instance), layer.tap
        return await (call(*args, **kwargs) if tap is None else tap(call, instance, *args, **kwargs))

    return _named(through, layer, original)


def _named(through: Callable[..., Any], layer: Layer, original: Any) -> FunctionType:
    functools.update_wrapper(through, original, updated=())  # google-genai asks for the signature
    setattr(through, _OF, layer)
    return cast(FunctionType, through)
