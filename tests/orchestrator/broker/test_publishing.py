"""A publisher and the Celery apps of others in the same process."""

from __future__ import annotations

from pathlib import Path

from celery import Celery

from paidonce.broker.celery_app import build_celery_app
from paidonce.broker.publishing import Publisher
from paidonce.settings import Settings
from paidonce_models.store.messages import AdvanceMessage

MESSAGE = AdvanceMessage(run_id="r", agent="a", queue="paidonce.default", priority=5)


def test_the_producer_that_is_kept_leaves_kombus_pools_to_others(redis_url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, broker_url=redis_url)
    publisher = Publisher(build_celery_app(settings), settings)
    assert publisher.publish([MESSAGE, MESSAGE]) == 2
    team = Celery("team", broker=redis_url, set_as_current=False)
    team.conf.broker_pool_limit = 3
    with team.producer_or_acquire() as producer:
        producer.publish({}, routing_key="team", exchange="", serializer="json")
    assert publisher.publish([MESSAGE]) == 1
