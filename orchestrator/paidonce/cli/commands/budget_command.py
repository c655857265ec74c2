"""``paidonce budget``: limits on what runs may spend, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import click

from paidonce.budget_texts import EXAMPLE, parse_words
from paidonce.budgets import list_budgets, remove_budget, set_budget
from paidonce.cli.connections import OpenStore, open_checked
from paidonce.cli.documents.json_documents import Document
from paidonce.cli.live_workers import held_agents, workers_alive
from paidonce.cli.output import json_option, print_json, say, tell
from paidonce.cli.tables import SafeTable, output_console
from paidonce_models.budgets import AGENT, Budget, Period, Unit, amount_text
from paidonce_models.errors import InvalidInput, NotFound
from paidonce_models.money import decimal_usd_string
from paidonce_models.store.budgets.budget_balances import BudgetStanding
from paidonce_models.store.queries import list_runs


@click.group()
def budget() -> None:
    """Limit what runs may spend, and show the balances.

    A budget has a subject (agent=NAME, tag:NAME=VALUE, run=RUN or all), a period (per=run, per=day or per=month, in
    UTC) and an amount (usd=, tokens= or steps=). A step reserves its expected cost before it begins; a step without
    room is held and its run is paused. They resume when the budget is raised or the next period begins.
    """


@budget.command("set")
@click.argument("words", nargs=-1, required=True, metavar="SUBJECT per=PERIOD usd=AMOUNT")
@json_option
def set_command(words: Sequence[str], as_json: bool) -> None:
    """Set or change a budget: agent=research per=day usd=20.

    Spend since the beginning of the current period counts. A budget of one run (run=RUN usd=1) takes precedence over
    its agent's, and a budget set here over the agent's decorator.
    """
    parsed = parse_words(words)
    without = [unit.value for unit, amount in parsed.amounts.items() if amount is None]
    if without or not parsed.amounts:
        raise InvalidInput(f"{without[0] if without else 'a budget'} needs an amount ({EXAMPLE})")
    store = open_checked()
    changes = set_budget(
        store.database,
        parsed.subject,
        per=parsed.per,
        namespace=store.namespace,
        **{unit.value: amount for unit, amount in parsed.amounts.items()},  # type: ignore[arg-type]  # texts, as checked there
    )
    _warn_of_unknown_agent(store, parsed.subject)
    if as_json:
        print_json({"budgets": [{**_rule(each), "before": before} for each, before in changes]})
        return
    for each, before in changes:
        was = "" if before is None else f" (it was {amount_text(before, each.unit)})"
        tell(f"{each.name}: {amount_text(each.amount, each.unit)}{was}")


@budget.command("remove")
@click.argument("words", nargs=-1, required=True, metavar="SUBJECT per=PERIOD usd")
@json_option
def remove_command(words: Sequence[str], as_json: bool) -> None:
    """Remove a budget: agent=research per=day usd. Steps that it holds resume."""
    parsed = parse_words(words)
    if not parsed.amounts:
        raise InvalidInput("say which: usd, tokens or steps (as in: agent=research per=day usd)")
    store = open_checked()
    removed = remove_budget(
        store.database,
        parsed.subject,
        per=parsed.per,
        units=[unit.value for unit in parsed.amounts],
        namespace=store.namespace,
    )
    if not any(amount is not None for amount in removed.values()):
        raise NotFound(
            f"there is no such budget: {parsed.subject} {' '.join(removed)}; `paidonce budget list` shows those in "
            "force, and what an agent declares is changed in its code"
        )
    if as_json:
        print_json({"removed": {unit.value: amount for unit, amount in removed.items()}})
        return
    for unit, amount in removed.items():
        tell(f"{unit}: {'there was none' if amount is None else f'removed, it was {amount_text(amount, unit)}'}")


@budget.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the budgets in force, with what is spent, reserved and held in the current day or month, or by all runs."""
    store = open_checked()
    standings = list_budgets(store.database, namespace=store.namespace)
    if as_json:
        print_json({"budgets": [_standing(each) for each in standings]})
        return
    if not standings:
        say("No budgets.")
        return
    output_console().print(_table(standings))


def _rule(each: Budget) -> Document:
    return {
        "subject": each.subject,
        "per": each.period.value,
        "unit": each.unit.value,
        "source": each.source.value,
        "limit": each.amount,
        "limit_usd": _usd(each, each.amount),
    }


def _standing(each: BudgetStanding) -> Document:
    amounts: Document = {}
    for name, amount in (("spent", each.spent), ("reserved", each.reserved), ("left", each.left)):
        amounts |= {name: amount, f"{name}_usd": _usd(each.budget, amount)}
    return {
        **_rule(each.budget),
        "accounts": each.accounts,
        **amounts,
        "unpriced_calls": each.unpriced_calls,
        "held_steps": each.held_steps,
    }


def _usd(each: Budget, amount: int | None) -> str | None:
    return decimal_usd_string(amount) if each.unit is Unit.USD else None


def _table(standings: Sequence[BudgetStanding]) -> SafeTable:
    table = SafeTable("subject", "per", box=None, pad_edge=False)
    for title in ("limit", "spent", "reserved", "left", "held steps"):
        table.add_column(title, justify="right")
    table.add_column("from")
    for each in standings:
        rule = each.budget
        of_runs = rule.period is Period.RUN
        known = "≥ " if each.unpriced_calls else ""
        table.add_row(
            rule.subject,
            rule.period.value,
            amount_text(rule.amount, rule.unit),
            f"{known}{amount_text(each.spent, rule.unit)}{f' in {each.accounts:,} runs' if of_runs else ''}",
            amount_text(each.reserved, rule.unit),
            "" if each.left is None else amount_text(each.left, rule.unit),
            str(each.held_steps) if each.held_steps else "",
            "the agent's code" if rule.source == "declared" else "",
        )
    return table


def _warn_of_unknown_agent(store: OpenStore, subject: str) -> None:
    if not subject.startswith(AGENT):
        return
    name = subject.removeprefix(AGENT)
    if name not in held_agents(workers_alive(store.database, store.settings)) and not _has_runs(store, name):
        say(f"Note: no live worker holds an agent named {name!r}, and it has no runs yet.")


def _has_runs(store: OpenStore, agent: str) -> bool:
    with store.database.read() as connection:
        return bool(list_runs(connection, store.namespace, agent=agent, most=1))
