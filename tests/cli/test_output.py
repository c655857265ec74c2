"""What tables show of what is long: enough to find it, and never so much that laying it out takes seconds."""

from __future__ import annotations

from paidonce.cli.output import MOST_CHARACTERS_OF_A_CELL, first_and_last, shortened, tags_text


def test_a_run_of_thousands_of_steps_is_shown_by_its_first_and_last() -> None:
    assert first_and_last(range(500)) == (range(500), ())
    first, last = first_and_last(range(10_000))
    assert (len(first), first[0], len(last), last[-1]) == (50, 0, 450, 9_999)


def test_a_long_text_is_shown_by_its_beginning_with_its_length() -> None:
    assert shortened("short") == "short"
    assert (
        shortened("x" * 20_000_000) == "x" * MOST_CHARACTERS_OF_A_CELL + "… (20,000,000 characters; --json shows all)"
    )


def test_tags_of_megabytes_are_one_cell_of_a_table() -> None:
    assert tags_text({"user": "u1", "plan": "free"}) == "user=u1 plan=free"
    assert len(tags_text({f"{number}" * 1_000: "x" * 1_000_000 for number in range(20)})) < 1_000
