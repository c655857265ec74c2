"""The Celery app of a worker: settings read, modules loaded, tasks registered, hooks connected."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import signals

from paidonce.broker.celery_app import PaidonceCelery, build_celery_app, largest_submission_bytes
from paidonce.configuration.module_loading import load_modules
from paidonce.declarations.declaration_checks import refuse_unfit
from paidonce.declarations.policy_checks import idle_targets, refuse_misfits
from paidonce.declarations.registry import Registry, default_registry
from paidonce.policies.file.parsing import policies_from_settings
from paidonce.policies.targets import Target
from paidonce.settings import Settings, load_settings
from paidonce.store_access import make_home, open_store
from paidonce_models.database.schema import ensure_schema
from paidonce_models.errors import PaidonceError, StoreDenied, StoreUnreachable
from paidonce_models.privacy.masking import mask
from paidonce_models.privacy.safe_logs import keep_reports_quiet, make_safe
from paidonce_models.privacy.visible_text import visible
from paidonce_workers.breakers.redis_connecting import refuse_cluster
from paidonce_workers.delivery.broker_submissions import refuse_submission
from paidonce_workers.delivery.code_held_elsewhere import hand_on_step
from paidonce_workers.delivery.consumer import Consumer
from paidonce_workers.delivery.tasks import register_tasks
from paidonce_workers.execution.store_waits import StoreWaits
from paidonce_workers.process.process_per_pid import ProcessPerPid
from paidonce_workers.process.worker_parts import WorkerParts
from paidonce_workers.startup import host_program
from paidonce_workers.startup.worker_options import pinned
from paidonce_workers.startup.worker_program import choose_pool

SPARE_CONNECTIONS = 16

log = logging.getLogger(__name__)


def build_worker_app(settings: Settings, registry: Registry) -> PaidonceCelery:
    """A worker's app with every step of the registry as a task. Raises ``PaidonceError`` that says what to correct."""
    refuse_unfit(registry)
    book = policies_from_settings(settings)
    refuse_misfits(book, list(registry.steps))
    make_home(settings)
    _check_store(settings)
    app = build_celery_app(settings, connections=settings.concurrency + SPARE_CONNECTIONS)
    app.conf.worker_consumer = Consumer
    if "concurrency" in settings.model_fields_set:  # otherwise each pool uses its own default
        app.conf.worker_concurrency = settings.concurrency
    parts = WorkerParts(
        namespace=settings.namespace,
        drain_seconds=settings.drain_seconds,
        eager_seconds=settings.turn_seconds,
        is_step=lambda name: registry.step(name) is not None,
        largest_submission_bytes=largest_submission_bytes(settings),
    )
    processes = ProcessPerPid(
        app=app, settings=settings, registry=registry, parts=parts, host_program=host_program.__name__
    )
    parts.before_start = functools.partial(wait_for_store, settings)
    parts.on_unknown_step = lambda _name, _args, kwargs, _message: hand_on_step(processes.current(), kwargs)
    parts.on_refused_submission = lambda *found: refuse_submission(processes.current(), *found)
    parts.on_drain_expired = lambda keys: processes.current().released_steps.release_held(keys)
    parts.release_kept = lambda kept: processes.current().released_steps.release_kept(kept)
    parts.drain_isolated = processes.drain_isolated
    parts.pinned_settings = pinned(app.conf)
    choose_pool(app, parts)
    register_tasks(app, registry, processes.current)
    _connect(app, processes, idle_targets(book, registry.steps, settings.provider_hosts))
    return app


def _check_store(settings: Settings) -> None:
    """Refuse a store that waiting will not fix. The worker program waits for one that is away.

    Other Celery programs (``inspect``, ``status``) create this app too and need no store.
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
    """Return when the store responds and has our schema: it may be restarting just now.

    Raises ``SchemaMismatch``, ``StoreDenied`` if it refuses the login, or ``ConfigurationError`` if breakers cannot be
    shared in the server of PAIDONCE_REDIS_URL.
    """
    if settings.breakers and settings.redis_url is not None:
        refuse_cluster(settings.redis_url, "PAIDONCE_REDIS_URL")
    database = open_store(settings)
    try:
        StoreWaits().until_done(lambda: ensure_schema(database), "the start of this worker", unless=StoreDenied)
    finally:
        database.close()


def _connect(app: PaidonceCelery, processes: ProcessPerPid, idle: Sequence[Target]) -> None:
    def started(sender: Any = None, **_: Any) -> None:
        process = processes.current()
        if idle:
            log.warning(
                "policies for targets that this worker does not hold: %s",
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
    """The app of this process; an unusable setting or module ends it with one clear line."""
    keep_reports_quiet()
    signals.after_setup_logger.connect(_make_safe, weak=False)
    signals.after_setup_task_logger.connect(_make_safe, weak=False)
    try:
        # Alembic logs two lines at each schema check, which is repeated while the store is away.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        settings = load_settings()
        load_modules(settings.agents)
        app = build_worker_app(settings, default_registry)
        app.finalize()  # creates the modules' own `@shared_task`s, and so refuses an `async def` among them here
        return app
    except PaidonceError as error:
        print(visible(f"paidonce: {mask(error.message)}"), file=sys.stderr)
        sys.exit(error.exit_code)


def _make_safe(logger: logging.Logger | None = None, **_: Any) -> None:
    """Celery has created its handlers: make their output one line per record, without credentials."""
    make_safe(logger.handlers if logger is not None else ())
