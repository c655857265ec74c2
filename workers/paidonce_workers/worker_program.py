"""Celery's worker program with our pool as its default and an end that cannot hang.

Owns the choice of the pool and of the concurrency when a worker is started
(``celery -A paidonce_workers worker``, ``paidonce worker`` or in code), and the
way out of the process. ``app.conf.worker_pool`` cannot do it: Celery's command
line cannot tell ``-P prefork`` from no flag at all once that setting is used.

Must never change what a user asked for: a pool or a concurrency that is given
is kept, except that ``-P threads`` means our threads.
"""

from __future__ import annotations

import sys
from typing import Any

import click
from celery import concurrency as celery_pools
from celery import signals
from celery.apps import worker as celery_worker
from celery.bin.worker import worker as worker_command
from celery.concurrency import prefork, thread
from celery.utils.text import str_to_list
from click.core import ParameterSource

from paidonce.broker_check import check_connection
from paidonce_models.errors import PaidonceError
from paidonce_models.queues import SUBMIT_QUEUE
from paidonce_workers.draining import SECONDS_TO_CLOSE_CONNECTIONS, end_process, end_process_at_the_latest
from paidonce_workers.machinery import ATTRIBUTE, Machinery, machinery_of
from paidonce_workers.pool import DEFAULT_THREADS, TaskPool
from paidonce_workers.prefork_draining import drain_children, listen_in_children
from paidonce_workers.stop_signals import StopSignals

CELERYS_DEFAULT_POOL = "prefork"


def choose_pool(app: Any, machinery: Machinery | None = None) -> None:
    """Make ``paidonce_workers.pool`` the default pool of every worker that ``app`` starts; idempotent."""
    if machinery is not None:
        setattr(app, ATTRIBUTE, machinery)
    app.Worker = app.subclass_with_self(Worker)
    listen_in_children(app)


def pool_for(app: Any, asked: object) -> object:
    """The pool class for a worker; ``asked`` is what it was started with, None if with nothing."""
    if asked is not None and _comes_from_the_command_lines_default():
        asked = None
    if asked is None:
        configured = app.conf.worker_pool
        asked = TaskPool if configured in (None, CELERYS_DEFAULT_POOL) else configured
    pool: object = celery_pools.get_implementation(asked)
    return TaskPool if pool is thread.TaskPool else pool


def _comes_from_the_command_lines_default() -> bool:
    """Whether we are inside ``celery worker`` and nobody gave it a pool."""
    context = click.get_current_context(silent=True)
    if context is None or context.command is not worker_command:
        return False
    return context.get_parameter_source("pool") in (ParameterSource.DEFAULT, None)


def _wait_for_the_store(machinery: Machinery) -> None:
    if machinery.before_start is None:
        return
    try:
        machinery.before_start()
    except PaidonceError as error:
        print(f"paidonce: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)


class Worker(celery_worker.Worker):  # type: ignore[misc] # Celery publishes no types
    """The program; ``app.Worker`` once ``choose_pool`` was called."""

    def on_before_init(self, **options: Any) -> None:
        """Celery's own hook, called first. A worker that has never reached its broker has a wrong address, most likely.

        Later outages are waited out.
        """
        try:
            check_connection(self.app)
        except PaidonceError as error:
            print(f"paidonce: {error.message}", file=sys.stderr)
            sys.exit(error.exit_code)
        super().on_before_init(**options)

    def setup_defaults(
        self, concurrency: object = None, pool: object = None, pool_cls: object = None, **options: Any
    ) -> None:
        """Celery's own hook for defaults, called before anything is made from them."""
        chosen = pool_for(self.app, pool_cls if pool is None else pool)
        is_ours = isinstance(chosen, type) and issubclass(chosen, TaskPool)
        if is_ours and not concurrency and not self.app.conf.worker_concurrency:
            concurrency = DEFAULT_THREADS
        super().setup_defaults(concurrency=concurrency, pool=chosen, **options)

    def setup_queues(self, include: Any, exclude: Any = None) -> None:
        """Celery's own hook; ``-Q x`` means this namespace's queue ``x``, and submissions are always taken."""
        if include:
            names = [machinery_of(self.app).on_broker(name) for name in (*str_to_list(include), SUBMIT_QUEUE)]
            include = list(dict.fromkeys(names))
        if exclude:
            exclude = [machinery_of(self.app).on_broker(name) for name in str_to_list(exclude)]
        super().setup_queues(include, exclude)

    def install_platform_tweaks(self, worker: Any) -> None:
        """Celery's own hook; its signal handlers and then ours, which stop a worker of any pool in the same way."""
        super().install_platform_tweaks(worker)
        StopSignals(worker, machinery_of(self.app)).install()

    def start(self) -> None:
        """Run until stopped; with our pool, end the process if threads are left that nobody can end."""
        _wait_for_the_store(machinery_of(self.app))
        if not issubclass(self.pool_cls, TaskPool):
            if issubclass(self.pool_cls, prefork.TaskPool):
                signals.worker_shutting_down.connect(self._begin_to_drain_children, weak=False)
            super().start()
            return
        signals.worker_shutting_down.connect(self._begin_last_resort, weak=False)
        super().start()
        machinery = machinery_of(self.app)
        drain = getattr(self.pool, "drain", None)
        loop_is_free = machinery.bodies.close()
        if not loop_is_free or (drain is not None and drain.left_behind):
            # The interpreter would wait for those threads at its exit.
            end_process(self._exit_code())

    def _begin_to_drain_children(self, **_: object) -> None:
        drain_children(self.app, self._child_pids, self._exit_code)

    def _child_pids(self) -> list[int]:
        processes = getattr(getattr(self.pool, "_pool", None), "_pool", None) or ()
        return [process.pid for process in list(processes) if process.pid is not None and process.is_alive()]

    def _begin_last_resort(self, **_: object) -> None:
        machinery = machinery_of(self.app)
        end_process_at_the_latest(
            machinery.drain_seconds
            + machinery.interrupt_seconds
            + machinery.hand_back_seconds
            + SECONDS_TO_CLOSE_CONNECTIONS,
            self._exit_code(),
        )

    def _exit_code(self) -> int:
        return self.exitcode if isinstance(self.exitcode, int) else 0
