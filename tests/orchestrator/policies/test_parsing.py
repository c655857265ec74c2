"""Reading a policy file: what may be written, and that everything wrong is told with its place and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from paidonce.policies import BreakerPolicy
from paidonce.policies.file.parsing import load_policies, parse_policies, policies_from_settings
from paidonce.settings import load_settings
from paidonce_models.errors import ConfigurationError

EXAMPLE = """\
policies:
  search:
    timeout: {attempt: 10s, total: 2m}            # total excludes parked time
    retry:   {max_attempts: 4, backoff: exponential, base: 500ms, cap: 30s, jitter: full,
              retry_on: [timeout, connection, "http:429", "http:5xx"], honor_retry_after: true}
    retry_budget: {ratio: 0.1, floor_per_second: 1}
    breaker: {consecutive_failures: 5, window: 30s, min_calls: 10, failure_rate: 0.5,
              open_for: {base: 15s, cap: 5m, jitter: 0.2}, probes: 1, ignore: ["http:404", ValueError],
              when_open: park, when_store_down: allow}
    park: {max: 7d}
targets:
  web_search: search
  "crm_*": {policy: search, circuit: crm}
  "provider:openai": {breaker: {consecutive_failures: 3}}
"""


def problems(text: str) -> list[str]:
    """What is wrong with a file."""
    with pytest.raises(ConfigurationError) as caught:
        parse_policies(text, "paidonce.yaml")
    told = caught.value.details["problems"]
    assert isinstance(told, list) and caught.value.message == "; ".join(told)
    return told


def test_the_example_holds_every_key() -> None:
    book = parse_policies(EXAMPLE, "paidonce.yaml")
    resolved = book.resolve(name="shop.web_search", kind="tool")
    policy = resolved.policy
    assert policy.name == "search"
    assert (policy.timeout.attempt_seconds, policy.timeout.total_seconds) == (10.0, 120.0)
    assert (policy.retry.max_attempts, policy.retry.base_seconds, policy.retry.cap_seconds) == (4, 0.5, 30.0)
    assert policy.retry.retry_on == ("timeout", "connection", "http:429", "http:5xx")
    assert policy.retry_budget is not None and policy.retry_budget.floor_per_second == 1.0
    assert policy.breaker == BreakerPolicy(ignore=("http:404", "ValueError"))
    assert policy.park.max_seconds == 604_800.0
    assert {path for path, source in resolved.sources.items() if source == "default"} == {"circuit"}
    assert resolved.sources["retry.cap"] == "paidonce.yaml:4 policies.search"
    assert resolved.sources["retry.retry_on"] == "paidonce.yaml:5 policies.search"
    assert resolved.sources["policy"] == "paidonce.yaml:12 targets.web_search"
    assert book.resolve(name="shop.crm_find", kind="tool").circuit == "crm"
    provider = book.resolve_provider("openai")
    assert provider.policy.breaker == BreakerPolicy(consecutive_failures=3)
    assert (provider.target, provider.circuit) == ("provider:openai", "provider:openai")


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "policies:\ntargets:\n", "policies: {}\n", "targets: {a: {}}\n"]
)
def test_a_file_that_says_nothing_changes_nothing(text: str) -> None:
    book = parse_policies(text, "paidonce.yaml")
    assert book.resolve(name="m.a", kind="tool") == load_policies(None).resolve(name="m.a", kind="tool")


def test_a_missing_file_means_defaults(tmp_path: Path) -> None:
    book = load_policies(tmp_path / "paidonce.yaml")
    assert (book.file, book.policy_names, book.target_names) == (None, (), ())
    assert book.resolve(name="m.a", kind="tool").policy.breaker == BreakerPolicy()


def test_files_are_named_by_their_way_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf" / "p.yaml"
    file.write_text("\ufefftargets: {a: {park: {max: 1h}}}\n", encoding="utf-8")
    assert load_policies(file).file == str(file)
    monkeypatch.chdir(tmp_path)
    resolved = load_policies(file).resolve(name="m.a", kind="tool")
    assert resolved.sources["park.max"] == "conf/p.yaml:1 targets.a"


def test_what_is_no_text_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(b"a: \xff\n")
    for path in (tmp_path, tmp_path / "p.yaml"):
        with pytest.raises(ConfigurationError, match=r"cannot be read: .*; expected a text file in UTF-8"):
            load_policies(path)


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert policies_from_settings(load_settings()).file is None
    with pytest.raises(ConfigurationError, match=r"PAIDONCE_POLICIES names \S+/mine\.yaml, and there is no such file"):
        policies_from_settings(load_settings(policies="mine.yaml"))
    (tmp_path / "mine.yaml").write_text(EXAMPLE)
    (tmp_path / "paidonce.yaml").write_text(EXAMPLE)
    assert policies_from_settings(load_settings(policies="mine.yaml")).file == "mine.yaml"
    assert policies_from_settings(load_settings()).file == "paidonce.yaml"


def test_short_forms_mean_their_main_key() -> None:
    short = "  a: {timeout: 10s, retry: 4}\n  b: {timeout: 1.5, retry: false, breaker: false}\n  c: {breaker: true}\n"
    book = parse_policies(f"targets:\n{short}", "paidonce.yaml")
    first, second = (book.resolve(name=name, kind="tool").policy for name in "ab")
    assert (first.timeout.attempt_seconds, first.retry.max_attempts) == (10.0, 4)
    assert (second.timeout.attempt_seconds, second.retry.max_attempts, second.breaker) == (1.5, 1, None)
    assert book.resolve(name="c", kind="step").policy.breaker == BreakerPolicy()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n", "paidonce.yaml:1: found a list, expected a mapping of policies and targets; correct it there"),
        (
            "polices: {}\n",
            "paidonce.yaml:1 polices: there is no key 'polices' here, did you mean 'policies'? allowed are",
        ),
        ("policies: x\n", "paidonce.yaml:1 policies: found 'x', expected a mapping of names to policies"),
        (
            "targets: [x]\n",
            "paidonce.yaml:1 targets: found a list, expected a mapping of tools, patterns and providers",
        ),
        ("policies:\n  s: x\n", "paidonce.yaml:2 policies.s: found 'x', expected a mapping; correct it there"),
        ("policies:\n  s:\n", "paidonce.yaml:2 policies.s: found nothing, expected a mapping; correct it there"),
        ("targets:\n  s: 4\n", "paidonce.yaml:2 targets.s: found 4, expected the name of a policy, or a mapping"),
        (
            "policies:\n  s:\n    breaker:\n      windw: 3s\n",
            "paidonce.yaml:4 policies.s.breaker.windw: there is no key 'windw' here, did you mean 'window'? "
            "allowed are consecutive_failures, window, min_calls, failure_rate, open_for, probes, ignore, when_open, "
            "when_store_down",
        ),
        (
            "policies:\n  s: {circuit: x}\n",
            "paidonce.yaml:2 policies.s.circuit: there is no key 'circuit' here; allowed are timeout, retry, "
            "retry_budget, breaker, park",
        ),
        ("targets:\n  s: {zzz: 1}\n", "allowed are timeout, retry, retry_budget, breaker, park, policy, circuit"),
        (
            "policies:\n  s: {bulkhead: {max: 3}}\n",
            "paidonce.yaml:2 policies.s.bulkhead: not yet: limits on calls at once are planned and not built; remove",
        ),
        ("targets:\n  s: {rate_limit: 5}\n", "paidonce.yaml:2 targets.s.rate_limit: not yet: rate limits are planned"),
        ("targets:\n  s: {fallback: x}\n", "paidonce.yaml:2 targets.s.fallback: not yet: fallbacks are planned"),
        ("policies:\n  s: {breaker: {slow_calls: 1}}\n", "policies.s.breaker.slow_calls: not yet: slow calls that"),
        (
            "policies:\n  s: {breaker: {slow_call_rate_threshold: 50}}\n",
            "slow_call_rate_threshold: not yet: slow calls",
        ),
        ("policies:\n  s: {breaker: {slow_call_duration_threshold: 5s}}\n", "duration_threshold: not yet: slow calls"),
        (
            "policies:\n  s:\n    breaker: {failure_rate: 1.5}\n",
            "paidonce.yaml:3 policies.s.breaker.failure_rate: found 1.5, expected a number above 0 and at most 1; ",
        ),
        ("policies:\n  s: {breaker: {failure_rate: 0}}\n", "found 0, expected a number above 0 and at most 1"),
        ("policies:\n  s: {breaker: {failure_rate: .nan}}\n", "found nan, expected a number above 0 and at most 1"),
        ("policies:\n  s: {breaker: {min_calls: 0}}\n", "found 0, expected a whole number, 1 or more"),
        ("policies:\n  s: {breaker: {probes: '1'}}\n", "found '1', expected a whole number, 1 or more"),
        ("policies:\n  s: {breaker: {probes: true}}\n", "found true, expected a whole number, 1 or more"),
        ("policies:\n  s: {breaker: {window: 0s}}\n", "found '0s', expected a duration above 0, such as 500ms"),
        ("policies:\n  s: {breaker: {window: 1:30}}\n", "found '1:30', expected a duration such as 500ms, 10s"),
        ("policies:\n  s: {breaker: {window: -1}}\n", "found -1, expected a duration of 0 or more and at most ten"),
        ("policies:\n  s: {breaker: {open_for: 15s}}\n", "s.breaker.open_for: found '15s', expected a mapping"),
        ("policies:\n  s: {breaker: {open_for: {jitter: 1}}}\n", "found 1, expected a number, 0 or more and below 1"),
        ("policies:\n  s: {breaker: {when_open: sleep}}\n", "found 'sleep', expected park, raise or fail"),
        ("policies:\n  s: {breaker: {when_store_down: no}}\n", "found 'no', expected allow or refuse"),
        (
            "policies:\n  s: {breaker: off}\n",
            "s.breaker: found 'off', expected a mapping, true for the defaults, or fal",
        ),
        ("policies:\n  s: {breaker:}\n", "s.breaker: found nothing, expected a mapping, true for the defaults, or"),
        ("policies:\n  s: {breaker: {ignore: http:404}}\n", "found 'http:404', expected a list of timeout, connection"),
        (
            "policies:\n  s:\n    breaker:\n      ignore:\n      - ValueError\n      - http:6xx\n",
            "paidonce.yaml:6 policies.s.breaker.ignore.1: found 'http:6xx', expected timeout, connection, a status",
        ),
        (
            "policies:\n  s: {retry: {retry_on: [timeouts]}}\n",
            "found 'timeouts', expected 'timeout', did you mean that?",
        ),
        ("policies:\n  s: {retry: {retry_on: [429]}}\n", "found 429, expected timeout, connection, a status such as"),
        ("policies:\n  s: {retry: {honor_retry_after: yes}}\n", "found 'yes', expected true or false"),
        (
            "policies:\n  s: {retry: often}\n",
            "s.retry: found 'often', expected a mapping, a number of attempts, or false",
        ),
        ("policies:\n  s: {retry: true}\n", "s.retry: found true, expected a mapping, a number of attempts, or false"),
        ("policies:\n  s: {retry: 0}\n", "s.retry.max_attempts: found 0, expected a whole number, 1 or more"),
        ("policies:\n  s: {retry_budget: {ratio: 2}}\n", "found 2, expected a number from 0 to 1"),
        (
            "policies:\n  s: {timeout: soon}\n",
            "paidonce.yaml:2 policies.s.timeout.attempt: found 'soon', expected a dura",
        ),
        ("policies:\n  s: {park: 7d}\n", "s.park: found '7d', expected a mapping"),
        ("targets:\n  s: {circuit: ''}\n", "targets.s.circuit: found '', expected a name"),
        (
            "policies:\n  search: {}\ntargets:\n  a: serach\n",
            "paidonce.yaml:4 targets.a.policy: there is no policy 'serach', did you mean 'search'? (known are: search)"
            "; declare it under `policies:`",
        ),
        ("targets:\n  a: {policy: x}\n", "paidonce.yaml:2 targets.a.policy: there is no policy 'x' (known are: none)"),
        ("policies:\n  default: {}\n", "paidonce.yaml:2 policies.default: a policy cannot be named 'default'"),
        ("targets:\n  'provider:': {}\n", "found 'provider:', expected the name of a tool, a pattern such as 'crm_*'"),
        ("targets:\n  '': {}\n", "found '', expected the name of a tool"),
        (
            "policies:\n  s:\n    retry: {base: 1m,\n      cap: 30s}\n",
            "paidonce.yaml:2 policies.s: retry.cap is 30s (paidonce.yaml:4 policies.s) and retry.base is 1m "
            "(paidonce.yaml:3 policies.s); expected retry.cap to be at least retry.base, change one",
        ),
        (
            "targets:\n  s: {timeout: {attempt: 2m, total: 1m}}\n",
            "expected timeout.total to be at least timeout.attempt",
        ),
        ("targets:\n  s: {breaker: {open_for: {base: 2m, cap: 1m}}}\n", "expected breaker.open_for.cap to be at least"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_what_was_found_and_what_is_allowed(text: str, problem: str) -> None:
    (told,) = problems(text)
    assert problem in told, told
    assert told.startswith("paidonce.yaml:"), told


def test_everything_wrong_is_told_in_one_error_in_the_order_of_the_file() -> None:
    text = "targets:\n  c: {park: {max: 0}}\npolicies:\n  b:\n    breaker: {probes: 0}\n    retry: {bas: 1s}\n"
    assert [problem.partition(": ")[0] for problem in problems(text)] == [
        "paidonce.yaml:2 targets.c.park.max",
        "paidonce.yaml:5 policies.b.breaker.probes",
        "paidonce.yaml:6 policies.b.retry.bas",
    ]


def test_long_values_are_cut_in_errors() -> None:
    (told,) = problems(f"policies:\n  s: {{timeout: {'x' * 500}}}\n")
    assert len(told) < 300


def test_equal_keys_are_refused_with_both_lines() -> None:
    with pytest.raises(ConfigurationError, match=r"paidonce\.yaml:3 policies: the key 's' is here and in line 2"):
        parse_policies("policies:\n  s: {}\n  s: {}\n", "paidonce.yaml")
