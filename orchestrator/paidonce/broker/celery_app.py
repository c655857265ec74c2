"""Paidonce's own Celery app, so that a team's existing app can share the broker.

Owns every Celery and kombu setting, each with the reason for its value. Both sides use
it: producers and workers publish through it, workers consume with it. Queues are
reached through the broker's default exchange, by name: on Redis that needs no binding,
so a flushed broker loses none.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from kombu import Connection, Exchange, Queue, pools
from kombu.clocks import LamportClock

from paidonce.broker.broker_urls import broker_url, speaks_redis
from paidonce.broker.celery_configuration import OwnLoader, OwnSettings
from paidonce.broker.connection import PaidonceAMQP
from paidonce.configuration.broker_addresses import AMQP_SCHEMES, read_address
from paidonce.settings import Settings
from paidonce_models.errors import DeclarationError
from paidonce_models.forks import in_child, leave_to_parent
from paidonce_models.queues import (
    DEFAULT_NAMESPACE,
    DEFAULT_QUEUE,
    SUBMIT_QUEUE,
    UNACKED,
    broker_queue_name,
    broker_scope,
    is_submit_queue,
    stored_queue_name,
)

VISIBILITY_TIMEOUT_SECONDS = 30
"""Seconds after which Redis redelivers a submission that a dead worker had taken. Redis does not keep messages for
steps and runs once they are delivered (see ``redis_transport``): leases and the sweeper recover those."""


class PaidonceCelery(Celery):  # type: ignore[misc]  # Celery publishes no types
    """A Celery app that refuses ``async def`` tasks, which Celery would report as done without running them."""

    _pool: Any
    _conf: Any
    amqp_cls = PaidonceAMQP

    def __init__(self, *args: Any, namespace: str = DEFAULT_NAMESPACE, **options: Any) -> None:
        super().__init__(*args, **options)
        self.namespace = namespace
        _owned(self._conf)
        in_child(self, PaidonceCelery.leave_connections_to_the_parent)

    def _get_default_loader(self) -> type[OwnLoader]:
        """Celery's own hook; without it ``CELERY_LOADER`` decides."""
        return OwnLoader

    def _load_config(self) -> Any:
        """Celery's own hook, which creates ``app.conf``."""
        return _owned(super()._load_config())

    def leave_connections_to_the_parent(self) -> None:
        """In a child that was just forked: use none of the existing broker connections, and close none.

        kombu would close them in a child of multiprocessing or billiard, which also ends the parent's connection (its
        next message then finds it reset), and would keep using them in a child of plain ``os.fork``.
        """
        begin_with_free_locks(type(self), AMQP, Connection)
        self.clock = LamportClock()  # because it has a lock too
        self._finalize_mutex = threading.RLock()
        amqp, in_use = self.__dict__.get("amqp"), self.__dict__.get("_pool")
        for group, pool in ((pools.connections, in_use), (pools.producers, amqp and amqp._producer_pool)):
            if pool is not None:
                leave_to_parent(pool)
                pool._closed = True
                for key in [key for key, held in group.items() if held is pool]:
                    dict.pop(group, key)  # the group's methods use connections as keys, and keep their hashes
        self._pool = None
        if amqp is not None:
            amqp._producer_pool = None

    def on_broker(self, queue: str) -> str:
        """The broker's name of a queue of this app's namespace."""
        return broker_queue_name(self.namespace, queue)

    def in_store(self, queue: str) -> str:
        """The store's name of a queue given by its name on the broker."""
        return stored_queue_name(self.namespace, queue)

    def task(self, *args: Any, **options: Any) -> Any:
        """Celery's decorator, which creates the task only when the app is used; refuses an ``async def`` at once."""
        if len(args) == 1 and callable(args[0]):
            _refuse_async(args[0])
            return super().task(*args, **options)
        decorate = super().task(*args, **options)

        def checked(fun: Callable[..., Any]) -> Any:
            _refuse_async(fun)
            return decorate(fun)

        return checked

    def _task_from_fun(self, fun: Callable[..., Any], *args: Any, **options: Any) -> Any:
        _refuse_async(fun)
        return super()._task_from_fun(fun, *args, **options)


def begin_with_free_locks(*types: type) -> None:
    """In a forked child: release the locks of these types' cached properties, which all their instances share."""
    for each in dict.fromkeys(base for one in types for base in one.__mro__):
        for value in vars(each).values():
            lock = getattr(value, "lock", None) if isinstance(value, functools.cached_property) else None
            if lock is not None:
                lock._at_fork_reinit()


def _owned(conf: Any) -> Any:
    """Celery creates settings of its own class only; an attribute that is set directly becomes a setting."""
    object.__setattr__(conf, "__class__", OwnSettings)
    return conf


def _refuse_async(fun: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(fun):
        code = fun.__code__
        raise DeclarationError(
            f"{fun.__module__}.{fun.__qualname__} ({code.co_filename}:{code.co_firstlineno}) is an `async def` "
            "passed to Celery, which would report success and never run it; "
            "declare it with @step or @tool of Paidonce, or make it a plain def"
        )


def queue_for(name: str, *, amqp: bool) -> Queue:
    """The queue of that name on the broker, on the default exchange; quorum on RabbitMQ.

    A queue for submissions stays a classic one, because a stock Celery producer declares it as such when it names a
    queue, and would be refused for another type.
    """
    arguments = {"x-queue-type": "quorum"} if amqp and not is_submit_queue(name) else None
    return Queue(name, Exchange(""), routing_key=name, durable=True, queue_arguments=arguments)


def speaks_amqp(url: str) -> bool:
    """Whether the broker is RabbitMQ."""
    return url.partition("://")[0] in AMQP_SCHEMES


def build_celery_app(settings: Settings, *, queues: Iterable[str] = (), connections: int = 16) -> PaidonceCelery:
    """An app on the settings' broker; starts the embedded one if none is configured.

    ``queues`` are those that a worker consumes, besides the one for submissions.
    Raises ``BrokerUnreachable`` when the embedded broker cannot be started.
    """
    url = broker_url(settings)
    amqp = speaks_amqp(url)
    address = read_address(url)
    app = PaidonceCelery("paidonce", broker=address.url, set_as_current=False, namespace=settings.namespace)
    names = [app.on_broker(name) for name in (*(tuple(queues) or (DEFAULT_QUEUE,)), SUBMIT_QUEUE)]
    scope = broker_scope(settings.namespace)
    if scope is not None:
        # Broadcasts of another namespace (shutdown, revoke, rate limits) and its events do not reach these workers.
        app.conf.update(control_exchange=scope, event_exchange=f"{scope}.events")
    app.conf.update(
        task_queues=[queue_for(name, amqp=amqp) for name in dict.fromkeys(names)],
        task_default_queue=names[0],
        task_default_exchange="",
        task_default_routing_key=names[0],
        task_create_missing_queues=True,
        # A queue that only `--queues` names must be declared as publishers declare it, or RabbitMQ refuses them.
        task_create_missing_queue_type="quorum" if amqp else "classic",
        # A killed worker must not lose its messages; the claim makes a second delivery harmless.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure_or_timeout=True,
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        # Cancelling running tasks when a connection drops would pay for their tokens twice.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A producer is told within seconds that a broker is away; the sweeper publishes later.
        broker_connection_timeout=3,
        broker_pool_limit=max(10, connections),
        broker_pool_acquire_timeout=5,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2},
        worker_hijack_root_logger=False,
        # Flower requests events while it runs (`enable_events`); sent to nobody, they took a fifth of a worker's time.
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_enable_remote_control=True,
        broker_use_ssl=address.kombu_ssl,
        broker_transport_options={
            **_transport_options(url, connections, largest_submission_bytes(settings), scope),
            **address.transport_options,
        },
        broker_heartbeat=30 if amqp else 0,
        event_queue_expires=60.0,
    )
    return app


def largest_submission_bytes(settings: Settings) -> int:
    """Size limit for the body of a ``paidonce.submit`` message: JSON may write a character in three times its bytes."""
    return 3 * settings.max_payload_bytes + 64 * 1024


def _transport_options(url: str, connections: int, largest_body_bytes: int, scope: str | None) -> dict[str, Any]:
    if speaks_redis(url):
        return {
            **({} if scope is None else {f"{key}_key": f"{scope}.{key}" for key in UNACKED}),
            # In base64, with the envelope around it.
            "max_message_bytes": largest_body_bytes * 4 // 3 + 64 * 1024,
            "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": not url.startswith("redis+socket"),
            "max_connections": connections + 50,
            "queue_order_strategy": "priority",
        }
    if speaks_amqp(url):
        return {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5, "max_retries": 1}
    return {}
