"""A publisher and the Celery apps of others in the same process."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from paidonce.broker.celery_app import build_celery_app
from paidonce.broker.publisher import Publisher
from paidonce.settings import Settings
from paidonce_models.store.messages import AdvanceMessage
from tests.services.availability import free_port

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


def test_a_broker_that_refuses_is_given_up_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    settings = Settings(home=tmp_path, broker_url=f"redis://127.0.0.1:{free_port()}")
    publisher = Publisher(build_celery_app(settings), settings)
    assert publisher.publish([MESSAGE]) == 0
    assert sum(slept) < 0.5
    assert "stay in the store" in caplog.text
