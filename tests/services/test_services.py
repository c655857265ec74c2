"""The fixtures keep what they promise to every other test."""

import subprocess
import sys
from pathlib import Path

import kombu
import psycopg
import pytest
import redis
import sqlalchemy

from tests.services.availability import service_missing
from tests.services.postgres import PostgresCluster
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until

pytest_plugins = ["pytester"]


def test_a_database_is_empty_and_takes_a_table(database_url: str) -> None:
    engine = sqlalchemy.create_engine(database_url)
    with engine.begin() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
        connection.execute(sqlalchemy.text("CREATE TABLE runs (id INTEGER)"))
    engine.dispose()


def test_a_vhost_carries_a_message(rabbitmq_url: str) -> None:
    with kombu.Connection(rabbitmq_url) as connection, connection.SimpleQueue("hints") as queue:
        queue.put({"run_id": "r1"})
        message = queue.get(timeout=5)
        message.ack()
        assert message.payload == {"run_id": "r1"}
    assert "paidonce-test-" in rabbitmq_url


@pytest.mark.parametrize("turn", ["first", "second"])
def test_a_redis_database_is_empty(redis_url: str, turn: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("turn", turn)


def test_a_private_redis_keeps_its_data_over_a_restart(private_redis: RedisServer) -> None:
    with redis.Redis.from_url(private_redis.url()) as client:
        client.set("kept", "yes")
    private_redis.restart()
    with redis.Redis.from_url(private_redis.url()) as client:
        assert client.get("kept") == b"yes"


@pytest.mark.slow
def test_a_private_postgres_keeps_its_data_over_a_power_cut(private_postgres: PostgresCluster) -> None:
    url = private_postgres.url().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (id INTEGER)")
    private_postgres.restart(immediately=True)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(AssertionError, match=r"0\.15 s in vain for this: pigs fly \(last seen: None\)"):
        wait_until(lambda: None, "pigs fly", timeout=0.05)


def test_a_missing_service_skips_for_a_developer_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        service_missing("no such server")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must have every service: no such server"):
        service_missing("no such server")


LEAKING_TESTS = {
    "a child": "subprocess.Popen(['sleep', '60'])",
    "a detached grandchild": "subprocess.run('setsid sleep 60 >/dev/null 2>&1 &', shell=True)",
    "a thread": "threading.Thread(target=threading.Event().wait, args=(3,), name='forgotten').start()",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", LEAKING_TESTS)
def test_leaving_something_behind_fails_the_test(what: str, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("pytest_plugins = ['tests.services.leaks']")
    pytester.makepyfile(
        f"""
        import subprocess, threading
        import pytest
        from tests.services import leaks

        leaks.GRACE_SECONDS = 0.2

        @pytest.mark.filterwarnings("ignore::ResourceWarning")
        def test_careless():
            {LEAKING_TESTS[what]}
        """
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-o", f"pythonpath={root}", str(pytester.path)],
        cwd=pytester.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the test left behind:" in done.stdout
    assert "1 passed, 1 error" in done.stdout
