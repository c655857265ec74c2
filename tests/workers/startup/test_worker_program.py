"""What the worker's program tells of itself."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.apps import worker as celery_worker
from celery.worker.consumer.connection import Connection
from celery.worker.control import conf, report

from paidonce_workers.startup.worker_program import Worker

PASSWORD = "of-the-sentinels"
MASTERS = "of-the-master"


@pytest.fixture
def app() -> Celery:
    app = Celery("told", broker=f"sentinel://:{MASTERS}@a:26379;sentinel://:{MASTERS}@b:26379/0", set_as_current=False)
    app.conf.broker_transport_options = {
        "master_name": "mymaster",
        "sentinel_kwargs": {"username": "watcher", "password": PASSWORD, "socket_timeout": 5},
    }
    return app


def test_inspect_stats_tells_no_password_of_the_broker(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    def stats(worker: object) -> dict[str, Any]:
        with app.connection_for_read() as connection:
            return {"pid": 7, **Connection.info(worker, SimpleNamespace(connection=connection))}

    monkeypatch.setattr(celery_worker.Worker, "stats", stats)
    assert PASSWORD in json.dumps(stats(None))
    told: Any = Worker.stats(Worker.__new__(Worker))
    assert told["pid"] == 7
    assert told["broker"]["transport_options"]["sentinel_kwargs"] == {
        "username": "watcher",
        "password": "***",
        "socket_timeout": 5,
    }
    assert PASSWORD not in json.dumps(told) and MASTERS not in json.dumps(told)


def test_inspect_conf_and_report_tell_none_either(app: Celery) -> None:
    state = SimpleNamespace(app=app)
    for told in (conf(state), report(state)):
        assert "mymaster" in json.dumps(told)
        assert PASSWORD not in json.dumps(told) and MASTERS not in json.dumps(told)
