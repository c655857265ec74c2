"""The benchmark of the cost queries: its data settles, and its marks are judged by the slowest question."""

from __future__ import annotations

from benchmarks.ledger import judge, measure
from paidonce_models.database.transactions import Database


def test_every_question_is_asked_of_generated_calls(database_url: str) -> None:
    lines = list(measure(Database(database_url), 1_000, 1))
    (rolled,) = [line for line in lines if line["act"] == "roll up"]
    assert 900 <= int(str(rolled["rolled_up"])) < 1_000, "what is under way or lost stays out"
    rows = {line["by"]: line["rows"] for line in lines if line["act"] == "ask"}
    assert (rows["agent"], rows["step"], rows["run"]) == (5, 4, 50)
    assert set(rows) >= {"agent,step", "cause,day", "tag:customer"}


def test_the_slowest_question_decides() -> None:
    lines = [
        {"store": "sqlite", "act": "ask", "by": "agent", "ms_median": 20.0},
        {"store": "sqlite", "act": "ask", "by": "run", "ms_median": 501.0},
        {"store": "sqlite", "act": "ask", "by": "run,cause", "ms_median": 900.0},
        {"store": "postgresql", "act": "ask", "by": "agent", "ms_median": 20.0},
    ]
    kept = {str(verdict["mark"]).split(":")[0]: verdict["kept"] for verdict in judge(lines)}
    assert kept == {"ledger on sqlite": False, "ledger on postgresql": True}
