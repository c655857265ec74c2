"""The breakers' benchmark: its marks, and a small run of it."""

import json

from click.testing import CliRunner

from benchmarks.breakers import judge, main
from tests.services.valkey import RedisServer


def test_the_slowest_guarded_call_is_held_against_the_mark() -> None:
    lines: list[dict[str, object]] = [
        {"case": "def, unguarded", "us_p50": 0.2, "commands_per_call": 0.0},
        {"case": "def, guarded", "us_p50": 400.0, "commands_per_call": 2.0},
        {"case": "step: admit and report", "us_p50": 1200.0, "commands_per_call": 2.0},
        {"case": "async def, guarded", "us_p50": 700.0, "commands_per_call": 2.5},
    ]
    time, commands = judge(lines)
    assert (time["value"], time["kept"]) == (1200.0, False)
    assert (commands["value"], commands["kept"]) == (2.5, False)


def test_a_guarded_call_costs_two_commands_at_most(redis_server: RedisServer) -> None:
    """Not how long it takes: that says nothing on a machine that is busy with tests."""
    done = CliRunner().invoke(main, ["--url", redis_server.url(), "--calls", "160", "--json"], catch_exceptions=False)
    rows = {row["case"]: row for row in map(json.loads, done.output.splitlines()) if "case" in row}
    assert rows["def, unguarded"]["commands_per_call"] == 0
    for case in ("def, guarded", "step: admit and report", "async def, guarded"):
        assert 1 <= rows[case]["commands_per_call"] <= 2, case  # one while the circuit is known to be closed
