"""The command line and the environment of a worker program, the same for ``paidonce worker`` and ``paidonce run``.

The worker is ``celery -A paidonce_workers worker`` in this interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import paidonce_workers
from paidonce.declarations.registry import Registry
from paidonce_models.queues import DEFAULT_QUEUE, SUBMIT_QUEUE, full_queue_name

CELERY_ARGUMENTS = ("-A", paidonce_workers.__name__, "worker")


def worker_arguments(
    *,
    name: str,
    log_level: str,
    concurrency: int | None = None,
    pool: str | None = None,
    queues: Iterable[str] = (),
) -> list[str]:
    """The arguments of ``celery``. Without ``queues`` the worker consumes the default ones."""
    arguments = [*CELERY_ARGUMENTS, "-n", f"{name}@%h", "--loglevel", log_level]
    if concurrency is not None:
        arguments += ["--concurrency", str(concurrency)]
    if pool is not None:
        arguments += ["--pool", pool]
    names = [full_queue_name(queue) for queue in queues]
    if names:
        # Every worker consumes submissions of producers without the database.
        arguments += ["--queues", ",".join(dict.fromkeys([*names, SUBMIT_QUEUE]))]
    return arguments


def worker_environment(modules: Sequence[ModuleType]) -> dict[str, str]:
    """This process's environment with the modules to load, and the folders where they were found."""
    folders = [str(Path.cwd()), *(folder for module in modules if (folder := _root_folder(module)) is not None)]
    known = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return {
        **os.environ,
        "PAIDONCE_AGENTS": ",".join(module.__name__ for module in modules),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*folders, *known])),
    }


def declared_queues(registry: Registry) -> set[str]:
    """The full names of all queues that the loaded declarations name, and the default one."""
    declarations = (*registry.agents, *registry.steps)
    return {DEFAULT_QUEUE, *(full_queue_name(declaration.queue) for declaration in declarations)}


def _root_folder(module: ModuleType) -> str | None:
    """The folder from which the module's dotted name starts; ``None`` for an installed one."""
    if module.__file__ is None:
        return None
    path = Path(module.__file__).absolute()
    depth = module.__name__.count(".") + (1 if path.name == "__init__.py" else 0)
    root = path.parents[depth]
    return None if root.name in ("site-packages", "dist-packages") else str(root)
