"""``circuit.lua``, which opens, half-opens and closes circuits, and ``retry_budget.lua``: calls both scripts on Redis.

Owns the keys and the arguments; the rules are in the scripts. One script call per request, atomic on the server
and by the server's clock; tests pass a clock. Every function raises
``redis_link.StoreAway`` when its time limit is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from redis.connection import AbstractConnection

from paidonce.policies import BreakerPolicy, RetryBudgetPolicy
from paidonce_workers.breakers.circuit_state import Answer, CircuitState, CircuitStatus, Transition, Verdict
from paidonce_workers.breakers.outcome import Outcome
from paidonce_workers.breakers.redis_link import Argument, Link, Script, StoreAway, evaluate

CIRCUIT: Final = Script.load("circuit.lua")
RETRY_BUDGET: Final = Script.load("retry_budget.lua")
CHECK_SECONDS: Final = 1.0
KEYS_AT_ONCE: Final = 1000


class CircuitScripts:
    """The circuits and retry budgets of one namespace."""

    def __init__(self, link: Link, namespace: str, *, now_us: Callable[[], int] | None = None) -> None:
        """``now_us`` replaces the server's clock in tests."""
        self._link = link
        self._circuits = f"paidonce:{namespace}:breaker:"
        self._budgets = f"paidonce:{namespace}:retry_budget:"
        self._now: Callable[[], Argument] = (lambda: "") if now_us is None else now_us

    def admit(self, circuit: str, policy: BreakerPolicy, *, token: str, token_us: int, limit_seconds: float) -> Answer:
        """Request permission for one call."""
        return self._ask(circuit, "admit", (token, token_us, policy.probes), limit_seconds)

    def report(
        self,
        circuit: str,
        policy: BreakerPolicy,
        outcome: Outcome,
        *,
        epoch: int,
        token: str,
        chance: float,
        limit_seconds: float,
    ) -> Answer:
        """Report how a call ended that was permitted in ``epoch``."""
        retry_after_us = outcome.retry_after_us
        arguments = (
            *(epoch, token, outcome.effect.value, "" if retry_after_us is None else retry_after_us, outcome.detail),
            *(chance, policy.consecutive_failures, int(policy.window_seconds * 1e6), policy.min_calls),
            *(policy.failure_rate, policy.open_base_seconds * 1e6, policy.open_cap_seconds * 1e6),
            *(policy.open_jitter, policy.probes),
        )
        return self._ask(circuit, "report", arguments, limit_seconds)

    def renew(self, circuit: str, tokens: Iterable[str], *, token_us: int, limit_seconds: float) -> bool:
        """Extend the places of these probes; whether any of them still had one."""
        return self._ask(circuit, "renew", (token_us, *tokens), limit_seconds).verdict is Verdict.COUNTED

    def open_by_hand(self, circuit: str, *, for_us: int | None, reason: str, limit_seconds: float) -> Answer:
        """Open it whatever its state, for a time or (``None``) until someone closes it."""
        return self._ask(circuit, "open", ("" if for_us is None else for_us, reason), limit_seconds)

    def close_by_hand(self, circuit: str, *, reason: str, limit_seconds: float) -> Answer:
        """Close it; a closed circuit keeps all its counts."""
        return self._ask(circuit, "close", (reason,), limit_seconds)

    def reset(self, circuit: str, *, reason: str, limit_seconds: float) -> Answer:
        """Close it and drop all counts."""
        return self._ask(circuit, "reset", (reason,), limit_seconds)

    def status(self, circuit: str, *, limit_seconds: float) -> CircuitStatus | None:
        """Its state; ``None`` if Redis does not know it, or no longer does."""
        found = self._run(circuit, "read", (), limit_seconds)
        if not found:
            return None
        state, epoch, now, since, until, reason, *counts = found
        consecutive_failures, failed_probes, probes_under_way = map(_whole, counts)
        return CircuitStatus(
            circuit=circuit,
            state=CircuitState(_text(state)),
            epoch=_whole(epoch),
            now_us=_whole(now),
            since_us=_whole(since),
            until_us=_end(until),
            reason=_text(reason),
            consecutive_failures=consecutive_failures,
            failed_probes=failed_probes,
            probes_under_way=probes_under_way,
        )

    def names(self, *, limit_seconds: float) -> Iterator[str]:
        """The names of all circuits in Redis. For commands only, because it scans all keys."""
        cursor = "0"
        while True:
            found = self._link.command(
                *("SCAN", cursor, "MATCH", f"{self._circuits}*", "COUNT", KEYS_AT_ONCE), limit_seconds=limit_seconds
            )
            if not isinstance(found, list) or len(found) != 2 or not isinstance(found[1], list):
                raise StoreAway(f"SCAN returned {found!r}")
            for key in found[1]:
                yield _text(key).removeprefix(self._circuits)
            cursor = _text(found[0])
            if cursor == "0":
                return

    def put_off_seconds(
        self, target: str, budget: RetryBudgetPolicy, *, calls: float, asks: bool, limit_seconds: float
    ) -> float:
        """Deposit for calls and, if it ``asks``, take the token of one retry; returns its delay, 0 for none."""
        arguments = (self._now(), calls, budget.ratio, budget.floor_per_second, int(asks))
        return float(
            _text(self._link.run(RETRY_BUDGET, self._budgets + target, arguments, limit_seconds=limit_seconds))
        )

    def _ask(self, circuit: str, act: str, arguments: Iterable[Argument], limit_seconds: float) -> Answer:
        found = self._run(circuit, act, arguments, limit_seconds)
        state = CircuitState(_text(found[1]))
        answer = Answer(verdict=Verdict(_text(found[0])), state=state, epoch=_whole(found[2]), now_us=_whole(found[3]))
        if len(found) == 4:
            return answer
        since, until, reason, source, why = found[4:]
        move: Transition | None = None
        if source:
            move = Transition(source=CircuitState(_text(source)), target=state, reason=_text(why))
        return replace(answer, since_us=_whole(since), until_us=_end(until), reason=_text(reason), transition=move)

    def _run(self, circuit: str, act: str, arguments: Iterable[Argument], limit_seconds: float) -> list[object]:
        arguments = (act, self._now(), *arguments)
        found = self._link.run(CIRCUIT, self._circuits + circuit, arguments, limit_seconds=limit_seconds)
        if not isinstance(found, list):
            raise StoreAway(f"the script returned {found!r}")
        return found


def checker(namespace: str) -> Callable[[AbstractConnection], None]:
    """The check for a new connection: fails where writing, packing or scripting does not work."""

    def check(connection: AbstractConnection) -> None:
        key = f"paidonce:{namespace}:breaker_check"
        evaluate(connection, CIRCUIT, key, ("check", ""), time.monotonic() + CHECK_SECONDS)

    return check


def _text(value: object) -> str:
    """Redis returns bytes, or text where the address says ``decode_responses``."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else int(_text(value))


def _end(value: object) -> int | None:
    """The script returns -1 for "until someone closes it"."""
    until_us = _whole(value)
    return None if until_us == -1 else until_us
