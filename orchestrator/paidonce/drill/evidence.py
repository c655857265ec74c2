"""What a drill proves: the counting server's list against the store's attempts.

Reads the store and its arguments; starts, kills and decides nothing.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, func, select

from paidonce_models.states import RUN_TERMINAL
from paidonce_models.store.columns import Attempt, Avoided, Run, col, cols, constants, rows, rows_of

BEYOND = frozenset({"lost", "fenced"})
"""How an attempt may have ended besides the accepted one of its step."""

UNFINISHED_RUNS = (
    select(func.count())
    .select_from(rows(Run))
    .where(col(Run.namespace) == bindparam("namespace"), col(Run.state).not_in(constants(sorted(RUN_TERMINAL))))
)
_ATTEMPTS = (
    select(
        *cols(Attempt.run_id, Attempt.position, Attempt.number, Attempt.worker, Attempt.claimed_at_us),
        *cols(Attempt.ended_at_us, Attempt.outcome, Attempt.cost_nanousd, Attempt.error),
    )
    .where(col(Attempt.namespace) == bindparam("namespace"))
    .order_by(*cols(Attempt.run_id, Attempt.position, Attempt.number))
)
_AVOIDED = select(func.coalesce(func.sum(col(Avoided.cost_nanousd)), 0)).where(
    col(Avoided.namespace) == bindparam("namespace")
)

StepKey = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A SIGKILL: its time in seconds since the epoch, and every process that it ended."""

    at_seconds: float
    pids: frozenset[int]


@dataclass(kw_only=True)
class Evidence:
    """The counts of one drill. All of ``repeated``, ``unaccounted`` and ``twice_accepted`` must be 0."""

    requests: int = 0
    steps: int = 0
    repeated: int = 0
    """Requests of a step that arrived after its accepted attempt had been committed."""
    unaccounted: int = 0
    """Requests beyond a step's attempts, and further attempts that are neither lost nor fenced nor released."""
    twice_accepted: int = 0
    lost: int = 0
    fenced: int = 0
    handed_back: int = 0
    recoveries_seconds: list[float] = field(default_factory=list)
    """Seconds from a kill to the next attempt's claim, for each step that a killed process held."""
    slowest_by_kill: dict[float, float] = field(default_factory=dict)
    """The longest of them for each kill, by the time of the kill."""
    spent_nanousd: int = 0
    avoided_nanousd: int = 0
    """What programs that start over after a crash would have paid again."""

    @property
    def holds(self) -> bool:
        """Whether nothing was repeated and everything is accounted for."""
        return self.repeated == 0 and self.unaccounted == 0 and self.twice_accepted == 0

    @property
    def starting_over_nanousd(self) -> int:
        """What the same work would have cost if each crash had made its runs start over."""
        return self.spent_nanousd + self.avoided_nanousd

    def recovery(self, quantile: float) -> float | None:
        """A quantile of the recoveries in seconds, ``None`` where there was none."""
        return _quantile(self.recoveries_seconds, quantile)

    def recovery_by_kill(self, quantile: float) -> float | None:
        """The same over kills, each of which counts once, by the last of its steps that continued."""
        return _quantile(self.slowest_by_kill.values(), quantile)

    def note_recovery(self, killed_at: float, seconds: float) -> None:
        """A step continued so long after a kill."""
        self.recoveries_seconds.append(seconds)
        self.slowest_by_kill[killed_at] = max(seconds, self.slowest_by_kill.get(killed_at, 0.0))


def _quantile(values: Iterable[float], quantile: float) -> float | None:
    ordered = sorted(values)
    return ordered[max(math.ceil(quantile * len(ordered)) - 1, 0)] if ordered else None


def gather_evidence(
    connection: Connection, requests: Sequence[Mapping[str, object]], kills: Sequence[Kill], *, namespace: str
) -> Evidence:
    """Compare the server's requests with the store's attempts. Expects both clocks to agree (one machine)."""
    evidence = Evidence(requests=len(requests))
    attempts: dict[StepKey, list[Attempt]] = {}
    for row in rows_of(Attempt, connection.execute(_ATTEMPTS, {"namespace": namespace})):
        attempts.setdefault((row.run_id, row.position), []).append(row)
        evidence.spent_nanousd += row.cost_nanousd or 0
    evidence.avoided_nanousd = int(connection.execute(_AVOIDED, {"namespace": namespace}).scalar_one() or 0)
    evidence.steps = len(attempts)
    seen: Counter[StepKey] = Counter()
    for request in requests:
        step = (str(request["run"]), int(str(request["step"])))
        seen[step] += 1
        accepted = next((row.ended_at_us for row in attempts.get(step, []) if row.outcome == "accepted"), None)
        if accepted is not None and float(str(request["arrived"])) * 1e6 > accepted:
            evidence.repeated += 1
    for step, tried in attempts.items():
        _count_outcomes(evidence, tried)
        evidence.unaccounted += max(seen[step] - len(tried), 0)
        _note_recoveries(evidence, tried, kills)
    evidence.unaccounted += sum(count for step, count in seen.items() if step not in attempts)
    return evidence


def _count_outcomes(evidence: Evidence, tried: Sequence[Attempt]) -> None:
    accepted = 0
    for row in tried:
        accepted += row.outcome == "accepted"
        evidence.lost += row.outcome == "lost"
        evidence.fenced += row.outcome == "fenced"
        handed_back = row.outcome == "cancelled" and "handed_back" in (row.error or "")
        evidence.handed_back += handed_back
        evidence.unaccounted += row.outcome != "accepted" and row.outcome not in BEYOND and not handed_back
    evidence.twice_accepted += max(accepted - 1, 0)


def _note_recoveries(evidence: Evidence, tried: Sequence[Attempt], kills: Sequence[Kill]) -> None:
    for attempt, successor in itertools.pairwise(tried):
        if attempt.outcome not in BEYOND:
            continue
        pid = process_of(attempt.worker)
        ended = [
            kill.at_seconds for kill in kills if pid in kill.pids and kill.at_seconds * 1e6 >= attempt.claimed_at_us
        ]
        if ended:
            evidence.note_recovery(min(ended), successor.claimed_at_us / 1e6 - min(ended))


def process_of(worker: str) -> int:
    """The process that made an attempt, from the worker's name ``host:pid:random``."""
    return int(worker.rsplit(":", 2)[1])
