"""The marks of the benchmarks, judged on lines made by hand."""

from __future__ import annotations

from benchmarks.marks import judge


def line(workload: str, system: str, **values: object) -> dict[str, object]:
    return {"workload": workload, "system": system, "variant": "v", "case": "c", **values}


def test_a_mark_needs_both_of_its_sides() -> None:
    assert judge([line("W1", "paidonce", steps_per_second=300)]) == []


def test_throughput_is_judged_against_each_variant_of_the_plain_chain() -> None:
    verdicts = judge(
        [
            line("W1", "plain-celery", steps_per_second=480, variant="prefork 2"),
            line("W1", "plain-celery", steps_per_second=620, variant="threads 2 x 16"),
            line("W1", "paidonce", steps_per_second=300),
        ]
    )
    assert [(verdict["value"], verdict["kept"]) for verdict in verdicts] == [(0.625, True), (0.484, False)]


def test_what_a_step_has_with_it_lowers_its_share() -> None:
    verdicts = judge(
        [
            line("W1", "plain-celery", steps_per_second=600),
            *(
                line("W1", "paidonce", steps_per_second=280, case=f"no-op{more}")
                for more in ("", ", a call recorded in each", ", a call recorded in each and a breaker on each")
            ),
        ]
    )
    assert [(verdict["at_least"], verdict["kept"]) for verdict in verdicts] == [
        (0.6, False),
        (0.5, False),
        (0.45, True),
    ]


def test_long_runs_fan_outs_and_moves_are_judged_against_their_small_case() -> None:
    verdicts = judge(
        [
            line("W3", "paidonce", steps=100, wall_ms_per_step=4.0),
            line("W3", "paidonce", steps=5000, wall_ms_per_step=5.0),
            line("W4", "paidonce", case="1 x 2000 over 2 processes", cpu_ms_per_step=4.0),
            line("W4", "paidonce", case="1 x 2000 over 8 processes", cpu_ms_per_step=9.0),
            line("W5", "paidonce", steps=500, wall_ms_per_step=2.0),
            line("W5", "paidonce", steps=5000, wall_ms_per_step=20.0),
        ]
    )
    assert [(verdict["value"], verdict["kept"]) for verdict in verdicts] == [(1.25, True), (10.0, False), (2.25, False)]


def test_a_growing_conversation_is_judged_by_bytes_and_by_its_late_turns() -> None:
    verdicts = judge(
        [
            line(
                "W6",
                "paidonce",
                steps=200,
                result_bytes=8192,
                stored_bytes=200 * 8192 * 2,
                early_turn_ms=10.0,
                late_turn_ms=16.0,
            )
        ]
    )
    assert [(verdict["value"], verdict["kept"]) for verdict in verdicts] == [(2.0, True), (1.6, False)]
