"""Celery's worker program with our pool as its default and an exit that cannot hang.

Owns the choice of the pool and of the concurrency when a worker is started
(``celery -A paidonce_workers worker``, ``paidonce worker`` or in code), and the exit of
the process. ``app.conf.worker_pool`` is no alternative: once it is set, Celery's command
line cannot distinguish ``-P prefork`` from no flag at all.

Must never change what a user requested: a given pool or concurrency is kept, except
that ``-P threads`` means our threads. What is incompatible with Paidonce is refused by
name (``worker_options``).
"""

from __future__ import annotations

import atexit
import sys
from typing import Any, NoReturn

import click
from celery import concurrency as celery_pools
from celery import signals
from celery.apps import worker as celery_worker
from celery.bin.worker import worker as worker_command
from celery.concurrency import prefork, thread
from celery.utils.text import str_to_list
from click.core import ParameterSource

from paidonce.broker.reachability import check_connection
from paidonce_models.errors import ConfigurationError, PaidonceError
from paidonce_models.privacy.masking import mask_values
from paidonce_models.queues import SUBMIT_QUEUE
from paidonce_workers.pools.autoscaling import Autoscaler
from paidonce_workers.pools.draining import (
    SECONDS_TO_CLOSE_CONNECTIONS,
    end_process,
    end_process_at_the_latest,
    restart_program,
)
from paidonce_workers.pools.growing_threads import GrowingThreads
from paidonce_workers.pools.prefork_draining import drain_children, listen_in_children
from paidonce_workers.pools.stop_signals import StopSignals
from paidonce_workers.pools.thread_pool import DEFAULT_THREADS, TaskPool
from paidonce_workers.process.worker_parts import ATTRIBUTE, WorkerParts, worker_parts_of
from paidonce_workers.startup.worker_options import (
    refuse_children_without_semaphores,
    refuse_options,
    refuse_options_of_children,
)

CELERYS_DEFAULT_POOL = "prefork"
CELERYS_AUTOSCALER = "celery.worker.autoscale:Autoscaler"


def choose_pool(app: Any, parts: WorkerParts | None = None) -> None:
    """Make ``paidonce_workers.pools.thread_pool`` the default pool of every worker that ``app`` starts; idempotent."""
    if parts is not None:
        setattr(app, ATTRIBUTE, parts)
    app.Worker = app.subclass_with_self(Worker)
    listen_in_children(app)


def pool_for(app: Any, asked: object) -> object:
    """The pool class for a worker; ``asked`` is the requested pool, ``None`` if there was no request.

    Raises ``ConfigurationError`` for a pool that breaks our promises.
    """
    if asked is not None and _comes_from_the_command_lines_default():
        asked = None
    if asked is None:
        configured = app.conf.worker_pool
        asked = TaskPool if configured in (None, CELERYS_DEFAULT_POOL) else configured
    pool: object = celery_pools.get_implementation(asked)
    if pool is thread.TaskPool:
        return TaskPool
    if isinstance(pool, type) and issubclass(pool, TaskPool | prefork.TaskPool):
        return pool
    raise ConfigurationError(
        f"the pool {_shown_pool(pool)} is incompatible with Paidonce, which interrupts, drains and releases steps: "
        "use --pool threads (with --concurrency 1 for one step at a time) or --pool prefork"
    )


def _shown_pool(pool: object) -> str:
    if not isinstance(pool, type):
        return repr(pool)
    for name, path in celery_pools.ALIASES.items():
        if path == f"{pool.__module__}:{pool.__qualname__}" and name != "custom":
            return f"--pool {name}"
    return f"{pool.__module__}.{pool.__qualname__}"


def _comes_from_the_command_lines_default() -> bool:
    """Whether this is ``celery worker`` without a pool on its command line."""
    context = click.get_current_context(silent=True)
    if context is None or context.command is not worker_command:
        return False
    return context.get_parameter_source("pool") in (ParameterSource.DEFAULT, None)


def _refused(error: PaidonceError) -> NoReturn:
    print(f"paidonce: {error.message}", file=sys.stderr)
    sys.exit(error.exit_code)


def _wait_for_the_store(parts: WorkerParts) -> None:
    if parts.before_start is None:
        return
    try:
        parts.before_start()
    except PaidonceError as error:
        _refused(error)


class Worker(celery_worker.Worker):  # type: ignore[misc] # Celery publishes no types
    """The program; ``app.Worker`` once ``choose_pool`` was called."""

    _stop_signals: StopSignals | None = None
    _is_stopping = False
    autoscaler_cls: Any

    def on_before_init(self, **options: Any) -> None:
        """Celery's own hook, called first. A worker that never reached its broker most likely has a wrong address.

        Later outages are waited out.
        """
        try:
            check_connection(self.app)
        except PaidonceError as error:
            _refused(error)
        super().on_before_init(**options)
        try:  # after the handlers of `celeryd_init`
            refuse_options(self.app.conf, options, worker_parts_of(self.app).pinned_settings)
        except ConfigurationError as error:
            _refused(error)

    def setup_defaults(
        self, concurrency: object = None, pool: object = None, pool_cls: object = None, **options: Any
    ) -> None:
        """Celery's own hook for defaults, called before anything is created from them."""
        try:
            chosen = pool_for(self.app, pool_cls if pool is None else pool)
            refuse_options_of_children(self.app.conf, options, chosen)
            refuse_children_without_semaphores(chosen)
        except ConfigurationError as error:
            _refused(error)
        is_ours = isinstance(chosen, type) and issubclass(chosen, TaskPool)
        if is_ours and not concurrency and not self.app.conf.worker_concurrency:
            concurrency = DEFAULT_THREADS
        super().setup_defaults(concurrency=concurrency, pool=chosen, **options)
        if is_ours and self.autoscaler_cls == CELERYS_AUTOSCALER:
            self.autoscaler_cls = Autoscaler

    def setup_queues(self, include: Any, exclude: Any = None) -> None:
        """Celery's own hook; ``-Q x`` means this namespace's queue ``x``, and submissions are always consumed."""
        on_broker = worker_parts_of(self.app).on_broker
        names = str_to_list(include) if include else None
        if names:
            include = list(dict.fromkeys(on_broker(name) for name in (*names, SUBMIT_QUEUE)))
        super().setup_queues(include, [on_broker(name) for name in str_to_list(exclude)] if exclude else None)

    def install_platform_tweaks(self, worker: Any) -> None:
        """Celery's own hook: its signal handlers, then ours, which stop a worker of any pool in the same way."""
        super().install_platform_tweaks(worker)
        self._stop_signals = StopSignals(worker, worker_parts_of(self.app))
        self._stop_signals.install()

    def start(self) -> None:
        """Run until stopped; with our pool, end the process if threads are left that cannot be ended."""
        _wait_for_the_store(worker_parts_of(self.app))
        signals.worker_shutting_down.connect(self._begin_to_stop, weak=False)
        try:
            super().start()
        finally:
            threads = getattr(self.pool, "executor", None)
            if isinstance(threads, GrowingThreads):
                threads.shutdown()  # else the interpreter would wait for them if the pool was never stopped
        if not issubclass(self.pool_cls, TaskPool):
            self._start_anew_if_asked()
            return
        parts = worker_parts_of(self.app)
        drain = getattr(self.pool, "drain", None)
        loop_is_free = parts.bodies.close()
        if not loop_is_free or (drain is not None and drain.left_behind):
            # The interpreter would wait for those threads when it exits.
            self._end()
        self._start_anew_if_asked()

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        """Celery's own, also for ``celery control shutdown``, which sends no signal: it must end in time too."""
        self._begin_to_stop()
        super().stop(in_sighandler=in_sighandler, exitcode=exitcode)

    def stats(self) -> object:
        """Celery's own, for ``celery inspect stats``; readable by anyone who reaches the broker.

        Celery removes only the broker's password, not those in its transport options (a sentinel's).
        """
        return mask_values(super().stats())

    def _begin_to_stop(self, **_: object) -> None:
        """Start the clock of the drain, once."""
        if self._is_stopping:
            return
        self._is_stopping = True
        if issubclass(self.pool_cls, TaskPool):
            self._begin_last_resort()
        elif issubclass(self.pool_cls, prefork.TaskPool):
            drain_children(self.app, self._child_pids, self._end)

    def _start_anew_if_asked(self) -> None:
        """Run the interpreter's exit handlers, then start the same program again (SIGHUP)."""
        if self._restarts:
            atexit._run_exitfuncs()
            restart_program()

    def _end(self, exit_code: int | None = None) -> None:
        """End the process now, or restart it, whatever its threads do."""
        if self._restarts:
            restart_program()
        end_process(self._exit_code() if exit_code is None else exit_code)

    @property
    def _restarts(self) -> bool:
        return self._stop_signals is not None and self._stop_signals.restarts

    def _child_pids(self) -> list[int]:
        processes = getattr(getattr(self.pool, "_pool", None), "_pool", None) or ()
        return [process.pid for process in list(processes) if process.pid is not None and process.is_alive()]

    def _begin_last_resort(self) -> None:
        parts = worker_parts_of(self.app)
        end_process_at_the_latest(
            parts.drain_seconds + parts.interrupt_seconds + parts.hand_back_seconds + SECONDS_TO_CLOSE_CONNECTIONS,
            self._exit_code(),
            self._end,
        )

    def _exit_code(self) -> int:
        return self.exitcode if isinstance(self.exitcode, int) else 0
