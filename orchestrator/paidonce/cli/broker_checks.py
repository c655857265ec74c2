"""Reaching the broker from a command, for those that need one: each failure is one error that says what to do."""

from __future__ import annotations

from paidonce.broker.celery_app import build_celery_app
from paidonce.broker.reachability import check_connection
from paidonce.settings import Settings


def check_broker(settings: Settings) -> str:
    """Connect to the broker once, starting the embedded one; returns its URL without a password.

    Raises ``BrokerUnreachable``.
    """
    return check_connection(build_celery_app(settings))


def check_tasks(settings: Settings) -> None:
    """Refuse modules that a worker could not start with: an ``async def`` under Celery's own ``@shared_task``.

    Celery makes such tasks when an app is finalized. Raises ``DeclarationError``.
    """
    build_celery_app(settings).finalize()
