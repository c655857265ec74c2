"""The final report of a crash drill: one JSON document, or lines for people."""

from __future__ import annotations

from paidonce.drill.crash import CrashReport
from paidonce_models.money import decimal_usd_string, usd_string


def crash_document(report: CrashReport) -> dict[str, object]:
    """For machines. Money in US dollars as strings, times in seconds; ``null`` where nothing was recovered."""
    evidence = report.evidence
    return {
        "holds": report.holds,
        "runs": report.runs,
        "runs_succeeded": report.succeeded,
        "kills": report.kills,
        "seconds": round(report.seconds, 3),
        "steps": evidence.steps,
        "requests": evidence.requests,
        "finished_steps_repeated": evidence.repeated,
        "requests_unaccounted": evidence.unaccounted,
        "steps_accepted_twice": evidence.twice_accepted,
        "attempts_lost": evidence.lost,
        "attempts_fenced": evidence.fenced,
        "recoveries": len(evidence.recoveries_seconds),
        "recovery_p50_seconds": _rounded(evidence.recovery(0.5)),
        "recovery_p99_seconds": _rounded(evidence.recovery(0.99)),
        "recovery_worst_seconds": _rounded(evidence.recovery(1.0)),
        "spent_usd": decimal_usd_string(evidence.spent_nanousd),
        "starting_over_usd": decimal_usd_string(evidence.starting_over_nanousd),
    }


def crash_lines(report: CrashReport) -> list[str]:
    """For people, aligned in two columns."""
    evidence = report.evidence
    rows = [
        ("runs finished", f"{report.succeeded} of {report.runs} in {report.seconds:.1f} s, {report.kills} kills"),
        ("finished steps repeated", f"{evidence.repeated} (must be 0)"),
        ("steps paid", f"{evidence.steps}, {evidence.requests} requests counted by the server"),
        ("unfinished attempts lost", str(evidence.lost)),
        ("attempts fenced", str(evidence.fenced)),
        ("recovery p50", _seconds(evidence.recovery(0.5))),
        ("recovery p99", _seconds(evidence.recovery(0.99))),
        ("recovery at worst", _seconds(evidence.recovery(1.0))),
        ("the bill", usd_string(evidence.spent_nanousd)),
        ("starting over would have cost", usd_string(evidence.starting_over_nanousd)),
    ]
    if evidence.unaccounted or evidence.twice_accepted:
        rows.append(("unaccounted for", f"{evidence.unaccounted} (must be 0)"))
        rows.append(("steps accepted twice", f"{evidence.twice_accepted} (must be 0)"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _seconds(seconds: float | None) -> str:
    return "nothing had to be recovered" if seconds is None else f"{seconds:.1f} s after the kill"
