"""``ImportWatch``: calls back when a module has been imported, however late; imports nothing itself.

A step may import its SDK only when it runs. Watching costs one comparison for
each module that is found for the first time.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class ImportWatch(MetaPathFinder):
    """Stands first in ``sys.meta_path``; finds nothing itself."""

    def __init__(self, names: Sequence[str], imported: Callable[[ModuleType], object]) -> None:
        self._names = frozenset(names)
        self._imported = imported
        self._under_way = _UnderWay()

    def begin(self) -> None:
        """Call back for each module: now if it is already imported, else once it was executed."""
        sys.meta_path.insert(0, self)
        for name in self._names:
            module = sys.modules.get(name)
            if module is not None:
                self._imported(module)

    def end(self) -> None:
        """Call back no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the other finders, with a loader that calls us once the module's code has run."""
        if fullname not in self._names or fullname in self._under_way.names:
            return None
        self._under_way.names.add(fullname)  # another import hook may call all finders again
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                if find is None or isinstance(finder, ImportWatch):
                    continue
                spec: ModuleSpec | None = find(fullname, path, target)
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        spec.loader = WatchedLoader(spec.loader, self._imported)
                    return spec
        finally:
            self._under_way.names.discard(fullname)
        return None


class WatchedLoader(Loader):
    """Loads as the wrapped loader does, reports the module, and leaves no trace on it.

    Separate, because another library's loader may be a proxy: attributes set on it end up on the loader behind it.
    """

    def __init__(self, loader: Any, imported: Callable[[ModuleType], object]) -> None:
        self._loader = loader
        self._imported = imported

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Delegate to the wrapped loader."""
        create = getattr(self._loader, "create_module", None)
        module: ModuleType | None = None if create is None else create(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then report it."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._imported(module)


class _UnderWay(threading.local):
    """The modules that this thread is importing."""

    def __init__(self) -> None:
        self.names: set[str] = set()
