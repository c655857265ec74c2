"""``ImportWatch``: tells when a module was imported, however late, and imports none itself.

A step may import its SDK only when it runs. Watching costs one comparison for
each module that is found for the first time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class ImportWatch(MetaPathFinder):
    """Stands first in ``sys.meta_path``; finds nothing itself."""

    def __init__(self, names: Sequence[str], imported: Callable[[ModuleType], object]) -> None:
        self._names = frozenset(names)
        self._imported = imported

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
        """The spec that the other finders have, its loader calling us once after the module's code has run."""
        if fullname not in self._names:
            return None
        for finder in list(sys.meta_path):
            if finder is self or isinstance(finder, ImportWatch):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                self._watch(spec)
                return spec
        return None

    def _watch(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        execute = getattr(loader, "exec_module", None)
        if loader is None or execute is None:
            return

        def exec_module(module: ModuleType) -> None:
            loader.__dict__.pop("exec_module", None)
            execute(module)
            self._imported(module)

        try:
            loader.exec_module = exec_module  # type: ignore[method-assign]  # for this one import
        except AttributeError:  # a loader with slots: the module stays unwatched
            return
