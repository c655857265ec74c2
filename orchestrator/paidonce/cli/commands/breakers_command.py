"""``paidonce breakers``: the circuits of the fleet, their latest changes, and opening or closing one by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import click

import paidonce_workers.breakers
from paidonce.cli.arguments import MOST_ROWS
from paidonce.cli.connections import OpenStore, open_checked
from paidonce.cli.documents.json_documents import Document, time_text
from paidonce.cli.live_workers import workers_alive
from paidonce.cli.output import json_option, print_json, say, tell
from paidonce.cli.tables import SafeTable, output_console
from paidonce.policies import describe_failure, parse_duration
from paidonce.settings import Settings
from paidonce_models.errors import InvalidInput
from paidonce_models.store.circuits.breaker_transitions import TransitionView, read_transitions, record_transition
from paidonce_workers.breakers import CircuitBreakers


@click.group(invoke_without_command=True)
@click.option(
    "--moves", type=click.IntRange(0, MOST_ROWS), default=10, show_default=True, help="How many of the latest changes."
)
@json_option
@click.pass_context
def breakers(context: click.Context, moves: int, as_json: bool) -> None:
    """Show the circuits that the fleet shares, and their latest changes.

    A circuit that has been closed for a while is forgotten and not listed. `paidonce runs --state parked` lists the
    runs that wait for an open one.
    """
    if context.invoked_subcommand is not None:
        return
    store = open_checked()
    circuits = _breakers(store.settings)
    try:
        states = circuits.states()
    finally:
        circuits.close()
    with store.database.read() as connection:
        transitions = read_transitions(connection, store.namespace, most=moves)
    if as_json:
        print_json(
            {"circuits": [_document(status) for status in states], "moves": [_move(each) for each in transitions]}
        )
        return
    if not states:
        say("No circuits: nothing has failed lately.")
    else:
        output_console().print(_table(states))
    if transitions:
        tell()
        output_console().print(_moves(transitions))


@breakers.command("open")
@click.argument("name")
@click.option(
    "--for", "duration", metavar="TIME", help="For how long, such as 10m.  [default: until it is closed by hand]"
)
@json_option
def open_breaker(name: str, duration: str | None, as_json: bool) -> None:
    """Open circuit NAME: nothing calls its dependency, and steps that would are parked."""
    seconds = None if duration is None else _seconds(duration)
    _move_by_hand(name, as_json, lambda circuits, reason: circuits.force_open(name, seconds, reason=reason), "opened")


@breakers.command("close")
@click.argument("name")
@json_option
def close_breaker(name: str, as_json: bool) -> None:
    """Close circuit NAME: its parked steps resume, from the next sweep on."""
    _move_by_hand(name, as_json, lambda circuits, reason: circuits.force_close(name, reason=reason), "closed")


@breakers.command("reset")
@click.argument("name")
@json_option
def reset_breaker(name: str, as_json: bool) -> None:
    """Close circuit NAME and forget what was counted."""
    _move_by_hand(name, as_json, lambda circuits, reason: circuits.reset(name, reason=reason), "reset")


def _move_by_hand(name: str, as_json: bool, act: Callable[[Any, str], object], done: str) -> None:
    if not name.strip():
        raise InvalidInput("the name of a circuit is empty; `paidonce breakers` lists them")
    store = open_checked()
    circuits = _breakers(store.settings)
    moves: list[Any] = []
    circuits.subscribe(moves.append)
    try:
        known = {status.circuit for status in circuits.states()}
        act(circuits, f"{done} by hand")
    finally:
        circuits.close()
    for change in moves:
        store.database.transact(
            lambda connection, change=change: record_transition(  # type: ignore[misc]
                connection,
                namespace=store.namespace,
                circuit=name,
                from_state=change.source.value,
                to_state=change.target.value,
                reason=change.reason,
                worker="paidonce breakers",
            )
        )
    if name not in known:
        _note_unknown(store, name, known)
    if as_json:
        print_json({"circuit": name, "changed": bool(moves)})
    else:
        tell(f"Circuit {name} is {done}." if moves else f"Circuit {name} was so already.")


def _note_unknown(store: OpenStore, name: str, remembered: set[str]) -> None:
    """Warn if nobody seems to call anything by that name, because it may be misspelt."""
    known = remembered.union(*(worker.steps for worker in workers_alive(store.database, store.settings)))
    if name in known or name.startswith("provider:"):
        return
    meant = [each for each in sorted(known) if each.rpartition(".")[2] == name] or get_close_matches(name, known)
    guess = f"; did you mean {' or '.join(meant)}?" if meant else "."
    say(
        f"Note: no circuit {name!r} is known and no live worker holds a tool of that full name{guess} "
        "Ignore this if policies give the name with `circuit:`."
    )


def _breakers(settings: Settings) -> CircuitBreakers:
    logging.getLogger(paidonce_workers.breakers.__name__).setLevel(
        logging.ERROR
    )  # what is wrong is said by the command
    return CircuitBreakers.of(settings, describe_failure)


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise InvalidInput(f"--for {text}: expected {error}") from None
    if seconds <= 0:
        raise InvalidInput(f"--for {text}: expected a time above 0; `paidonce breakers close` closes a circuit")
    return seconds


def _document(status: Any) -> Document:
    return {
        "circuit": status.circuit,
        "state": status.state.value,
        "since": time_text(status.since),
        "retry_at": time_text(status.retry_at),
        "reason": status.reason,
        "consecutive_failures": status.consecutive_failures,
        "failed_probes": status.failed_probes,
        "probes_under_way": status.probes_under_way,
    }


def _move(each: TransitionView) -> Document:
    return {
        "circuit": each.circuit,
        "from": each.from_state,
        "to": each.to_state,
        "reason": each.reason,
        "worker": each.worker,
        "at": time_text(each.at),
    }


def _table(states: Sequence[Any]) -> SafeTable:
    table = SafeTable("circuit", "state", "since", "tried again", "failures in a row", "why", box=None, pad_edge=False)
    for status in states:
        table.add_row(
            status.circuit,
            status.state.value,
            _second(time_text(status.since)),
            _second(time_text(status.retry_at)),
            str(status.consecutive_failures or ""),
            status.reason,
        )
    return table


def _moves(transitions: Sequence[TransitionView]) -> SafeTable:
    table = SafeTable("at", "circuit", "from", "to", "why", "by", box=None, pad_edge=False)
    for each in transitions:
        table.add_row(
            _second(time_text(each.at)), each.circuit, each.from_state, each.to_state, each.reason, each.worker
        )
    return table


def _second(text: str | None) -> str:
    return "" if text is None else f"{text[:19].replace('T', ' ')}Z"
