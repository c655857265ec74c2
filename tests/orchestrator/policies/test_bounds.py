"""A policies file of a few lines can stand for gigabytes, or nest without an end: each is refused while it is read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from paidonce.policies.file.parsing import load_policies, parse_policies, policies_from_settings
from paidonce.settings import load_settings
from paidonce_models.errors import ConfigurationError

_ITEMS = ",".join(["x"] * 10)


def refusal(text: str, **limits: int) -> str:
    with pytest.raises(ConfigurationError) as refused:
        parse_policies(text, "paidonce.yaml", **limits)
    assert len(refused.value.message) < 20_000
    return refused.value.message


def bomb(generations: int) -> str:
    """Each line stands for ten times the line before it."""
    lines = [f"a0: &a0 [{_ITEMS}]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, generations)]
    return "\n".join(lines)


@pytest.mark.slow
def test_an_alias_bomb_is_refused_before_it_is_written_out() -> None:
    tracemalloc.start()
    try:
        message = refusal(bomb(9))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "paidonce.yaml:" in message and "aliases written out" in message and "PAIDONCE_MAX_POLICIES_BYTES" in message
    assert peak < 200 * 2**20


def test_one_long_text_named_many_times_counts_each_time() -> None:
    names = ",".join(["*text"] * 1_000)
    assert "aliases written out" in refusal(f"a: &text {'x' * 1_000}\nb: [{names}]")


def test_aliases_that_save_writing_are_taken() -> None:
    text = "policies:\n  fast: &fast {retry: 2}\n  same: *fast\n"
    assert parse_policies(text, "paidonce.yaml").resolve(name="m.a", kind="tool") is not None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5_000 + "]" * 5_000,
        "{a: " * 5_000 + "1" + "}" * 5_000,
        "- " * 5_000 + "a",
        "? " * 5_000 + "a",
        "[" * 60_000,
    ],
    ids=["lists", "mappings", "entries", "keys", "unclosed"],
)
def test_what_nests_without_an_end_is_refused_with_its_line(text: str) -> None:
    assert refusal(text) == ("paidonce.yaml:1 is not valid YAML: nested deeper than 50 levels; correct it there")


def test_a_file_is_read_no_further_than_it_may_be_large(tmp_path: Path) -> None:
    file = tmp_path / "paidonce.yaml"
    with file.open("wb") as opened:
        opened.truncate(3 * 2**30)  # as sparse as a mistake can be
    with pytest.raises(ConfigurationError, match=r"at most 262,144 are read.*PAIDONCE_MAX_POLICIES_BYTES"):
        load_policies(file)


def test_the_setting_moves_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "paidonce.yaml"
    file.write_text("policies: {a: {}}\n" + "#" * 2_000)
    assert policies_from_settings(load_settings(policies=str(file))).file is not None
    with pytest.raises(ConfigurationError, match="at most 1,024 are read"):
        policies_from_settings(load_settings(policies=str(file), max_policies_bytes=1_024))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("9" * 100_000, "a number of 100000 characters"),
        ("0x" + "f" * 100_000, "a number of 100002 characters"),
        ("0o" + "7" * 100_000, "a number of 100002 characters"),
        ("1" + "0" * 30, "at most 1,000,000"),
    ],
    ids=["digits", "hexadecimal", "octal", "large"],
)
def test_a_number_has_no_more_digits_than_a_number_needs(number: str, said: str) -> None:
    assert said in refusal(f"policies: {{a: {{retry: {{max_attempts: {number}}}}}}}")


def test_a_file_that_is_wrong_all_over_is_told_in_an_error_that_can_be_read() -> None:
    message = refusal("policies:\n" + "".join(f"  p{number}: {{tiemout: 3}}\n" for number in range(2_000)))
    assert "p0.tiemout" in message and "and 1,950 more; correct these first" in message
    known = "".join(f"  p{number}: {{}}\n" for number in range(500))
    message = refusal(f"policies:\n{known}targets:\n" + "".join(f"  t{number}: q{number}\n" for number in range(500)))
    assert "p19 and 480 more" in message and "and 450 more; correct these first" in message


def test_the_name_of_a_circuit_is_what_a_store_can_hold() -> None:
    assert "200 characters at most" in refusal(f"targets: {{s: {{circuit: {'c' * 201}}}}}")


def test_a_pattern_of_many_stars_is_matched_at_once() -> None:
    book = parse_policies(f"targets: {{'{'*a' * 300}b': {{timeout: 3}}}}", "paidonce.yaml")
    assert book.resolve(name="a" * 20_000, kind="tool") is not None
