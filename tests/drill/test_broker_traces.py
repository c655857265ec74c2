"""A drill that was given a broker leaves nothing of its namespace on it."""

from __future__ import annotations

from contextlib import closing

import pytest

from paidonce.broker.celery_app import build_celery_app
from paidonce.broker.publisher import Publisher
from paidonce.drill.broker_traces import remove_broker_traces
from paidonce.settings import Settings
from paidonce_models.store.messages import AdvanceMessage

NOTE = AdvanceMessage(run_id="01a2276f-070b-77af-9eda-832226cde331", agent="a", queue="paidonce.default", priority=5)


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_its_queues_are_deleted_and_those_of_others_stay(broker: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(f"{broker}_url")
    publishers = {}
    for namespace in ("drill-1", "default", "drill-1.x"):
        settings = Settings(broker_url=url, namespace=namespace)
        app = build_celery_app(settings)
        publishers[namespace] = publisher = Publisher(app, settings)
        with closing(app):
            assert publisher.publish([NOTE]) == 1
            app.control.broadcast("no_such_command")
    remove_broker_traces(Settings(broker_url=url, namespace="drill-1"))
    remove_broker_traces(Settings(broker_url=url, namespace="drill-1"))
    left = {name: publisher.depth(["paidonce.default"]) for name, publisher in publishers.items()}
    assert left["default"] == left["drill-1.x"] == {"paidonce.default": 1}
    assert left["drill-1"] == ({} if broker == "rabbitmq" else {"paidonce.default": 0})


def test_the_queues_of_a_team_are_never_deleted() -> None:
    with pytest.raises(ValueError, match="namespace of its own"):
        remove_broker_traces(Settings(broker_url="memory://", namespace="default"))
