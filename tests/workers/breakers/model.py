"""The rules of a circuit as plain functions, the oracle of the script: no clock, no network, no randomness.

``now_us`` is passed in, and so is ``chance``, a number from 0 to 1 that decides
the jitter. Each function takes the circuit as it was (``None``: never heard of)
and returns it as it is, with an answer. A state machine of hypothesis holds
``circuit.lua`` against them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers.circuit_state import Answer, CircuitState, CircuitStatus, Transition, Verdict
from paidonce_workers.breakers.outcome import Effect, Outcome

MOVES: Final[Mapping[CircuitState, frozenset[CircuitState]]] = {
    # Open to open: by hand, for a time of one's own.
    CircuitState.CLOSED: frozenset({CircuitState.OPEN}),
    CircuitState.OPEN: frozenset({CircuitState.HALF_OPEN, CircuitState.CLOSED, CircuitState.OPEN}),
    CircuitState.HALF_OPEN: frozenset({CircuitState.OPEN, CircuitState.CLOSED}),
}

TENTHS = 10
"""Into how many parts a window is divided: its memory is bounded, and an outcome leaves it after 9 to 10 of them."""
HIGHEST_POWER = 60
LEAST_RETRY_AFTER_US = 1_000_000
"""So that a server that answers ``Retry-After: 0`` is not probed without a pause."""
PROBE_IS_UNDER_WAY = "a probe is under way"
TIME_IS_OVER = "its time was over"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Outcomes of a tenth of a window. ``index`` counts tenths since the epoch of the clock."""

    index: int
    successes: int = 0
    failures: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Circuit:
    """One circuit at one moment. Instants are microseconds of the clock that decides for it."""

    epoch: int
    state: CircuitState = CircuitState.CLOSED
    since_us: int = 0
    """When it left the closed state; 0 while closed."""
    until_us: int | None = 0
    """Until when it is open; ``None``: until somebody closes it."""
    reason: str = ""
    """Why it opened, or closed, the last time."""
    consecutive: int = 0
    """Failures in a row while closed."""
    windows: Mapping[int, tuple[Tally, ...]] = field(default_factory=dict)
    """Tallies by the length of a tenth in microseconds: policies that share a circuit may have other windows."""
    failed_probes: int = 0
    """Since it left the closed state: each doubles the open time."""
    probes: Mapping[str, int] = field(default_factory=dict)
    """Tokens of probes under way, and when each expires unless it is renewed."""
    succeeded_probes: int = 0
    """Since it became half-open."""


def admit(
    circuit: Circuit | None, policy: BreakerPolicy, *, token: str, token_us: int, now_us: int
) -> tuple[Circuit, Answer]:
    """Ask for one call. As a probe it holds its place for ``token_us``, unless that is renewed or the call ends."""
    circuit = circuit if circuit is not None else Circuit(epoch=now_us)
    if circuit.state is CircuitState.CLOSED:
        return circuit, _answer(circuit, Verdict.ADMITTED, now_us)
    move: Transition | None = None
    if circuit.state is CircuitState.OPEN:
        if circuit.until_us is None or now_us < circuit.until_us:
            return circuit, _answer(circuit, Verdict.REFUSED, now_us)
        move = Transition(source=circuit.state, target=CircuitState.HALF_OPEN, reason=TIME_IS_OVER)
        circuit = replace(
            circuit,
            epoch=circuit.epoch + 1,
            state=CircuitState.HALF_OPEN,
            until_us=0,
            probes={},
            succeeded_probes=0,
        )
    live = {name: expiry for name, expiry in circuit.probes.items() if expiry > now_us}
    if token in live or len(live) < policy.probes:
        live[token] = now_us + token_us
        circuit = replace(circuit, probes=live)
        return circuit, _answer(circuit, Verdict.PROBE, now_us, move)
    circuit = replace(circuit, probes=live)
    refused = replace(_answer(circuit, Verdict.REFUSED, now_us), reason=PROBE_IS_UNDER_WAY)
    return circuit, replace(refused, until_us=min(live.values()))


def report(
    circuit: Circuit | None,
    policy: BreakerPolicy,
    *,
    epoch: int,
    token: str,
    outcome: Outcome,
    chance: float,
    now_us: int,
) -> tuple[Circuit | None, Answer]:
    """Say how a call that was admitted in ``epoch`` has ended."""
    if circuit is None:
        return None, Answer(verdict=Verdict.LATE, state=CircuitState.CLOSED, epoch=0, now_us=now_us)
    if circuit.epoch != epoch or circuit.state is CircuitState.OPEN:
        return circuit, _answer(circuit, Verdict.LATE, now_us)
    if circuit.state is CircuitState.HALF_OPEN:
        return _report_probe(circuit, policy, token, outcome, chance, now_us)
    if outcome.effect is Effect.NEUTRAL:
        return circuit, _answer(circuit, Verdict.COUNTED, now_us)
    failed = outcome.effect is Effect.FAILURE
    tenth_us, tallies = _tallied(circuit, policy, failed, now_us)
    circuit = replace(
        circuit,
        consecutive=circuit.consecutive + 1 if failed else 0,
        windows={**circuit.windows, tenth_us: tallies},
    )
    why = _why_it_trips(circuit.consecutive, tallies, policy) if failed else None
    if why is None:
        return circuit, _answer(circuit, Verdict.COUNTED, now_us)
    return _open(circuit, policy, why, outcome, chance, now_us)


def renew(circuit: Circuit | None, tokens: Iterable[str], *, token_us: int, now_us: int) -> tuple[Circuit | None, bool]:
    """Let probes hold their places for longer; whether any of them still had one."""
    if circuit is None:
        return None, False
    renewed = {token: now_us + token_us for token in tokens if token in circuit.probes}
    return replace(circuit, probes={**circuit.probes, **renewed}), bool(renewed)


def open_by_hand(circuit: Circuit | None, *, for_us: int | None, reason: str, now_us: int) -> tuple[Circuit, Answer]:
    """Open it whatever its state, for a time or (``None``) until it is closed by hand."""
    circuit = circuit if circuit is not None else Circuit(epoch=now_us)
    until_us = None if for_us is None else now_us + for_us
    return _moved(circuit, CircuitState.OPEN, reason, now_us, until_us=until_us, failed_probes=0)


def close_by_hand(circuit: Circuit | None, *, reason: str, now_us: int) -> tuple[Circuit, Answer]:
    """Close it; one that is closed is left alone with all its counts."""
    circuit = circuit if circuit is not None else Circuit(epoch=now_us)
    if circuit.state is CircuitState.CLOSED:
        return circuit, _answer(circuit, Verdict.DONE, now_us)
    return _moved(circuit, CircuitState.CLOSED, reason, now_us)


def reset(circuit: Circuit | None, *, reason: str, now_us: int) -> tuple[Circuit, Answer]:
    """Close it and forget all counts. Outcomes of calls that are under way will be ignored."""
    circuit = circuit if circuit is not None else Circuit(epoch=now_us)
    if circuit.state is not CircuitState.CLOSED:
        return _moved(circuit, CircuitState.CLOSED, reason, now_us)
    circuit = Circuit(epoch=circuit.epoch + 1, reason=reason)
    return circuit, _answer(circuit, Verdict.DONE, now_us)


def status(circuit: Circuit, name: str, *, now_us: int) -> CircuitStatus:
    """How it stands, for people."""
    return CircuitStatus(
        circuit=name,
        state=circuit.state,
        epoch=circuit.epoch,
        now_us=now_us,
        since_us=circuit.since_us,
        until_us=circuit.until_us,
        reason=circuit.reason,
        consecutive_failures=circuit.consecutive,
        failed_probes=circuit.failed_probes,
        probes_under_way=sum(expiry > now_us for expiry in circuit.probes.values()),
    )


def open_us(policy: BreakerPolicy, *, failed_probes: int, retry_after_us: int | None, chance: float) -> int:
    """For how long it opens: what the server asked for, else the base doubled by each failed probe, up to the cap.

    The jitter only shortens, so that neither the cap nor the longest wait for a probe is exceeded.
    """
    doubled = policy.open_base_seconds * 1e6 * 2.0 ** min(failed_probes, HIGHEST_POWER)
    computed = int(min(policy.open_cap_seconds * 1e6, doubled) * (1.0 - policy.open_jitter * chance))
    return computed if retry_after_us is None else max(retry_after_us, min(LEAST_RETRY_AFTER_US, computed))


def _report_probe(
    circuit: Circuit, policy: BreakerPolicy, token: str, outcome: Outcome, chance: float, now_us: int
) -> tuple[Circuit, Answer]:
    if token not in circuit.probes:
        return circuit, _answer(circuit, Verdict.LATE, now_us)
    left = {name: expiry for name, expiry in circuit.probes.items() if name != token}
    circuit = replace(circuit, probes=left)
    if outcome.effect is Effect.FAILURE:
        circuit = replace(circuit, failed_probes=circuit.failed_probes + 1)
        return _open(circuit, policy, "a probe failed", outcome, chance, now_us)
    if outcome.effect is Effect.SUCCESS:
        circuit = replace(circuit, succeeded_probes=circuit.succeeded_probes + 1)
        if circuit.succeeded_probes >= policy.probes:
            why = f"probes succeeded: {circuit.succeeded_probes}"
            return _moved(circuit, CircuitState.CLOSED, why, now_us, verdict=Verdict.COUNTED)
    return circuit, _answer(circuit, Verdict.COUNTED, now_us)


def _tallied(circuit: Circuit, policy: BreakerPolicy, failed: bool, now_us: int) -> tuple[int, tuple[Tally, ...]]:
    """The window of this policy with one more outcome; what is older or (a clock went back) newer is left out."""
    tenth_us = max(1, int(policy.window_seconds * 1e6) // TENTHS)
    current = now_us // tenth_us
    kept = [tally for tally in circuit.windows.get(tenth_us, ()) if current - TENTHS < tally.index <= current]
    last = kept.pop() if kept and kept[-1].index == current else Tally(index=current)
    kept.append(replace(last, successes=last.successes + (not failed), failures=last.failures + failed))
    return tenth_us, tuple(kept)


def _why_it_trips(consecutive: int, tallies: tuple[Tally, ...], policy: BreakerPolicy) -> str | None:
    """Asked after a failure only: a success never trips."""
    if consecutive >= policy.consecutive_failures:
        return f"failures in a row: {consecutive}"
    failures = sum(tally.failures for tally in tallies)
    calls = failures + sum(tally.successes for tally in tallies)
    if calls >= policy.min_calls and failures / calls >= policy.failure_rate:
        return f"failure rate: {100 * failures // calls} % of {calls} calls"
    return None


def _open(
    circuit: Circuit, policy: BreakerPolicy, why: str, outcome: Outcome, chance: float, now_us: int
) -> tuple[Circuit, Answer]:
    reason = f"{why} ({outcome.detail})" if outcome.detail else why
    lasts_us = open_us(
        policy, failed_probes=circuit.failed_probes, retry_after_us=outcome.retry_after_us, chance=chance
    )
    return _moved(
        circuit,
        CircuitState.OPEN,
        reason,
        now_us,
        until_us=now_us + lasts_us,
        failed_probes=circuit.failed_probes,
        verdict=Verdict.COUNTED,
    )


def _moved(
    circuit: Circuit,
    state: CircuitState,
    reason: str,
    now_us: int,
    *,
    until_us: int | None = 0,
    failed_probes: int = 0,
    verdict: Verdict = Verdict.DONE,
) -> tuple[Circuit, Answer]:
    """Open or closed from now on, in a new epoch, with no counts."""
    move = Transition(source=circuit.state, target=state, reason=reason)
    since_us = circuit.since_us if circuit.state is not CircuitState.CLOSED else now_us
    circuit = Circuit(
        epoch=circuit.epoch + 1,
        state=state,
        since_us=0 if state is CircuitState.CLOSED else since_us,
        until_us=until_us,
        reason=reason,
        failed_probes=failed_probes,
    )
    return circuit, _answer(circuit, verdict, now_us, move)


def _answer(circuit: Circuit, verdict: Verdict, now_us: int, move: Transition | None = None) -> Answer:
    if circuit.state is CircuitState.CLOSED and move is None:
        return Answer(verdict=verdict, state=circuit.state, epoch=circuit.epoch, now_us=now_us)
    return Answer(
        verdict=verdict,
        state=circuit.state,
        epoch=circuit.epoch,
        now_us=now_us,
        since_us=circuit.since_us,
        until_us=circuit.until_us,
        reason=circuit.reason,
        transition=move,
    )
