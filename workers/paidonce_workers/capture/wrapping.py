"""``Layer``: a wrapped method of another library's class, which others may also wrap, before or after us.

Sentry, OpenTelemetry and Datadog wrap the same methods. So the attribute on the class is a plain function (Datadog
rewrites the code of functions, everybody binds them); the wrapped method is bound as Python binds it, never called with
the instance as an argument (wrapt detects the owner by the binding); no attributes are copied from it (Datadog keeps
its way back in one). Removal restores the class only if our function is still its attribute; below another wrapper it
stays, passes calls through, and is reused by the next installation.
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
    """One wrapped method; ``tap`` is ``None`` while calls pass through."""

    def __init__(self, owner: type, name: str, *, is_async: bool) -> None:
        self.tap: Tap | None = None
        self._owner = owner
        self.name = name
        self._original: Any = owner.__dict__[name]
        self._function = (_async_function if is_async else _function)(self, self._original)
        self._code = self._function.__code__
        setattr(owner, name, self._function)

    def take_away(self) -> None:
        """Stop tapping, and restore the class unless someone has wrapped us since."""
        self.tap = None
        function = self._function
        if self._owner.__dict__.get(self.name) is function and function.__code__ is self._code:
            setattr(self._owner, self.name, self._original)


def put(owner: type, name: str, tap: Tap, *, is_async: bool = False, abstract: tuple[type, ...] = ()) -> Layer | None:
    """Route calls of the method through ``tap``; ``None`` if no class above ``owner`` has it.

    Another library may have replaced ``owner`` by a subclass: the lowest class that has the method is the original
    library's, which is below them all. ``abstract`` are classes that only declare it.
    """
    definers = [each for each in owner.__mro__ if name in each.__dict__ and each not in abstract]
    if not definers:
        return None
    layer = _left_behind(definers[-1].__dict__[name]) or Layer(definers[-1], name, is_async=is_async)
    layer.tap = tap
    return layer


def _left_behind(found: Any) -> Layer | None:
    """Our layer below the wrappers of others, if they expose what they wrap: a second layer would pile up."""
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
    functools.update_wrapper(through, original, updated=())  # google-genai inspects the signature
    setattr(through, _OF, layer)
    return cast(FunctionType, through)
