"""Whatever user code raises can be described, stored and shown."""

from __future__ import annotations

import json

import pytest

from paidonce.policies.retry import retry_from
from paidonce.user_errors import LONGEST_MESSAGE, LONGEST_TRACEBACK, MOST_ERRORS, error_of, traceback_of
from paidonce_models.errors import DeclarationError, PayloadTooLarge


class Mute(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


def raised(error: Exception) -> Exception:
    """The error with the traceback of one frame of user code."""
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - whichever was raised
        return caught


def test_an_error_is_described_by_type_code_and_text() -> None:
    assert error_of(KeyError("x")) == {"type": "KeyError", "code": "user_error", "message": "'x'"}
    assert error_of(ValueError())["message"] == "ValueError"
    assert error_of(PayloadTooLarge("big", limit=3)) == PayloadTooLarge("big", limit=3).to_json()


def test_an_error_whose_text_cannot_be_made_is_described_all_the_same() -> None:
    assert error_of(Mute())["message"] == "(its text cannot be shown: LookupError)"
    assert "Mute" in traceback_of(raised(Mute()))


def test_a_long_text_is_cut_and_says_so() -> None:
    message = str(error_of(ValueError("z" * 1_000_000))["message"])
    assert message == "z" * LONGEST_MESSAGE + "… (1,000,000 characters)"
    trace = traceback_of(raised(ValueError("z" * 1_000_000)))
    assert len(trace) <= LONGEST_TRACEBACK + 1 and trace.endswith("z\n")


@pytest.mark.parametrize("text", ["a\x00b", "half a pair: \ud800"])
def test_what_no_text_column_takes_is_escaped(text: str) -> None:
    error = raised(ValueError(text))
    trace = traceback_of(error)
    assert "\x00" not in trace and trace.encode()
    assert json.loads(json.dumps(error_of(error)))["message"] == text, "JSON has escapes of its own"


def test_a_group_keeps_its_members() -> None:
    described = error_of(ExceptionGroup("two", [ValueError("a"), Mute()]))
    assert [each["type"] for each in described["errors"]] == ["ValueError", "Mute"]  # type: ignore[attr-defined]


def test_a_traceback_begins_where_user_code_does() -> None:
    def body() -> None:
        retry_from(0, "here")

    namespace = {"__name__": "paidonce_workers.body", "body": body}
    exec("def run():\n    body()\n", namespace)
    with pytest.raises(DeclarationError) as caught:
        namespace["run"]()  # type: ignore[operator]  # a function, which exec has made
    assert caught.tb is not None
    trace = traceback_of(caught.value.with_traceback(caught.tb.tb_next))
    assert trace.splitlines()[0] == "Traceback (most recent call last):"
    assert "in run" not in trace and "in body" in trace and "retry.py" in trace, "ours below the body stay"
    assert "Mute" in traceback_of(Mute())


def test_a_group_of_thousands_is_described_by_its_first_members() -> None:
    described = error_of(ExceptionGroup("many", [ValueError("z" * 10_000) for _ in range(10_000)]))
    told = described["errors"]
    assert isinstance(told, list) and len(told) == MOST_ERRORS - 1
    assert described["more_errors"] == 10_000 - len(told)
    assert len(json.dumps(described)) < 100_000


def test_groups_in_groups_without_an_end_are_described_to_a_depth() -> None:
    error: Exception = ValueError("innermost")
    for _ in range(3_000):
        error = ExceptionGroup("around", [error])
    assert len(json.dumps(error_of(error))) < 10_000
    assert len(traceback_of(raised(error))) <= LONGEST_TRACEBACK + 1


def test_what_user_code_puts_into_an_error_of_ours_is_bounded_too() -> None:
    assert len(str(error_of(PayloadTooLarge("z" * 1_000_000))["message"])) < LONGEST_MESSAGE + 100
    for details in ({"value": object()}, {"value": "z" * 1_000_000}, {"value": float("nan")}):
        assert error_of(PayloadTooLarge("big", **details))["details"] == {}
    named = type("N" * 100_000, (Exception,), {})
    assert len(json.dumps(error_of(named("x")))) < 1_000
