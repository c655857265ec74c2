"""Modules of a project with the name of an installed package or of a module of Python's library.

The folder of the project comes first on the path, so whoever imports such a name gets the project's file: a file
``agents.py`` shadows the OpenAI Agents SDK's package, ``celery.py`` the worker itself. The resulting failure is
elsewhere and does not mention the file. Only compares names and looks for files; imports nothing.
"""

from __future__ import annotations

import filecmp
import sys
import sysconfig
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

MOST_FILES = 1_000
"""How many files of a folder are compared."""
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shadow:
    """Two files with one name."""

    name: str
    own: str
    """The project's file, which is imported."""
    installed: str

    def __str__(self) -> str:
        return (
            f"{self.own} has the same name as {self.installed}, and every `import {self.name}` of this process gets "
            "the former: rename it"
        )


def shadow_of(name: str) -> Shadow | None:
    """Whether a name that is found in the project is also that of something installed."""
    top = name.partition(".")[0]
    own: str | None = None
    for entry in sys.path:
        spec = PathFinder.find_spec(top, [entry])
        origin = None if spec is None else _file_of(spec)
        if origin is None:
            continue
        if is_installed(origin):
            if own is None or own == origin or _same(own, origin):
                return None
            return Shadow(name=top, own=own, installed=origin)
        own = own or origin
    return None


def _same(own: str, installed: str) -> bool:
    """Whether the project itself is also installed, as in a container that holds both it and its installed copy."""
    try:
        return filecmp.cmp(own, installed, shallow=False)
    except OSError:
        return False


def imported_shadows(folders: Collection[Path]) -> list[Shadow]:
    """Shadows among the modules that this process has imported from the folders, whoever imported them."""
    own = [name for name, module in list(sys.modules.items()) if "." not in name and root_of(module) in folders]
    return [shadow for name in sorted(own) if (shadow := shadow_of(name)) is not None]


def root_of(module: ModuleType | None) -> Path | None:
    """The folder on the path with a top-level module or package; ``None`` for an installed one or no file."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or is_installed(file):
        return None
    path = Path(file)
    return path.parent.parent if path.stem == "__init__" else path.parent


def shadows_in(folder: Path, modules: Iterable[ModuleType]) -> list[Shadow]:
    """Files of a folder that will be imported instead of what this process has imported from elsewhere."""
    installed: dict[str, str] = {}
    for module in modules:
        name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None)
        if isinstance(name, str) and "." not in name and isinstance(file, str) and is_installed(file):
            installed[name] = file
    found = []
    for own in _importable(folder):
        name = own.parent.name if own.name == "__init__.py" else own.stem
        if name in installed and str(own) != installed[name]:
            found.append(Shadow(name=name, own=str(own), installed=installed[name]))
    return sorted(found, key=lambda shadow: shadow.name)


def _importable(folder: Path) -> list[Path]:
    try:
        return [*folder.glob("*.py"), *folder.glob("*/__init__.py")][:MOST_FILES]
    except OSError:
        return []


def _file_of(spec: ModuleSpec) -> str | None:
    return spec.origin if spec.has_location else None


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python's own library or to an installed package."""
    path = Path(file)
    if any(part in _INSTALLED for part in path.parts):
        return True
    return any(path.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
