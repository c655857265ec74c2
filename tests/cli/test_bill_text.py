"""The bill for people."""

from __future__ import annotations

from paidonce.cli.texts.bill_text import bill_text
from paidonce_models.money import usd_string
from paidonce_models.store.ledger.bills import Bill


def test_a_run_without_calls_claims_no_money() -> None:
    text = bill_text(Bill(steps_paid=2, attempts=2))
    assert text.count("no calls recorded") == 2
    assert "$0" not in text


def test_unpriced_calls_make_every_sum_a_lower_bound_and_losses_are_shown() -> None:
    bill = Bill(attempts=3, attempts_lost=1, calls=3, unpriced_calls=1, cost_nanousd=200, avoided_cost_nanousd=50)
    lines = dict(line.strip().split("  ", 1) for line in bill_text(bill).splitlines()[1:])
    values = {name: value.strip() for name, value in lines.items()}
    assert values["money"] == usd_string(200, unpriced_calls=1)
    assert values["of that in lost attempts"] == "unknown"
    assert values["starting over would have cost"] == usd_string(250, unpriced_calls=1)
    assert values["money"].startswith("≥")


def test_the_tree_stands_apart() -> None:
    text = bill_text(Bill(calls=1, cost_nanousd=1, child_runs=1, tree=Bill(calls=2, cost_nanousd=2)))
    assert "with 1 child run\n" in text
