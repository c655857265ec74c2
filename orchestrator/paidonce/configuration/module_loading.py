"""Imports the modules that hold a project's agents, steps and tools.

Owns the conversion of names (``shop.agents``) and files (``my_agents.py``) to imported modules, and the error if that
fails: it distinguishes a missing module from one that raised. The current folder and ``PYTHONPATH`` are importable.
Never inspects a module; declaring is the decorators' job.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from paidonce.configuration.module_shadows import Shadow, imported_shadows, is_installed, root_of, shadow_of, shadows_in
from paidonce_models.errors import ModuleNotLoadable, PaidonceError

log = logging.getLogger(__name__)

NO_AUTHORS = frozenset({"paidonce", "paidonce_models", *sys.stdlib_module_names})
"""Packages whose lines are never the place to correct a module that fails to import."""


def load_modules(names: Iterable[str]) -> list[ModuleType]:
    """Import each module in order; a file inside the current folder gets its dotted name from there.

    The current folder is put first on ``sys.path`` and stays there. Raises ``ModuleNotLoadable``.
    """
    make_importable(Path.cwd())
    loaded = [_load_file(name) if _is_file_name(name) else _load_named(name) for name in names]
    _report_shadows(loaded)
    return loaded


def _report_shadows(loaded: Iterable[ModuleType]) -> None:
    """Log which files of the project shadow an installed package; most are harmless, some break everything."""
    names = [module.__name__ for module in loaded]
    found = [shadow for name in names if (shadow := shadow_of(name)) is not None]
    tops = [sys.modules.get(name.partition(".")[0]) for name in names]
    found += imported_shadows({Path.cwd(), *(root for top in tops if (root := root_of(top)) is not None)})
    found += shadows_in(Path.cwd(), list(sys.modules.values()))
    for shadow in dict.fromkeys(found):
        log.warning("%s", shadow, extra={"event": "module_shadows", "module_name": shadow.name})


def make_importable(folder: Path) -> None:
    """Put a folder first on ``sys.path`` unless it is there; console scripts start without the current folder."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _is_file_name(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _load_file(name: str) -> ModuleType:
    try:
        path = Path(name).expanduser().absolute()
    except RuntimeError:  # `~` without HOME, and a user without an entry in the password database
        raise ModuleNotLoadable(f"module file {name!r}: the home of this user is not known; write it out") from None
    if not path.is_file():
        raise ModuleNotLoadable(f"module file {name!r} was not found: there is no file {path}; check the path")
    folder = Path.cwd()
    inside = path.resolve().is_relative_to(folder.resolve())
    relative = path.resolve().relative_to(folder.resolve()) if inside else Path(path.name)
    parts = list(relative.with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    if not all(part.isidentifier() for part in parts):
        raise ModuleNotLoadable(
            f"module file {name!r} cannot be imported as {'.'.join(parts)!r}: steps are named after their module, so "
            "each part must be a Python name; rename it"
        )
    if not inside:
        make_importable(path.parent)
    module = _load_name(".".join(parts))
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != path.resolve():
        raise ModuleNotLoadable(
            f"module file {name!r} cannot be imported: the name {module.__name__!r} is already that of {found}; "
            "rename the file"
        )
    return module


def _load_named(name: str) -> ModuleType:
    module = _load_name(name)
    _refuse_another(name, module)
    return module


def _load_name(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ModuleNotLoadable(
            f"{name!r} is not a module name: expected dotted names as in 'shop.agents', or a file as in 'my_agents.py'"
        )
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name is not None and (name == error.name or name.startswith(f"{error.name}."))
        if missing and _origin(error) is None:
            raise ModuleNotLoadable(_not_found_message(name, str(error.name))) from None
        raise ModuleNotLoadable(_failed_message(name, error)) from error
    except (Exception, SystemExit) as error:  # a module's top level may raise anything; each is reported the same way
        raise ModuleNotLoadable(_failed_message(name, error)) from error
    return module


def _not_found_message(name: str, missing: str) -> str:
    folders = [str(Path.cwd())] + [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    parent = "" if missing == name else f" (there is no {missing!r})"
    there = sorted(path.stem for path in Path.cwd().glob("*.py")) + sorted(
        path.parent.name for path in Path.cwd().glob("*/__init__.py")
    )
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"did you mean {near[0]!r}? Otherwise start" if near else "start"
    return (
        f"module {name!r} was not found{parent}: looked in {', '.join(folders)} and among the installed packages; "
        f"{hint} in the folder that holds it, or add that folder to PYTHONPATH"
    )


def _failed_message(name: str, error: BaseException) -> str:
    last_line = (
        f"{type(error).__name__}: {error.message}"
        if isinstance(error, PaidonceError)
        else traceback.format_exception_only(error)[-1].strip()
    )
    origin = _origin(error)
    where = f" at {origin}" if origin is not None else ""
    remedy = "correct it and start again"
    if isinstance(error, ModuleNotFoundError) and error.name:
        remedy = f"install {error.name!r} in this environment ({sys.prefix}) or add its folder to PYTHONPATH"
    shadow = _shadow_behind(name, error)
    if shadow is not None:
        remedy = str(shadow)
    return f"module {name!r} was found but failed while it was imported: {last_line}{where}; {remedy}"


def _shadow_behind(name: str, error: BaseException) -> Shadow | None:
    """A file of the project that was imported instead of an installed package, if that may be why the import failed."""
    if not isinstance(error, ImportError | AttributeError):
        return None
    meant = [error.name] if isinstance(error, ImportError) and error.name else []
    asked = error.obj if isinstance(error, AttributeError) else None
    if isinstance(asked, ModuleType):  # `module 'httpx' has no attribute 'Client'`
        meant.append(asked.__name__)
    return next((shadow for each in (*meant, name) if (shadow := shadow_of(each)) is not None), None)


def _refuse_another(name: str, module: ModuleType) -> None:
    """Raise ``ModuleNotLoadable`` if the current folder has a module of that name but an installed one was imported."""
    top = name.partition(".")[0]
    own = next((path for path in (Path.cwd() / top / "__init__.py", Path.cwd() / f"{top}.py") if path.is_file()), None)
    found = getattr(sys.modules.get(top, module), "__file__", None)
    if own is not None and (found is None or (is_installed(found) and Path(found).resolve() != own.resolve())):
        raise ModuleNotLoadable(
            f"module {name!r} is not the one in this folder: {own} has the same name as "
            f"{found or 'a module that is built into Python'}, which was imported; rename it"
        )


def _origin(error: BaseException) -> str | None:
    """``file:line`` of the innermost frame outside the import system and Paidonce, whose decorators refuse what the
    line declares; ``None`` if no module's code had started.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    places = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in NO_AUTHORS
        and not frame.f_code.co_filename.startswith("<frozen ")
    ]
    return places[-1] if places else None
