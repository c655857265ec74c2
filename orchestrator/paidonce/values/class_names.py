"""Classes by name: how a stored value names the class of an object, and how that class is found again.

Owns which classes a store may name: only those in the slot's annotation, or in a package that this process has
imported. A look-up never imports another package, and creating the object only fills in data: no constructor, validator
or ``__setstate__`` of the class is run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any

from paidonce_models.errors import InvalidInput
from paidonce_models.payloads.json_values import JsonValue


def class_name(cls: type) -> JsonValue:
    """The name of a class in a stored value; ``None`` if no name leads back to it."""
    generic = getattr(cls, "__pydantic_generic_metadata__", None) or {}
    origin = generic.get("origin")
    if not isinstance(origin, type):
        return f"{_module_of(cls)}:{cls.__qualname__}"
    arguments = [class_name(each) if isinstance(each, type) else None for each in generic.get("args", ())]
    return None if None in arguments else {"of": class_name(origin), "with": arguments}


def find_class(name: object, known: Iterable[type] = ()) -> type:
    """The class with a name, ``known`` ones first. Raises ``InvalidInput``."""
    if isinstance(name, dict) and isinstance(name.get("with"), list):
        origin: Any = find_class(name.get("of"), known)
        arguments = tuple(find_class(each, known) for each in name["with"])
        try:
            made = origin[arguments if len(arguments) != 1 else arguments[0]]
        except Exception as error:
            raise InvalidInput(f"the class {origin.__qualname__} no longer takes these parameters") from error
        return _a_class(made, str(name))
    for cls in known:
        if class_name(cls) == name:
            return cls
    if name == "builtins:NoneType":
        return NoneType
    module, _, path = str(name).partition(":")
    found: object = _module(module, str(name))
    for part in path.split("."):
        found = getattr(found, part, None)
    return _a_class(found, str(name))


def _a_class(found: object, name: str) -> type:
    if isinstance(found, type):
        return found
    raise InvalidInput(f"the class {name} of a stored value no longer exists; keep it importable under that name")


def _module_of(cls: type) -> str:
    """Like ``declarations.module_name_of``: a script's classes have the name under which it would be imported."""
    if cls.__module__ != "__main__":
        return cls.__module__
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _module(name: str, of: str) -> object:
    found = sys.modules.get(name)
    if found is not None:
        return found
    if name.partition(".")[0] in sys.modules:
        try:
            return importlib.import_module(name)
        except Exception as error:  # a module's top level may raise anything
            raise InvalidInput(
                f"the class {of} of a stored value cannot be found: its module does not import"
            ) from error
    raise InvalidInput(f"the class {of} of a stored value cannot be found: nothing here imports {name!r}")
