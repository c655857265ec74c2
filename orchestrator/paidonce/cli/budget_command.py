"""``paidonce budget``: limits on what runs may spend, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import click

from paidonce.budget_texts import EXAMPLE, parse_words
from paidonce.budgets import list_budgets, remove_budget, set_budget
from paidonce.cli.connections import held_agents, open_client, workers_alive
from paidonce.cli.documents import Document
from paidonce.cli.output import SafeTable, json_option, output_console, print_json, say, tell
from paidonce.client import Client
from paidonce_models.budgets import AGENT, Budget, Period, Unit, amount_text
from paidonce_models.errors import InvalidInput, NotFound
from paidonce_models.money import decimal_usd_string
from paidonce_models.store.budget_standing import BudgetStanding


@click.group()
def budget() -> None:
    """Limit what runs may spend, and see where the limits stand.

    A budget has a subject (agent=NAME, tag:NAME=VALUE, run=RUN or all), a period (per=run, per=day or per=month, of
    UTC) and an amount (usd=, tokens= or steps=). Before a step begins its expected cost is reserved; a step without
    room is held and its run paused. Raising the budget, or a new day, lets it go on.
    """


@budget.command("set")
@click.argument("words", nargs=-1, required=True, metavar="SUBJECT per=PERIOD usd=AMOUNT")
@json_option
def set_command(words: Sequence[str], as_json: bool) -> None:
    """Set or change a budget: agent=research per=day usd=20.

    What was spent in the current period counts from the beginning. A budget of one run (run=RUN usd=1) goes before
    that of its agent, and what is set here before what the agent's decorator declares.
    """
    parsed = parse_words(words)
    without = [unit.value for unit, amount in parsed.amounts.items() if amount is None]
    if without or not parsed.amounts:
        raise InvalidInput(f"{without[0] if without else 'a budget'} needs an amount ({EXAMPLE})")
    client = open_client()
    changes = set_budget(
        client.database,
        parsed.subject,
        per=parsed.per,
        namespace=client.settings.namespace,
        **{unit.value: amount for unit, amount in parsed.amounts.items()},  # type: ignore[arg-type]  # texts, as checked there
    )
    _warn_of_unknown_agent(client, parsed.subject)
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
    """Remove a budget that was set: agent=research per=day usd. What it holds goes on."""
    parsed = parse_words(words)
    if not parsed.amounts:
        raise InvalidInput("say which: usd, tokens or steps (as in: agent=research per=day usd)")
    client = open_client()
    removed = remove_budget(
        client.database,
        parsed.subject,
        per=parsed.per,
        units=[unit.value for unit in parsed.amounts],
        namespace=client.settings.namespace,
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
    """List the budgets in force with what is spent, reserved and held in the current day, month or all runs."""
    client = open_client()
    standings = list_budgets(client.database, namespace=client.settings.namespace)
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


def _warn_of_unknown_agent(client: Client, subject: str) -> None:
    if not subject.startswith(AGENT):
        return
    name = subject.removeprefix(AGENT)
    if name not in held_agents(workers_alive(client)) and not client.runs(agent=name, most=1):
        say(f"Note: no live worker holds an agent named {name!r}, and it has no runs yet.")
