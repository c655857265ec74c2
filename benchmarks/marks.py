"""Whether the measured lines keep the marks that the project set itself. Pure: lines in, verdicts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.workloads import PAIDONCE, PLAIN_CELERY

Line = Mapping[str, object]


def judge(lines: Sequence[Line]) -> list[dict[str, object]]:
    """One verdict per mark whose two sides were measured: a value, its limit and whether it is kept.

    W1 and W2 are judged against every variant of the plain chain that ran, so that no choice of pool flatters us.
    ``cpu_ratio`` is the same comparison in CPU per step, which other work on the machine disturbs far less.
    """
    verdicts: list[dict[str, object]] = []

    def at_least(mark: str, value: float, limit: float, **more: object) -> None:
        verdicts.append({"mark": mark, "value": round(value, 3), "at_least": limit, "kept": value >= limit, **more})

    def at_most(mark: str, value: float, limit: float, **more: object) -> None:
        verdicts.append({"mark": mark, "value": round(value, 3), "at_most": limit, "kept": value <= limit, **more})

    for ours in _of(lines, "W1", PAIDONCE):
        for plain in _of(lines, "W1", PLAIN_CELERY):
            ratio = _number(ours, "steps_per_second") / _number(plain, "steps_per_second")
            what, limit = _first_workload(str(ours["case"]))
            at_least(f"{what} over plain Celery {plain['variant']}", ratio, limit, **_cpu_ratio(ours, plain))
    for ours in _of(lines, "W2", PAIDONCE):
        for plain in _of(lines, "W2", PLAIN_CELERY):
            ratio = _number(ours, "wall_seconds") / _number(plain, "wall_seconds")
            at_most(f"W2 wall over plain Celery {plain['variant']}", ratio, 1.5, **_cpu_ratio(ours, plain))
    for workload in ("W3", "W5"):
        measured = sorted(_of(lines, workload, PAIDONCE), key=lambda line: _number(line, "steps"))
        if len(measured) > 1:
            small, large = measured[0], measured[-1]
            ratio = _number(large, "wall_ms_per_step") / _number(small, "wall_ms_per_step")
            mark = f"{workload} time per step at {large['steps']} over {small['steps']}"
            at_most(mark, ratio, 1.3, **_cpu_ratio(large, small))
    spread = {str(line["case"]): _number(line, "cpu_ms_per_step") for line in _of(lines, "W4", PAIDONCE)}
    for wide, narrow in (
        ("over 8 processes", "over 2 processes"),
        ("over 8 processes, each step over the broker", "over 2 processes"),
        ("cache 50", "cache 1000"),
    ):
        costs = [cpu for end in (wide, narrow) for case, cpu in spread.items() if case.endswith(end)]
        if len(costs) == 2:
            at_most(f"W4 CPU per step, {wide} against {narrow}", costs[0] / costs[1], 2.0)
    for ours in _of(lines, "W6", PAIDONCE):
        if "stored_bytes" in ours:
            at_most("W6 stored bytes over unique content", _number(ours, "stored_bytes") / _unique_bytes(ours), 3.0)
        if "late_turn_ms" in ours:
            at_most("W6 a late turn over turn 10", _number(ours, "late_turn_ms") / _number(ours, "early_turn_ms"), 1.5)
    return verdicts


def _first_workload(case: str) -> tuple[str, float]:
    """What a case of W1 shows, and its share of the plain chain's steps per second."""
    if "breaker" in case:
        return "W1 with a recorded call and a breaker per step, steps/s", 0.45
    if "call recorded" in case:
        return "W1 with a recorded call per step, steps/s", 0.5
    return "W1 steps/s", 0.6


def _cpu_ratio(line: Line, against: Line) -> dict[str, object]:
    if "cpu_ms_per_step" not in line or "cpu_ms_per_step" not in against:
        return {}
    return {"cpu_ratio": round(_number(line, "cpu_ms_per_step") / _number(against, "cpu_ms_per_step"), 3)}


def _of(lines: Sequence[Line], workload: str, system: str) -> list[Line]:
    return [line for line in lines if line.get("workload") == workload and line.get("system") == system]


def _unique_bytes(line: Line) -> float:
    return _number(line, "steps") * _number(line, "result_bytes")


def _number(line: Line, name: str) -> float:
    value = line[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} of a line must be a number, found {value!r}")
    return float(value)
