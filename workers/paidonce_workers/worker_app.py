"""The Celery app of a worker: settings read, modules loaded, tasks registered, hooks connected."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import signals

from paidonce.celery_app import PaidonceCelery, build_celery_app, largest_submission_bytes
from paidonce.declaration_checks import refuse_unfit
from paidonce.home import make_home
from paidonce.module_loading import load_modules
from paidonce.opening import open_store
from paidonce.policies import policies_from_settings
from paidonce.policies.checking import idle_targets, refuse_misfits
from paidonce.policies.targets import Target
from paidonce.registry import Registry, default_registry
from paidonce.settings import Settings, load_settings
from paidonce_models.errors import PaidonceError, StoreDenied, StoreUnreachable
from paidonce_models.masking import mask
from paidonce_models.safe_logs import keep_reports_quiet, make_safe
from paidonce_models.schema import ensure_schema
from paidonce_models.visible_text import visible
from paidonce_workers.breakers.connecting import refuse_cluster
from paidonce_workers.intake import refuse_submission
from paidonce_workers.machinery import Machinery
from paidonce_workers.patience import Patience
from paidonce_workers.tasks import register_tasks
from paidonce_workers.worker_options import pinned
from paidonce_workers.worker_process import WorkerProcesses
from paidonce_workers.worker_program import choose_pool

SPARE_CONNECTIONS = 16

log = logging.getLogger(__name__)


def build_worker_app(settings: Settings, registry: Registry) -> PaidonceCelery:
    """A worker's app with every step of the registry as a task. Raises ``PaidonceError`` saying what to mend."""
    refuse_unfit(registry)
    book = policies_from_settings(settings)
    refuse_misfits(book, list(registry.steps))
    make_home(settings)
    _check_store(settings)
    app = build_celery_app(settings, connections=settings.concurrency + SPARE_CONNECTIONS)
    app.conf.worker_consumer = "paidonce_workers.consumer:Consumer"
    if "concurrency" in settings.model_fields_set:  # otherwise each pool has a default of its own
        app.conf.worker_concurrency = settings.concurrency
    machinery = Machinery(
        namespace=settings.namespace,
        drain_seconds=settings.drain_seconds,
        turn_seconds=settings.turn_seconds,
        is_step=lambda name: registry.step(name) is not None,
        largest_submission_bytes=largest_submission_bytes(settings),
    )
    processes = WorkerProcesses(app=app, settings=settings, registry=registry, machinery=machinery)
    machinery.before_start = functools.partial(wait_for_store, settings)
    machinery.on_unknown_step = lambda *message: processes.current().hand_on_step(*message)
    machinery.on_refused_submission = lambda *found: refuse_submission(processes.current(), *found)
    machinery.on_drain_expired = lambda keys: processes.current().hand_back_held(keys)
    machinery.give_away = lambda kept: processes.current().give_away(kept)
    machinery.drain_isolated = processes.drain_isolated
    machinery.pinned_settings = pinned(app.conf)
    choose_pool(app, machinery)
    register_tasks(app, registry, processes.current)
    _connect(app, processes, idle_targets(book, registry.steps, settings.provider_hosts))
    return app


def _check_store(settings: Settings) -> None:
    """Refuse a store that no waiting makes right. One that is away is waited for by the worker program.

    Other programs of Celery (``inspect``, ``status``) make this app too and need no store.
    """
    database = open_store(settings)
    try:
        ensure_schema(database)
    except StoreDenied:
        raise
    except StoreUnreachable:
        if database.is_sqlite and not Path(str(database.url.database)).absolute().parent.is_dir():
            raise  # a mistake in the address
    finally:
        database.close()


def wait_for_store(settings: Settings) -> None:
    """Return when the store answers and is at our schema: it may be restarting just now.

    Raises ``SchemaMismatch``, ``StoreDenied`` where it does not let us in, or ``ConfigurationError`` where breakers
    cannot be shared in what PAIDONCE_REDIS_URL names.
    """
    if settings.breakers and settings.redis_url is not None:
        refuse_cluster(settings.redis_url, "PAIDONCE_REDIS_URL")
    database = open_store(settings)
    try:
        Patience().until_done(lambda: ensure_schema(database), "the start of this worker", unless=StoreDenied)
    finally:
        database.close()


def _connect(app: PaidonceCelery, processes: WorkerProcesses, idle: Sequence[Target]) -> None:
    def started(sender: Any = None, **_: Any) -> None:
        process = processes.current()
        if idle:
            log.warning(
                "policies for what this worker does not hold: %s",
                ", ".join(target.source for target in idle),
                extra={"event": "idle_targets", "targets": [target.name for target in idle]},
            )
        consumed = (sender.app if sender is not None else app).amqp.queues.consume_from
        process.take_part(sorted(app.in_store(name) for name in consumed))

    def stopped(**_: Any) -> None:
        processes.current().stop()

    signals.worker_ready.connect(started, weak=False)
    signals.worker_shutdown.connect(stopped, weak=False)


@functools.lru_cache(maxsize=1)
def the_app() -> PaidonceCelery:
    """The app of this process; a setting or module that cannot be used ends it with one clear line."""
    keep_reports_quiet()
    signals.after_setup_logger.connect(_make_safe, weak=False)
    signals.after_setup_task_logger.connect(_make_safe, weak=False)
    try:
        # Two lines at each look at the schema, which is repeated while the store is away.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        settings = load_settings()
        load_modules(settings.agents)
        app = build_worker_app(settings, default_registry)
        app.finalize()  # makes the modules' own `@shared_task`s, and so refuses an `async def` among them here
        return app
    except PaidonceError as error:
        print(visible(f"paidonce: {mask(error.message)}"), file=sys.stderr)
        sys.exit(error.exit_code)


def _make_safe(logger: logging.Logger | None = None, **_: Any) -> None:
    """Celery has made its handlers: what goes through them is one line each, without credentials."""
    make_safe(logger.handlers if logger is not None else ())
