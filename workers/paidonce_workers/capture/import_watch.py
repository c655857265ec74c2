"""``ImportWatch``: tells when a module was imported, however late, and imports none itself.

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
        """Tell of each module: now if it is there already, else once it was executed."""
        sys.meta_path.insert(0, self)
        for name in self._names:
            module = sys.modules.get(name)
            if module is not None:
                self._imported(module)

    def end(self) -> None:
        """Tell no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders have, with a loader that calls us once the module's code has run."""
        if fullname not in self._names or fullname in self._under_way.names:
            return None
        self._under_way.names.add(fullname)  # a neighbour that watches imports too asks all finders again
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
    """Loads as the loader does that it stands before, tells of the module, and leaves no trace on it.

    Of its own, because a neighbour's loader may be a proxy: what is put on that one ends up on the loader behind it.
    """

    def __init__(self, loader: Any, imported: Callable[[ModuleType], object]) -> None:
        self._loader = loader
        self._imported = imported

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        create = getattr(self._loader, "create_module", None)
        module: ModuleType | None = None if create is None else create(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then tell."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._imported(module)


class _UnderWay(threading.local):
    """The modules that this thread looks for."""

    def __init__(self) -> None:
        self.names: set[str] = set()
