"""What holds for a tool, a step and a provider, and who says so."""

from __future__ import annotations

import pytest

from paidonce.policies import BreakerPolicy, ParkPolicy, RetryBudgetPolicy, RetryPolicy, TimeoutPolicy
from paidonce.policies.file.parsing import parse_policies
from paidonce.policies.policy_book import PolicyBook
from paidonce_models.errors import ConfigurationError


def book(text: str) -> PolicyBook:
    return parse_policies(text, "paidonce.yaml")


def test_without_a_file_tools_have_a_breaker_and_nothing_is_retried() -> None:
    resolved = PolicyBook().resolve(name="m.search", kind="tool")
    assert (resolved.target, resolved.circuit, resolved.policy.name) == ("m.search", "m.search", "default")
    assert resolved.policy.breaker == BreakerPolicy(
        consecutive_failures=5,
        window_seconds=30,
        min_calls=10,
        failure_rate=0.5,
        open_base_seconds=15,
        open_cap_seconds=300,
        open_jitter=0.2,
        probes=1,
        ignore=("http:4xx", "!http:408", "!http:425", "!http:429"),
        when_open="park",
        when_store_down="allow",
    )
    assert resolved.policy.retry == RetryPolicy(max_attempts=1)
    assert resolved.policy.retry_budget is None
    assert resolved.policy.timeout == TimeoutPolicy(attempt_seconds=None, total_seconds=None)
    assert resolved.policy.park == ParkPolicy(max_seconds=7 * 86_400)
    assert set(resolved.sources.values()) == {"default"}


def test_without_a_file_steps_and_providers_have_no_breaker() -> None:
    assert PolicyBook().resolve(name="m.plan", kind="step").policy.breaker is None
    assert PolicyBook().resolve_provider("openai").policy.breaker is None


def test_who_asks_for_retries_gets_a_budget_for_them() -> None:
    resolved = PolicyBook().resolve(name="m.a", kind="step", keys=(("retry.max_attempts", 4),))
    assert resolved.policy.retry_budget == RetryBudgetPolicy(ratio=0.1, floor_per_second=1.0)
    without = book("targets: {a: {retry: 4, retry_budget: false}}").resolve(name="m.a", kind="step")
    assert (without.policy.retry.max_attempts, without.policy.retry_budget) == (4, None)


ALL_PLACES = """\
policies:
  low: {park: {max: 1h}, timeout: {attempt: 1s}, retry: 2}
  middle: {park: {max: 2h}, timeout: {attempt: 2s}, breaker: {probes: 2}}
  high: {park: {max: 3h}}
targets:
  "sea*": {policy: low, breaker: {min_calls: 3}}
  "*": {breaker: {window: 1s}}
  search: {policy: middle, breaker: {failure_rate: 0.25}}
  m.search: {circuit: finding}
"""


def test_each_place_has_its_say_in_order_of_precedence() -> None:
    resolved = book(ALL_PLACES).resolve(
        name="m.search", kind="tool", policy="high", keys=(("breaker.when_open", "raise"),), place="m.py:7"
    )
    policy, sources = resolved.policy, resolved.sources
    assert policy.breaker is not None
    assert (policy.name, sources["policy"]) == ("high", "decorator at m.py:7")
    assert (policy.breaker.when_open, sources["breaker.when_open"]) == ("raise", "decorator at m.py:7")
    assert (policy.park.max_seconds, sources["park.max"]) == (10_800.0, "paidonce.yaml:4 policies.high")
    assert (resolved.circuit, sources["circuit"]) == ("finding", "paidonce.yaml:9 targets.m.search")
    assert (policy.breaker.failure_rate, sources["breaker.failure_rate"]) == (0.25, "paidonce.yaml:8 targets.search")
    assert (policy.breaker.probes, sources["breaker.probes"]) == (2, "paidonce.yaml:3 policies.middle")
    assert (policy.timeout.attempt_seconds, sources["timeout.attempt"]) == (2.0, "paidonce.yaml:3 policies.middle")
    assert (policy.breaker.min_calls, sources["breaker.min_calls"]) == (3, "paidonce.yaml:6 targets.sea*")
    assert (policy.retry.max_attempts, sources["retry.max_attempts"]) == (2, "paidonce.yaml:2 policies.low")
    assert (policy.breaker.window_seconds, sources["breaker.window"]) == (30.0, "default")


def test_a_target_gives_a_step_a_breaker_and_takes_one_from_a_tool() -> None:
    held = book("targets: {plan: {breaker: true}, search: {breaker: false}, 'o*': {breaker: {probes: 2}}}")
    assert held.resolve(name="m.plan", kind="step").policy.breaker == BreakerPolicy()
    off = held.resolve(name="m.search", kind="tool")
    assert (off.policy.breaker, off.sources["breaker"]) == (None, "paidonce.yaml:1 targets.search")
    assert "breaker.probes" not in off.sources
    assert held.resolve(name="m.other", kind="step").policy.breaker == BreakerPolicy(probes=2)


def test_a_provider_has_a_breaker_where_a_step_or_a_target_names_it() -> None:
    declared = PolicyBook().resolve_provider("openai", declared_at="m.py:3", when_open="raise")
    assert declared.policy.breaker == BreakerPolicy(when_open="raise")
    assert declared.sources["breaker"] == declared.sources["breaker.when_open"] == "decorator at m.py:3"
    held = book("targets: {'provider:openai': {breaker: false}, 'provider:g*': {breaker: {probes: 2}, circuit: g}}")
    assert held.resolve_provider("openai", declared_at="m.py:3").policy.breaker is None
    groq = held.resolve_provider("groq")
    assert (groq.circuit, groq.policy.breaker) == ("g", BreakerPolicy(probes=2))


def test_one_switch_turns_every_breaker_off() -> None:
    held = book("targets: {'*': {breaker: {probes: 2}, retry: 2}, 'provider:*': {breaker: true}}")
    resolved = held.resolve(
        name="m.search", kind="tool", keys=(("breaker", True),), place="m.py:1", breakers_enabled=False
    )
    assert (resolved.policy.breaker, resolved.sources["breaker"]) == (None, "PAIDONCE_BREAKERS=off")
    assert resolved.policy.retry.max_attempts == 2
    assert held.resolve_provider("openai", declared_at="m.py:1", breakers_enabled=False).policy.breaker is None
    assert held.resolve(name="m.search", kind="tool").policy.breaker is not None


def test_the_same_question_gives_the_same_object() -> None:
    held = book(ALL_PLACES)
    assert held.resolve(name="m.search", kind="tool") is held.resolve(name="m.search", kind="tool")
    assert held.resolve(name="m.search", kind="tool") is not held.resolve(name="m.search", kind="step")
    assert held.resolve_provider("openai") is held.resolve_provider("openai")


def test_a_policy_that_does_not_exist_is_one_clear_error() -> None:
    with pytest.raises(ConfigurationError) as caught:
        book("policies: {search: {}, crm: {}}").resolve(name="m.a", kind="tool", policy="serach", place="m.py:7")
    assert caught.value.message == (
        "policy of m.a: decorator at m.py:7 names 'serach', which does not exist, did you mean 'search'? "
        "(those of paidonce.yaml are: search, crm); declare it under `policies:` in paidonce.yaml, or correct the name"
    )
    with pytest.raises(ConfigurationError, match=r"names 'search', which does not exist \(there is no policy file"):
        PolicyBook().resolve(name="m.a", kind="tool", policy="search")


def test_places_that_contradict_each_other_are_both_named() -> None:
    held = book("policies: {s: {timeout: {total: 1m}}}")
    with pytest.raises(ConfigurationError) as caught:
        held.resolve(name="m.a", kind="tool", policy="s", keys=(("timeout.attempt", 90.0),), place="m.py:7")
    assert caught.value.message == (
        "policy of m.a: timeout.total is 1m (paidonce.yaml:1 policies.s) and timeout.attempt is 1m30s "
        "(decorator at m.py:7); expected timeout.total to be at least timeout.attempt, change one"
    )


def test_targets_that_match_nothing_are_known() -> None:
    held = book("targets: {search: {}, 'crm_*': {}, m.pay: {}, 'm.*': {}, 'provider:openai': {}, 'provider:x*': {}}")
    unmatched = held.unmatched(["m.search", "n.pay"], ["openai", "groq"])
    assert [target.name for target in unmatched] == ["crm_*", "m.pay", "provider:x*"]
    assert unmatched[0].source == "paidonce.yaml:1 targets.crm_*"
