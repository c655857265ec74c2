"""Results to 50 MB work or are refused at once naming the limit; nothing large travels through the broker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from paidonce import PayloadTooLarge, RunBlocked, RunFailed
from tests.acceptance.agents.stepping import MEBIBYTE
from tests.acceptance.site import RUN_SECONDS, Site

LARGEST = 50 * MEBIBYTE
TOO_LARGE = 51 * MEBIBYTE
MOST_BYTES_OF_A_MESSAGE = 4_000


def test_fifty_megabytes_go_through_a_result_and_an_argument(shared: Site) -> None:
    assert shared.client.submit("carries", {"size": LARGEST - 100}).result(RUN_SECONDS * 2) == LARGEST - 102


def test_a_run_may_return_fifty_megabytes(shared: Site) -> None:
    run = shared.client.submit("returns_large", {"size": LARGEST})
    assert len(run.result(RUN_SECONDS * 2)) == LARGEST - 2


def test_more_is_refused_at_once_naming_the_limit(shared: Site) -> None:
    began = time.monotonic()
    run = shared.client.submit("refused_large", {"size": TOO_LARGE})
    with pytest.raises(RunBlocked, match=f"the limit is {LARGEST:,}"):
        run.result(RUN_SECONDS)
    assert time.monotonic() - began < 90


def test_a_large_argument_is_refused_naming_the_limit(shared: Site) -> None:
    run = shared.client.submit("large_argument", {"size": TOO_LARGE})
    shared.wait_state(run, "succeeded", "failed", "blocked")
    try:
        told = run.result(1)
    except (RunBlocked, RunFailed) as error:
        told = str(error)
    assert "limit" in told, told


def test_large_input_is_refused_at_the_producer(shared: Site) -> None:
    with pytest.raises(PayloadTooLarge, match="limit"):
        shared.client.submit("strict", {"number": 1, "label": "x" * TOO_LARGE})


@pytest.fixture
def messages(shared: Site) -> Iterator[list[int]]:
    """The sizes of the commands that anybody has sent to the broker."""
    sizes: list[int] = []
    with redis.Redis(unix_socket_path=shared.broker_url.removeprefix("redis+socket://")) as broker:
        broker.ping()
        with broker.monitor() as monitor:
            before = broker.info("commandstats")
            yield sizes
            after = broker.info("commandstats")
            assert after != before
            broker.echo("the end")
            for command in monitor.listen():
                if "the end" in str(command["command"]):
                    break
                if str(command["command"]).split(" ", 1)[0].upper() in {"LPUSH", "RPUSH", "EVAL", "EVALSHA"}:
                    sizes.append(len(str(command["command"])))
    assert sizes, "nothing was sent"
    assert max(sizes) < MOST_BYTES_OF_A_MESSAGE, max(sizes)


def test_messages_stay_small_whatever_the_values(shared: Site, messages: list[int]) -> None:
    run = shared.client.submit("carries", {"size": 5 * MEBIBYTE})
    assert run.result(RUN_SECONDS) == 5 * MEBIBYTE - 2
    assert len(shared.client.submit("returns_large", {"size": MEBIBYTE}).result(RUN_SECONDS)) == MEBIBYTE - 2
