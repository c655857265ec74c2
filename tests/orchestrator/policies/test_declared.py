"""The single keys of a policy that a decorator gives."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from paidonce import DeclarationError, Retry, step, tool
from paidonce.policies import BreakerPolicy
from paidonce.policies.declared import decorator_keys
from paidonce.policies.file.parsing import parse_policies
from paidonce.policies.policy_book import PolicyBook
from paidonce.policies.retry import NO_RETRY


class Away(ConnectionError): ...


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({}, {}),
        ({"timeout": 3}, {"timeout.attempt": 3.0}),
        ({"timeout": timedelta(minutes=2)}, {"timeout.attempt": 120.0}),
        ({"timeout": "90s"}, {"timeout.attempt": 90.0}),
        ({"timeout": {"attempt": 10, "total": "2m"}}, {"timeout.attempt": 10.0, "timeout.total": 120.0}),
        ({"retry": 3}, {"retry.max_attempts": 3}),
        ({"retry": {"cap_seconds": 9, "base": "2s"}}, {"retry.base": 2.0, "retry.cap": 9.0}),
        (
            {"retry": {"backoff": "constant", "jitter": "none", "retry_on": ["http:429", Away]}},
            {"retry.backoff": "constant", "retry.jitter": "none", "retry.retry_on": ("http:429", f"{__name__}.Away")},
        ),
        (
            {"retry": Retry(max_attempts=2, retry_on=(TimeoutError, "Away"))},
            {
                "retry.max_attempts": 2,
                "retry.base": 0.5,
                "retry.cap": 30.0,
                "retry.retry_on": ("TimeoutError", "Away"),
            },
        ),
        (
            {"retry": Retry(base_seconds=60)},
            {"retry.max_attempts": 3, "retry.base": 30.0, "retry.cap": 30.0, "retry.retry_on": ()},
        ),
        ({"breaker": False}, {"breaker": False}),
        ({"breaker": True}, {"breaker": True}),
        (
            {"breaker": {"open_for": {"base": timedelta(seconds=5)}, "ignore": [Away]}},
            {"breaker": True, "breaker.open_for.base": 5.0, "breaker.ignore": (f"{__name__}.Away",)},
        ),
        ({"when_open": "fail"}, {"breaker.when_open": "fail"}),
        (
            {"breaker": {"probes": 2}, "when_open": "raise"},
            {"breaker": True, "breaker.probes": 2, "breaker.when_open": "raise"},
        ),
    ],
)
def test_what_is_given_is_what_is_kept(given: dict[str, Any], keys: dict[str, object]) -> None:
    found = decorator_keys("tool m.a", **given)
    assert dict(found) == keys
    hash(found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"timeout": "soon"}, "tool m.a: timeout.attempt: found 'soon', expected a duration such as 500ms"),
        ({"timeout": {"totl": 3}}, "tool m.a: timeout.totl: there is no key 'totl' here, did you mean 'total'?"),
        ({"timeout": {"attempt": 9, "total": 3}}, "tool m.a: timeout.total is 3s (here) and timeout.attempt is 9s"),
        ({"retry": {"retry_on": ["http:999"]}}, "tool m.a: retry.retry_on.0: found 'http:999', expected timeout"),
        ({"breaker": {"windw": 3}}, "tool m.a: breaker.windw: there is no key 'windw' here, did you mean 'window'?"),
        ({"breaker": {"slow_calls": 3}}, "tool m.a: breaker.slow_calls: not yet"),
        ({"breaker": "off"}, "tool m.a: breaker: found 'off', expected a mapping, true for the defaults, or false"),
        ({"when_open": "sleep"}, "tool m.a: breaker.when_open: found 'sleep', expected park, raise or fail"),
        ({"when_open": "park", "breaker": False}, "tool m.a: when_open='park' with breaker=False; keep one of them"),
        ({"when_open": "park", "breaker": {"when_open": "raise"}}, "tool m.a: when_open='park' with breaker={"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        decorator_keys("tool m.a", **given)
    assert caught.value.message.startswith(message)


def test_declarations_carry_their_keys_beside_what_they_had() -> None:
    @step(timeout={"attempt": "10s", "total": 60}, retry={"base": "2s", "backoff": "constant"}, provider="openai")
    def plan() -> None: ...

    assert plan.timeout_seconds == 10.0
    assert plan.retry == Retry(base_seconds=2.0)
    assert dict(plan.policy_keys) == {
        "timeout.attempt": 10.0,
        "timeout.total": 60.0,
        "retry.base": 2.0,
        "retry.backoff": "constant",
    }
    assert (plan.provider, plan.policy) == ("openai", None)
    hash(plan)


def test_a_total_alone_leaves_the_attempt_to_the_setting() -> None:
    @step(timeout={"total": 60})
    def plan() -> None: ...

    assert (plan.timeout_seconds, plan.retry) == (None, NO_RETRY)


def test_a_policy_is_only_named_where_it_is_declared() -> None:
    @tool(policy="not written yet", when_open="raise", breaker={"probes": 2})
    def search() -> None: ...

    assert search.policy == "not written yet"
    with pytest.raises(Exception, match="which does not exist"):
        PolicyBook().resolve_declaration(search)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": ""}, "policy=''; expected a name"),
        ({"policy": 3}, "policy=3; expected a name"),
        ({"provider": " "}, "provider=' '; expected a name"),
        ({"retry": {"base": "soon"}}, "retry base='soon'; expected a duration such as"),
        (
            {"timeout": float("inf")},
            "timeout.attempt: found inf, expected a duration of 0 or more and at most ten years",
        ),
    ],
)
def test_names_and_times_that_are_none_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):

        @step(**options)
        def odd() -> None: ...


def test_only_steps_name_a_provider() -> None:
    with pytest.raises(DeclarationError, match="provider='openai'; only a @step names its model's provider"):

        @tool(**{"provider": "openai"})  # type: ignore[call-overload]  # the point of the test
        def search() -> None: ...


def test_a_declaration_is_resolved_with_what_its_decorator_says() -> None:
    @tool(policy="s", timeout=3, breaker={"window": "10s"})
    def search() -> None: ...

    @step
    def plan() -> None: ...

    held = parse_policies("policies: {s: {retry: 2}}", "paidonce.yaml")
    resolved = held.resolve_declaration(search)
    assert resolved.policy.breaker == BreakerPolicy(window_seconds=10.0)
    assert (resolved.policy.timeout.attempt_seconds, resolved.policy.retry.max_attempts) == (3.0, 2)
    assert resolved.sources["timeout.attempt"] == f"decorator at {search.place}"
    assert held.resolve_declaration(plan).policy == PolicyBook().resolve(name="x", kind="step").policy
    assert held.resolve_declaration(search, breakers_enabled=False).policy.breaker is None
