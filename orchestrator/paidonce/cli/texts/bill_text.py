"""The bill for people: lines of two columns, the same in every command that shows one."""

from __future__ import annotations

from paidonce_models.money import usd_string
from paidonce_models.store.ledger.bills import Bill

Line = tuple[str, str]


def bill_lines(bill: Bill) -> list[Line]:
    """Name and value of each line. Money that is not known in full is marked as a lower bound."""
    lines = [
        ("steps paid", str(bill.steps_paid)),
        ("steps not paid again", str(bill.steps_not_repeated)),
        ("attempts", f"{bill.attempts}, {bill.attempts_lost} of them lost"),
        ("calls", _calls(bill)),
        ("tokens", _tokens(bill)),
        ("money", _money(bill, bill.cost_nanousd)),
    ]
    if bill.attempts_lost:
        lines.append(("  of that in lost attempts", _money(bill, bill.lost_cost_nanousd)))
        lines.append(("not paid again", _money(bill, bill.avoided_cost_nanousd)))
        lines.append(("starting over would have cost", _money(bill, bill.starting_over_cost_nanousd)))
    if bill.tree is not None:
        lines.append((f"with {bill.child_runs} child run{'' if bill.child_runs == 1 else 's'}", ""))
        lines += [(f"  {name.strip()}", value) for name, value in bill_lines(bill.tree)]
    return lines


def bill_text(bill: Bill) -> str:
    """The bill as text under a heading."""
    lines = bill_lines(bill)
    width = max(len(name) for name, _ in lines)
    return "\n".join(["Bill", *(f"  {name:<{width}}  {value}".rstrip() for name, value in lines)])


def _calls(bill: Bill) -> str:
    return f"{bill.calls}, {bill.unpriced_calls} of them without a price" if bill.unpriced_calls else str(bill.calls)


def _tokens(bill: Bill) -> str:
    if bill.calls == 0:
        return "no calls recorded"
    return f"{_count(bill.input_tokens)} in, {_count(bill.output_tokens)} out"


def _count(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens:,}"


def _money(bill: Bill, nanousd: int | None) -> str:
    """Without any call, the cost is not known to be 0: Paidonce only knows of none."""
    if nanousd is None and bill.calls == 0:
        return "no calls recorded"
    return usd_string(nanousd, unpriced_calls=bill.unpriced_calls)
