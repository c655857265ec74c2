"""The rules of circuits and retry budgets as Redis applies them: ``circuit.lua`` and ``retry_budget.lua``.

Owns the keys and what goes to and fro. One script call for each request, atomic
on the server and by the server's clock; tests pass a clock of their own. Every
function raises ``link.StoreAway`` within its time limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from redis.connection import AbstractConnection

from paidonce.policies import BreakerPolicy, RetryBudgetPolicy
from paidonce_workers.breakers.circuit import Answer, CircuitState, Standing, Transition, Verdict
from paidonce_workers.breakers.link import Argument, Link, Script, StoreAway, evaluate
from paidonce_workers.breakers.outcome import Outcome

CIRCUIT: Final = Script.load("circuit.lua")
RETRY_BUDGET: Final = Script.load("retry_budget.lua")
CHECK_SECONDS: Final = 1.0
BY_HAND: Final = -1
KEYS_AT_ONCE: Final = 1000


class RulesOnRedis:
    """The circuits and retry budgets of one namespace."""

    def __init__(self, link: Link, namespace: str, *, now_us: Callable[[], int] | None = None) -> None:
        """``now_us`` stands in for the server's clock in tests."""
        self._link = link
        self._circuits = f"paidonce:{namespace}:breaker:"
        self._budgets = f"paidonce:{namespace}:retry_budget:"
        self._now_us = now_us

    def admit(self, circuit: str, policy: BreakerPolicy, *, token: str, token_us: int, limit_seconds: float) -> Answer:
        """Ask for one call."""
        return self._ask(circuit, "admit", (token, token_us, policy.probes), limit_seconds)

    def report(
        self,
        circuit: str,
        policy: BreakerPolicy,
        *,
        epoch: int,
        token: str,
        outcome: Outcome,
        chance: float,
        limit_seconds: float,
    ) -> Answer:
        """Say how a call that was admitted in ``epoch`` has ended."""
        retry_after_us = outcome.retry_after_us
        arguments = (
            epoch,
            token,
            outcome.effect.value,
            "" if retry_after_us is None else retry_after_us,
            outcome.detail,
            chance,
            policy.consecutive_failures,
            int(policy.window_seconds * 1e6),
            policy.min_calls,
            policy.failure_rate,
            policy.open_base_seconds * 1e6,
            policy.open_cap_seconds * 1e6,
            policy.open_jitter,
            policy.probes,
        )
        return self._ask(circuit, "report", arguments, limit_seconds)

    def renew(self, circuit: str, tokens: Iterable[str], *, token_us: int, limit_seconds: float) -> bool:
        """Let probes hold their places for longer; whether any of them still had one."""
        return self._ask(circuit, "renew", (token_us, *tokens), limit_seconds).verdict is Verdict.COUNTED

    def open_by_hand(self, circuit: str, *, for_us: int | None, reason: str, limit_seconds: float) -> Answer:
        """Open it whatever its state, for a time or (``None``) until it is closed by hand."""
        return self._ask(circuit, "open", ("" if for_us is None else for_us, reason), limit_seconds)

    def close_by_hand(self, circuit: str, *, reason: str, limit_seconds: float) -> Answer:
        """Close it; one that is closed is left alone with all its counts."""
        return self._ask(circuit, "close", (reason,), limit_seconds)

    def reset(self, circuit: str, *, reason: str, limit_seconds: float) -> Answer:
        """Close it and forget all counts."""
        return self._ask(circuit, "reset", (reason,), limit_seconds)

    def forget(self, circuit: str, *, limit_seconds: float) -> None:
        """As if Redis had never heard of it."""
        self._link.command("DEL", self._circuits + circuit, limit_seconds=limit_seconds)

    def standing(self, circuit: str, *, limit_seconds: float) -> Standing | None:
        """How it stands; ``None`` if Redis has never heard of it or has forgotten it."""
        found = self._run(circuit, "read", (), limit_seconds)
        if len(found) < 9:
            return None
        return Standing(
            state=CircuitState(_text(found[0])),
            epoch=_whole(found[1]),
            now_us=_whole(found[2]),
            since_us=_whole(found[3]),
            until_us=_end(found[4]),
            reason=_text(found[5]),
            consecutive=_whole(found[6]),
            failed_probes=_whole(found[7]),
            probes_under_way=_whole(found[8]),
        )

    def names(self, *, limit_seconds: float) -> Iterator[str]:
        """The names of all circuits that are remembered; for people, because it walks over all keys."""
        cursor = "0"
        while True:
            found = self._link.command(
                *("SCAN", cursor, "MATCH", f"{self._circuits}*", "COUNT", KEYS_AT_ONCE), limit_seconds=limit_seconds
            )
            if not isinstance(found, list) or len(found) != 2 or not isinstance(found[1], list):
                raise StoreAway(f"SCAN answered {found!r}")
            for key in found[1]:
                yield _text(key).removeprefix(self._circuits)
            cursor = _text(found[0])
            if cursor == "0":
                return

    def put_off_seconds(
        self, target: str, budget: RetryBudgetPolicy, *, calls: float, asks: bool, limit_seconds: float
    ) -> float:
        """Deposit for calls and, if it ``asks``, take the token of one retry: how long that is put off, 0 for now."""
        now: Argument = "" if self._now_us is None else self._now_us()
        arguments = (now, calls, budget.ratio, budget.floor_per_second, int(asks))
        return float(
            _text(self._link.run(RETRY_BUDGET, self._budgets + target, arguments, limit_seconds=limit_seconds))
        )

    def _ask(self, circuit: str, act: str, arguments: Iterable[Argument], limit_seconds: float) -> Answer:
        return _answer(self._run(circuit, act, arguments, limit_seconds))

    def _run(self, circuit: str, act: str, arguments: Iterable[Argument], limit_seconds: float) -> list[object]:
        now: Argument = "" if self._now_us is None else self._now_us()
        found = self._link.run(CIRCUIT, self._circuits + circuit, (act, now, *arguments), limit_seconds=limit_seconds)
        if not isinstance(found, list):
            raise StoreAway(f"the script answered {found!r}")
        return found


def checker(namespace: str) -> Callable[[AbstractConnection], None]:
    """What a fresh connection is tried with: it fails where writing, packing or scripting does not work."""

    def check(connection: AbstractConnection) -> None:
        key = f"paidonce:{namespace}:breaker_check"
        evaluate(connection, CIRCUIT, key, ("check", ""), time.monotonic() + CHECK_SECONDS)

    return check


def _answer(found: list[object]) -> Answer:
    verdict, state = Verdict(_text(found[0])), CircuitState(_text(found[1]))
    if len(found) == 4:
        return Answer(verdict=verdict, state=state, epoch=_whole(found[2]), now_us=_whole(found[3]))
    source = _text(found[7])
    return Answer(
        verdict=verdict,
        state=state,
        epoch=_whole(found[2]),
        now_us=_whole(found[3]),
        since_us=_whole(found[4]),
        until_us=_end(found[5]),
        reason=_text(found[6]),
        transition=Transition(source=CircuitState(source), target=state, reason=_text(found[8])) if source else None,
    )


def _text(value: object) -> str:
    """Redis answers bytes, or text where the address says ``decode_responses``."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else int(_text(value))


def _end(value: object) -> int | None:
    until_us = _whole(value)
    return None if until_us == BY_HAND else until_us
