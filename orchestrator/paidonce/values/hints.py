"""The annotations of a function as objects, wherever its types were defined.

Owns the resolution of annotations written as text (``from __future__ import
annotations``). Names are looked up in the function's module and, for a function defined
inside another one, in the frames of the enclosing functions at the time of its
declaration. A name that does not exist yet is looked up again at first use.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable
from types import FrameType

from paidonce_models.errors import DeclarationError

_NAME = re.compile(r"[A-Za-z_]\w*")


def local_names(function: Callable[..., object]) -> dict[str, object]:
    """The names in the functions around ``function`` that its annotations may use.

    Call it while those functions are still running. Holds only names that the annotations use.
    """
    if "<locals>" not in function.__qualname__:
        return {}
    texts = [text for text in inspect.get_annotations(function).values() if isinstance(text, str)]
    wanted = {name for text in texts for name in _NAME.findall(text)}
    names: dict[str, object] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name in wanted:
            try:
                names[name] = cell.cell_contents
            except ValueError:
                continue  # not assigned yet
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and wanted - names.keys():
        encloses = function.__qualname__.startswith(f"{frame.f_code.co_qualname}.<locals>.")
        if encloses and frame.f_globals is function.__globals__:
            local = frame.f_locals
            names.update((name, local[name]) for name in wanted.intersection(local) - names.keys())
        frame = frame.f_back
    return names


def resolve_hints(function: Callable[..., object], names: dict[str, object]) -> dict[str, object]:
    """Parameter names (and ``return``) to annotations; raises ``DeclarationError`` for names that are not found."""
    try:
        return typing.get_type_hints(function, localns=names or None, include_extras=True)
    except NameError as error:
        raise DeclarationError(
            f"{_place(function)}: {_annotation_with(function, str(error.name))} names {error.name!r}, which cannot be "
            "found at run time; import it outside `if TYPE_CHECKING`, or define it at module level"
        ) from error
    except Exception as error:  # an annotation is an expression, which may raise anything
        raise DeclarationError(
            f"{_place(function)}: an annotation cannot be evaluated: {type(error).__name__}: {error}; correct it, or "
            "import what it names outside `if TYPE_CHECKING`"
        ) from error


def _place(function: Callable[..., object]) -> str:
    code = function.__code__
    return f"{function.__module__}.{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


def _annotation_with(function: Callable[..., object], name: str) -> str:
    """The first annotation, as written, that contains a name."""
    for parameter, text in inspect.get_annotations(function).items():
        if isinstance(text, str) and name in _NAME.findall(text):
            return f"the annotation {parameter}: {text}" if parameter != "return" else f"the annotation -> {text}"
    return "an annotation"
