"""How failures are named in a policy, and what a list of names covers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce.policies.matchers import any_matches, parse_matcher


@pytest.mark.parametrize(
    "word",
    [
        "timeout",
        "connection",
        "http:429",
        "http:5xx",
        "!http:408",
        "!timeout",
        "ValueError",
        "openai.RateLimitError",
        "gaierror",
        "Überlast",
    ],
)
def test_words_that_name_failures_are_taken_as_they_are(word: str) -> None:
    assert parse_matcher(word) == word


def test_classes_are_named_by_their_module_and_builtins_by_themselves() -> None:
    class Away(Exception): ...

    assert parse_matcher(ValueError) == "ValueError"
    assert parse_matcher(Away) == f"{__name__}.{Away.__qualname__}"


@pytest.mark.parametrize(
    "word", ["", "!", "!!timeout", "http:200", "http:6xx", "http:4XX", "http:42", "5xx", "a b", 429]
)
def test_words_that_name_nothing_are_refused(word: object) -> None:
    with pytest.raises(ValueError, match=re.escape("timeout, connection, a status such as http:429 or http:5xx")):
        parse_matcher(word)


@pytest.mark.parametrize(
    ("word", "meant"), [("timeouts", "timeout"), ("conection", "connection"), ("time_out", "timeout")]
)
def test_slips_of_the_pen_are_refused_with_what_was_meant(word: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"'{meant}', did you mean that"):
        parse_matcher(word)


def test_an_exception_counts_wherever_it_stands() -> None:
    for matchers in (("http:4xx", "!http:429"), ("!http:429", "http:4xx")):
        assert any_matches(matchers, frozenset({"http:404", "http:4xx"}))
        assert not any_matches(matchers, frozenset({"http:429", "http:4xx"}))


@given(
    matchers=st.lists(st.sampled_from(["a", "b", "c", "!a", "!b", "!c"])),
    kinds=st.frozensets(st.sampled_from("abc")),
)
def test_a_list_covers_what_it_names_less_what_it_excepts(matchers: list[str], kinds: frozenset[str]) -> None:
    included = {matcher for matcher in matchers if not matcher.startswith("!")}
    excepted = {matcher[1:] for matcher in matchers if matcher.startswith("!")}
    assert any_matches(matchers, kinds) == (bool(included & kinds) and not excepted & kinds)
