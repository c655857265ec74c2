"""Names of queues on a broker that several namespaces share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce_models.errors import ConfigurationError
from paidonce_models.queues import (
    DEFAULT_QUEUE,
    SUBMIT_QUEUE,
    broker_queue_name,
    broker_scope,
    full_queue_name,
    is_namespace,
    is_submit_queue,
    stored_queue_name,
)

NAMESPACES = st.one_of(st.just("default"), st.from_regex(r"[a-c][a-c._-]{0,4}", fullmatch=True))
QUEUES = st.text(alphabet="abc.:@/_- ", min_size=1, max_size=12).map(full_queue_name)
QUEUES |= st.sampled_from([DEFAULT_QUEUE, SUBMIT_QUEUE, "paidonce.a.default", "paidonce.paidonce@a:b", "paidonce.a:b"])


@given(NAMESPACES, QUEUES, NAMESPACES, QUEUES)
def test_no_two_pairs_of_namespace_and_queue_share_a_name(one: str, queue: str, other: str, another: str) -> None:
    same = broker_queue_name(one, queue) == broker_queue_name(other, another)
    assert same == ((one, queue) == (other, another))


@given(NAMESPACES, QUEUES)
def test_a_name_leads_back_to_its_queue_and_is_made_once(namespace: str, queue: str) -> None:
    name = broker_queue_name(namespace, queue)
    assert stored_queue_name(namespace, name) == queue
    assert broker_queue_name(namespace, name) == name
    assert is_submit_queue(name) == (queue == SUBMIT_QUEUE)


def test_the_default_namespace_keeps_the_names_it_always_had() -> None:
    assert broker_queue_name("default", "default") == DEFAULT_QUEUE == "paidonce.default"
    assert broker_queue_name("default", "submit") == SUBMIT_QUEUE == "paidonce.submit"
    assert broker_scope("default") is None
    assert broker_queue_name("shop", "tools") == "paidonce@shop:tools"
    assert broker_queue_name("shop", "paidonce.tools") == "paidonce@shop:tools"


@given(NAMESPACES, NAMESPACES, QUEUES)
def test_what_else_a_namespace_has_on_a_broker_is_the_name_of_no_queue(one: str, other: str, queue: str) -> None:
    beside = {f"{broker_scope(one)}.{name}" for name in ("unacked", "unacked_index", "unacked_mutex")}
    assert broker_scope(one) is None or broker_queue_name(other, queue) not in beside


@pytest.mark.parametrize("found", ["", " ", "a b", "a:b", "a/b", "a@b", ".a", "-a", "a\n", "é", "a" * 65])
def test_what_is_no_namespace_names_no_queue(found: str) -> None:
    assert not is_namespace(found)
    with pytest.raises(ConfigurationError, match="1 to 64 characters"):
        broker_queue_name(found, "default")


def test_the_longest_name_fits_a_broker() -> None:
    assert len(broker_queue_name("n" * 64, "q" * 150).encode()) <= 255
