"""What must hold in an outage drill, and its final report: one JSON document, or lines for people."""

from __future__ import annotations

from dataclasses import dataclass

from paidonce.drill.outage import BREAKER, OutageDrill, Side
from paidonce_models.money import decimal_usd_string, usd_string

SLACK_SECONDS = 3.0
"""Seconds between the time that a probe is due and the end of the run that it releases."""
SLOWEST_BYSTANDER = 1.5
"""Factor over its own pace before the outage; plus half a second for a single run on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class OutageReport:
    """The two sides; ``without`` is ``None`` if only the breaker was requested."""

    drill: OutageDrill
    protected: Side
    without: Side | None

    @property
    def tool_calls_allowed(self) -> int:
        """The failures that trip, the calls in flight then, and one probe for each time that the circuit was open."""
        in_flight = self.drill.workers * self.drill.concurrency
        return BREAKER.consecutive_failures + in_flight + probes_at_most(self.drill.seconds)

    @property
    def first_allowed_seconds(self) -> float:
        """A probe interval and a margin, in which the first run must finish after the tool is back."""
        return BREAKER.open_cap_seconds * (1 + BREAKER.open_jitter) + SLACK_SECONDS

    @property
    def faults(self) -> list[str]:
        """What does not hold."""
        side, found = self.protected, []
        if side.tool_calls_while_down > self.tool_calls_allowed:
            found.append(
                f"{side.tool_calls_while_down} tool calls while it was down, at most {self.tool_calls_allowed}"
            )
        if side.model_calls_about_failures:
            found.append(f"{side.model_calls_about_failures} model calls about a tool that was down, must be 0")
        if side.answered < side.runs:
            found.append(f"{side.runs - side.answered} runs without their full result")
        first = side.first_finished_seconds
        if first is None or first > self.first_allowed_seconds:
            found.append(f"the first run finished {_seconds(first)} after, at most {self.first_allowed_seconds:.1f} s")
        slowest = SLOWEST_BYSTANDER * side.bystander_before_seconds + 0.5
        if side.bystander_while_down_seconds > slowest:
            found.append(f"others took {side.bystander_while_down_seconds:.1f} s meanwhile, at most {slowest:.1f} s")
        return found


def probes_at_most(seconds: float) -> int:
    """How often a circuit can be probed in so long, if each open time is as short as the jitter allows."""
    passed, probes, open_seconds = 0.0, 0, BREAKER.open_base_seconds
    while passed < seconds:
        passed += open_seconds * (1 - BREAKER.open_jitter)
        probes += 1
        open_seconds = min(open_seconds * 2, BREAKER.open_cap_seconds)
    return probes


def outage_document(report: OutageReport) -> dict[str, object]:
    """For machines. Money in US dollars as strings, times in seconds."""
    return {
        "holds": not report.faults,
        "faults": report.faults,
        "tool_calls_allowed": report.tool_calls_allowed,
        "first_finished_allowed_seconds": round(report.first_allowed_seconds, 3),
        "with_breaker": _side(report.protected),
        "without_breaker": None if report.without is None else _side(report.without),
    }


def _side(side: Side) -> dict[str, object]:
    return {
        "runs": side.runs,
        "runs_answered": side.answered,
        "tool_calls_while_down": side.tool_calls_while_down,
        "model_calls_about_failures": side.model_calls_about_failures,
        "model_calls": side.model_calls,
        "spent_usd": decimal_usd_string(side.spent_nanousd),
        "first_finished_seconds": _rounded(side.first_finished_seconds),
        "all_finished_seconds": _rounded(side.all_finished_seconds),
        "bystander_before_seconds": round(side.bystander_before_seconds, 3),
        "bystander_while_down_seconds": round(side.bystander_while_down_seconds, 3),
    }


def outage_lines(report: OutageReport) -> list[str]:
    """For people: a column for each side."""
    sides = [report.protected, *([] if report.without is None else [report.without])]
    rows = [
        ("", *("with the breaker" if side.has_breaker else "without it" for side in sides)),
        ("runs with their full result", *(f"{side.answered} of {side.runs}" for side in sides)),
        ("tool calls while it was down", *(f"{side.tool_calls_while_down:,}" for side in sides)),
        ("model calls about its failures", *(f"{side.model_calls_about_failures:,}" for side in sides)),
        ("model calls in all", *(f"{side.model_calls:,}" for side in sides)),
        ("the bill", *(usd_string(side.spent_nanousd) for side in sides)),
        ("first run finished after it was back", *(_seconds(side.first_finished_seconds) for side in sides)),
        ("last run finished after it was back", *(_seconds(side.all_finished_seconds) for side in sides)),
        (
            "a run of others, before and meanwhile",
            *(f"{side.bystander_before_seconds:.1f} s, {side.bystander_while_down_seconds:.1f} s" for side in sides),
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"At most {report.tool_calls_allowed} tool calls were allowed while it was down.")
    return [*lines, *(f"Does not hold: {fault}" for fault in report.faults)]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"
