"""What counts as repeated, unaccounted for and recovered."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from paidonce.drill.evidence import Evidence, Kill, gather_evidence
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database

SECOND = 1_000_000
HELD_BY_11, HELD_BY_12, HELD_BY_13 = "host:11:aaaaaa", "host:12:bbbbbb", "host:13:cccccc"


@pytest.fixture
def connection(sqlite_database: str) -> Iterator[Connection]:
    database = Database(sqlite_database)
    upgrade(database)
    with database.write() as connection:
        yield connection
    database.close()


def attempted(
    connection: Connection, number: int, worker: str, claimed: float, ended: float, outcome: str, error: str = ""
) -> None:
    """An attempt of step 1 of run r; times in seconds."""
    connection.execute(
        text(
            "INSERT INTO attempts (run_id, position, number, namespace, root_run_id, agent, step, worker, "
            "claimed_at_us, ended_at_us, outcome, error, calls, unpriced_calls, cost_nanousd) VALUES "
            "('r', 1, :number, 'n', 'r', 'a', 's', :worker, :claimed, :ended, :outcome, :error, 1, 0, 7)"
        ),
        {
            "number": number,
            "worker": worker,
            "claimed": int(claimed * SECOND),
            "ended": int(ended * SECOND),
            "outcome": outcome,
            "error": error,
        },
    )


def gathered(connection: Connection, arrivals: list[float], kills: list[Kill] | None = None) -> Evidence:
    requests = [{"run": "r", "step": 1, "arrived": arrived} for arrived in arrivals]
    return gather_evidence(connection, requests, kills or [], namespace="n")


def test_a_lost_attempt_before_the_accepted_one_holds(connection: Connection) -> None:
    attempted(connection, 1, HELD_BY_11, 100, 112, "lost")
    attempted(connection, 2, HELD_BY_12, 113, 114, "accepted")
    evidence = gathered(connection, [100.1, 113.1])
    assert evidence.holds
    assert (evidence.steps, evidence.requests, evidence.lost, evidence.spent_nanousd) == (1, 2, 1, 14)


def test_a_request_after_the_accepted_commit_is_a_repetition(connection: Connection) -> None:
    attempted(connection, 1, HELD_BY_11, 100, 101, "accepted")
    assert gathered(connection, [100.5, 101.5]).repeated == 1


def test_more_requests_than_attempts_are_not_accounted_for(connection: Connection) -> None:
    attempted(connection, 1, HELD_BY_11, 100, 103, "accepted")
    assert gathered(connection, [100.5, 101.5]).unaccounted == 1


def test_a_further_attempt_that_merely_failed_is_not_accounted_for(connection: Connection) -> None:
    attempted(connection, 1, HELD_BY_11, 100, 101, "failed")
    attempted(connection, 2, HELD_BY_12, 102, 103, "accepted")
    assert gathered(connection, [100.5, 102.5]).unaccounted == 1


def test_a_hand_back_is_neither_lost_nor_unaccounted_for(connection: Connection) -> None:
    attempted(connection, 1, HELD_BY_11, 100, 101, "cancelled", '{"code": "handed_back"}')
    attempted(connection, 2, HELD_BY_12, 102, 103, "accepted")
    evidence = gathered(connection, [100.5, 102.5])
    assert evidence.holds
    assert (evidence.handed_back, evidence.lost) == (1, 0)


def test_a_recovery_is_measured_from_the_kill_of_the_process_that_held_the_attempt(connection: Connection) -> None:
    attempted(connection, 1, HELD_BY_11, 100, 115, "lost")
    attempted(connection, 2, HELD_BY_12, 116, 117, "accepted")
    kills = [
        Kill(at_seconds=90, pids=frozenset({11})),
        Kill(at_seconds=104, pids=frozenset({10, 11})),
        Kill(at_seconds=110, pids=frozenset({13})),
    ]
    assert gathered(connection, [], kills).recoveries_seconds == [12.0]


def test_each_of_two_losses_of_one_step_is_a_recovery(connection: Connection) -> None:
    attempted(connection, 1, HELD_BY_11, 100, 112, "lost")
    attempted(connection, 2, HELD_BY_12, 113, 126, "lost")
    attempted(connection, 3, HELD_BY_13, 127, 128, "accepted")
    kills = [Kill(at_seconds=101, pids=frozenset({11})), Kill(at_seconds=114, pids=frozenset({12}))]
    evidence = gathered(connection, [], kills)
    assert evidence.recoveries_seconds == [12.0, 13.0]
    assert (evidence.recovery(0.5), evidence.recovery(0.99)) == (12.0, 13.0), "by the nearest rank"
