"""Releases the steps that wait for open circuits; a part of the sweep of a shard.

While a circuit is open, none of its steps moves. When its time is over, one of them is sent: its delivery acquires
permission from the circuit, and is the probe. Once the circuit is closed the others follow in a ramp, oldest first, so
that the recovered dependency is not overloaded again.

Redis may be flushed. If steps wait for a circuit of which Redis has no history, it was forgotten. It is made half-open,
so that again one step finds out for all. While Redis is away, each step's own due time decides, and the local breakers
of the processes limit what is released then.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from paidonce_models.database.transactions import Database
from paidonce_models.errors import CircuitStoreUnreachable
from paidonce_models.store.circuits.parked_steps import (
    KnownOpen,
    ParkedAt,
    ParkedKey,
    circuits_with_parked_steps,
    give_up_parked,
    next_probe,
    oldest_parked,
    postpone_parked,
    unpark_step,
)
from paidonce_models.store.messages import Message
from paidonce_workers.breakers import CircuitBreakers, CircuitState, CircuitStatus

FIRST_OF_RAMP = 4
MOST_OF_RAMP = 500
"""So many are released in the first sweep after a circuit has closed, twice as many in each next one, up to this."""
HALF_OPEN_SECONDS = 0.001
"""A circuit opened for so short a time permits the next call as a probe."""


class ParkingLot:
    """The parked steps of the shards that one worker leads."""

    def __init__(self, database: Database, namespace: str, breakers: CircuitBreakers | None) -> None:
        """``breakers`` ``None``: breakers are switched off now, and no step has to wait any more."""
        self._database = database
        self._namespace = namespace
        self._breakers = breakers
        self._ramps: dict[tuple[int, str], int] = {}

    def sweep(self, shard: int) -> list[Message]:
        """Schedule what may be tried, and raise in the agents of steps that have waited too long."""
        with self._database.read() as connection:
            waiting = circuits_with_parked_steps(connection, namespace=self._namespace, shard=shard)
        self._ramps = {key: size for key, size in self._ramps.items() if key[1] in {at.circuit for at in waiting}}
        if not waiting:
            return []
        messages: list[Message] = []
        states = self._states()
        for at in waiting:
            status = None if states is None else states.get(at.circuit)
            if self._breakers is not None and states is not None and is_forgotten(status):
                messages += self._ask_anew(self._breakers, shard, at)
            elif states is None or status is None or status.state is CircuitState.CLOSED:
                messages += self._ramp(shard, at, due_only=states is None)
            else:
                self._ramps.pop((shard, at.circuit), None)
                open_for_seconds = open_seconds(status)
                if open_for_seconds > 0:
                    self._postpone(shard, at, open_for_seconds)
                elif at.due_in_us <= 0:
                    messages += self._probe(shard, at)
        known = {} if states is None else _known_open(states)
        messages += self._database.transact(
            lambda connection: give_up_parked(connection, namespace=self._namespace, shard=shard, known=known)
        )
        return messages

    def _states(self) -> Mapping[str, CircuitStatus] | None:
        """The circuits in Redis; ``None`` if it is away."""
        if self._breakers is None:
            return {}
        try:
            return {status.circuit: status for status in self._breakers.states()}
        except CircuitStoreUnreachable:
            return None

    def _ask_anew(self, breakers: CircuitBreakers, shard: int, at: ParkedAt) -> list[Message]:
        """Let one step probe a circuit that Redis has forgotten."""
        try:
            breakers.force_open(at.circuit, HALF_OPEN_SECONDS, reason="Redis had forgotten it, and steps wait for it")
        except CircuitStoreUnreachable:
            return []  # Redis is away, which the next sweep will see
        time.sleep(2 * HALF_OPEN_SECONDS)  # an earlier probe would be refused and parked again
        return self._probe(shard, at)

    def _ramp(self, shard: int, at: ParkedAt, *, due_only: bool) -> list[Message]:
        size = self._ramps.get((shard, at.circuit), FIRST_OF_RAMP)
        released = self._release(shard, at, most=size, due_only=due_only)
        if released:
            self._ramps[shard, at.circuit] = min(2 * size, MOST_OF_RAMP)
        return released

    def _probe(self, shard: int, at: ParkedAt) -> list[Message]:
        with self._database.read() as connection:
            keys = next_probe(connection, namespace=self._namespace, shard=shard, circuit=at.circuit)
        return self._unpark(keys)

    def _release(self, shard: int, at: ParkedAt, *, most: int, due_only: bool) -> list[Message]:
        with self._database.read() as connection:
            keys = oldest_parked(
                connection, namespace=self._namespace, shard=shard, circuit=at.circuit, most=most, due_only=due_only
            )
        return self._unpark(keys)

    def _unpark(self, keys: Sequence[ParkedKey]) -> list[Message]:
        messages: list[Message] = []
        for key in keys:
            message = self._database.transact(functools.partial(unpark_step, key=key))
            messages += [] if message is None else [message]
        return messages

    def _postpone(self, shard: int, at: ParkedAt, seconds: float) -> None:
        if at.due_in_us >= int(seconds * 1e6) - 1_000_000:
            return
        self._database.transact(
            lambda connection: postpone_parked(
                connection,
                namespace=self._namespace,
                shard=shard,
                circuit=at.circuit,
                retry_in_us=int(seconds * 1e6),
            )
        )


def is_forgotten(status: CircuitStatus | None) -> bool:
    """Whether a circuit that steps wait for has lost its history: each move leaves a reason."""
    return status is None or (status.state is CircuitState.CLOSED and not status.reason)


def _known_open(states: Mapping[str, CircuitStatus]) -> dict[str, KnownOpen]:
    """The open circuits; of a half-open one the next try is unknown."""
    return {
        status.circuit: KnownOpen(since=status.since, retry_at=status.retry_at)
        for status in states.values()
        if status.state is CircuitState.OPEN and status.since is not None
    }


def open_seconds(status: CircuitStatus) -> float:
    """How much longer the circuit stays open, by the clock of the status; infinite if only a person closes it."""
    if status.state is not CircuitState.OPEN:
        return 0.0
    if status.retry_at is None:
        return 3600.0
    now: datetime = status.at
    return max((status.retry_at - now).total_seconds(), 0.0)
