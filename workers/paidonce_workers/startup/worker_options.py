"""Which options of ``celery worker`` are incompatible with Paidonce, and the messages for them.

Owns the list: every other option works. An option that this worker could only ignore silently, or that breaks a
promise, is refused by name before it has any effect. So is a changed setting of Celery's that a worker relies on,
wherever it was changed: on the command line (``task.acks_late=0``), in ``app.conf``, by a handler of ``celeryd_init``.
Pure except for reading the command line; ``worker_program`` decides when to refuse.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import click
from billiard import get_context
from celery.bin.worker import worker as worker_command
from celery.concurrency import prefork
from click.core import ParameterSource

from paidonce_models.errors import ConfigurationError
from paidonce_models.privacy.log_texts import cause_of, loggable
from paidonce_models.privacy.masking import mask

PINNED = (
    "accept_content",
    "broker_connection_max_retries",
    "broker_connection_retry",
    "broker_connection_retry_on_startup",
    "broker_read_url",
    "broker_transport",
    "broker_transport_options",
    "broker_url",
    "broker_write_url",
    "imports",
    "include",
    "result_backend",
    "task_acks_late",
    "task_acks_on_failure_or_timeout",
    "task_always_eager",
    "task_annotations",
    "task_compression",
    "task_create_missing_queue_type",
    "task_create_missing_queues",
    "task_default_exchange",
    "task_default_queue",
    "task_default_routing_key",
    "task_ignore_result",
    "task_protocol",
    "task_queues",
    "task_reject_on_worker_lost",
    "task_routes",
    "task_serializer",
    "task_store_errors_even_if_ignored",
    "worker_cancel_long_running_tasks_on_connection_loss",
    "worker_consumer",
    "worker_direct",
    "worker_hijack_root_logger",
    "worker_pool_restarts",
)
"""Settings of Celery's that no operator changes; any other may be changed."""

_LISTED_ELSEWHERE = "name the modules that hold agents, steps and tools in PAIDONCE_AGENTS"
_OF_CHILDREN = (
    "applies to child processes, and --pool threads has none; use --pool prefork, or leave it out: steps that compute "
    "or leak memory may also be isolated"
)

REFUSED: Mapping[str, tuple[str, str]] = {
    "purge": (
        "--purge",
        "would delete submissions that no worker has taken yet, and there is no other copy; steps and runs come "
        "from the store anyway. `paidonce cancel` ends runs",
    ),
    "beat": (
        "-B",
        "would run the schedule of Paidonce's own Celery app, which has none; start `celery beat` with the app that "
        "has one",
    ),
    "include": ("--include", f"registers tasks that no message of Paidonce asks for; {_LISTED_ELSEWHERE}"),
}
"""Options that are refused with every pool: by Celery's name of the argument, the option and why."""

CHILDREN_ONLY: Mapping[str, str] = {
    "max_tasks_per_child": "--max-tasks-per-child",
    "max_memory_per_child": "--max-memory-per-child",
}

_MAIN_OPTIONS: Mapping[str, tuple[str, str]] = {
    "broker": ("--broker", "set PAIDONCE_BROKER_URL, so that producers send to the same one"),
    "result_backend": ("--result-backend", "results are in Paidonce's store; set PAIDONCE_DATABASE_URL"),
    "loader": ("--loader", _LISTED_ELSEWHERE),
    "config": ("--config", "Paidonce is configured by PAIDONCE_*"),
}


def pinned(conf: Any) -> dict[str, object]:
    """The settings that a worker relies on, as they are now."""
    return {name: conf.get(name) for name in PINNED}


def refuse_options(conf: Any, options: Mapping[str, Any], expected: Mapping[str, object]) -> None:
    """Raise ``ConfigurationError`` for what is incompatible with Paidonce, whatever the pool.

    ``options`` are the worker's as Celery passes them; ``expected`` is the result of ``pinned`` when the app was built.
    """
    for name, (option, why) in _MAIN_OPTIONS.items():
        if _stands_on_the_command_line(name):
            raise ConfigurationError(f"`celery {option}` is incompatible with Paidonce: {why}")
    for name, (option, why) in REFUSED.items():
        if options.get(name):
            raise ConfigurationError(f"{option} is incompatible with Paidonce: it {why}")
    for name, value in expected.items():
        found = conf.get(name)
        if found != value:
            raise ConfigurationError(
                f"Celery's setting {name} is {mask(loggable(repr(found), 80))} here and must be "
                f"{mask(loggable(repr(value), 80))}: Paidonce relies on it; remove it from the command line and the "
                "code that changes app.conf"
            )


def refuse_options_of_children(conf: Any, options: Mapping[str, Any], pool: object) -> None:
    """Raise ``ConfigurationError`` if an option of child processes is given to a pool without any, or is not ours."""
    if not inspect.isclass(pool) or not issubclass(pool, prefork.TaskPool):
        for name, option in CHILDREN_ONLY.items():
            if options.get(name) or conf.get(f"worker_{name}"):
                raise ConfigurationError(f"{option} (worker_{name}) {_OF_CHILDREN}")
    method = options.get("pool_start_method") or conf.get("worker_pool_start_method")
    if method not in (None, "fork"):
        raise ConfigurationError(
            f"--pool-start-method {loggable(str(method), 40)} is incompatible with Paidonce: the children of its "
            "prefork pool are forked from the worker that has loaded the agents; leave it out"
        )


def refuse_children_without_semaphores(pool: object) -> None:
    """Raise ``ConfigurationError`` where Celery's process pool would fail with an error that explains nothing."""
    if not inspect.isclass(pool) or not issubclass(pool, prefork.TaskPool):
        return
    try:
        get_context("fork").Semaphore(1)
        get_context("fork").Value("i")  # shared memory, which Celery's pool needs for each child
    except (ImportError, OSError) as error:
        raise ConfigurationError(
            f"--pool prefork needs semaphores and shared memory, which this system lacks ({cause_of(error)}): "
            "mount /dev/shm and the folder that TMPDIR names, or use --pool threads"
        ) from None


def _stands_on_the_command_line(name: str) -> bool:
    """Whether ``celery --broker … worker`` was given; ``CELERY_BROKER_URL`` in the environment is another app's."""
    context = click.get_current_context(silent=True)
    if context is None or context.command is not worker_command or context.parent is None:
        return False
    return context.parent.get_parameter_source(name) is ParameterSource.COMMANDLINE
