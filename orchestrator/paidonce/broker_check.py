"""Whether the broker can be reached at all: asked once, before a worker or a command relies on it."""

from __future__ import annotations

from celery import Celery

from paidonce_models.errors import BrokerUnreachable
from paidonce_models.log_texts import loggable
from paidonce_models.masking import mask

SECONDS = 10


def check_connection(app: Celery) -> str:
    """Connect once and let go again; returns the broker's URL without a password. Raises ``BrokerUnreachable``."""
    shown = mask(str(app.conf.broker_url))
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=SECONDS)
            connection.default_channel.close()
        except Exception as error:
            # Not only what kombu calls a connection error: wrong credentials, another protocol on that port.
            raise BrokerUnreachable(
                f"the broker at {shown} cannot be reached: {type(error).__name__}: {loggable(error, 300)}; check "
                "PAIDONCE_BROKER_URL and that the server runs. Submitted runs are stored and go on when it is back"
            ) from error
    return shown
