"""How many submissions are cut into chunks, and what a caller learns of a call that stops in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pytest

from paidonce.runs.many_submissions import CHUNK_BYTES, CHUNK_SUBMISSIONS, Chunk, Submission, submit_in_chunks
from paidonce.runs.new_run import new_run
from paidonce.settings import Settings
from paidonce_models.errors import (
    InvalidInput,
    KeyConflict,
    PaidonceError,
    StatementRefused,
    StoreError,
    StoreUnavailable,
)
from paidonce_models.store.runs.submission import NewRun, Outcome, Submitted

SETTINGS = Settings.model_construct()


class Keeper:
    """A store that remembers its chunks, knows some keys, and is away for one chunk."""

    def __init__(
        self, *, conflicts: Sequence[str] = (), away_at: int | None = None, error: StoreError | None = None
    ) -> None:
        self.chunks: list[list[NewRun]] = []
        self._conflicts = conflicts
        self._away_at = away_at
        self._error = error or StoreUnavailable("the store is away", hint=1)

    def make_run(self, given: Submission) -> NewRun:
        return new_run(
            SETTINGS, "a", given.input, key=given.key, tags=given.tags, priority=given.priority, queue=given.queue
        )

    def store(self, chunk: Chunk) -> list[Outcome]:
        if len(self.chunks) == self._away_at:
            raise self._error
        self.chunks.append(list(chunk.runs))
        return [
            KeyConflict("taken", run_id="other")
            if new.key in self._conflicts
            else Submitted(run_id=str(new.run_id), created=True, queue=new.queue, priority=new.priority)
            for new in chunk.runs
        ]

    def submit(self, submissions: Any) -> list[Submitted]:
        return submit_in_chunks(submissions, self.make_run, self.store)

    def refused(self, submissions: Any) -> PaidonceError:
        with pytest.raises(PaidonceError) as refused:
            self.submit(submissions)
        return refused.value

    @property
    def sizes(self) -> list[int]:
        return [len(chunk) for chunk in self.chunks]


def keyed(*keys: str | None, value: object = 1) -> list[Submission]:
    return [Submission(input={"value": value}, key=key) for key in keys]


def test_chunks_are_full_but_for_the_last_and_results_are_in_order() -> None:
    keeper = Keeper()
    submitted = keeper.submit({"n": number} for number in range(2 * CHUNK_SUBMISSIONS + 3))
    assert keeper.sizes == [CHUNK_SUBMISSIONS, CHUNK_SUBMISSIONS, 3]
    assert [each.run_id for each in submitted] == [new.run_id for chunk in keeper.chunks for new in chunk]


def test_submissions_are_read_no_further_than_a_chunk() -> None:
    keeper = Keeper()

    def given() -> Iterator[Mapping[str, object]]:
        for number in range(3 * CHUNK_SUBMISSIONS):
            assert number <= CHUNK_SUBMISSIONS * (len(keeper.chunks) + 1)
            yield {"n": number}

    keeper.submit(given())


def test_a_large_submission_is_a_chunk_of_its_own() -> None:
    keeper = Keeper()
    large = Random(1).randbytes(CHUNK_BYTES).hex()  # compressed, it has half of that
    keeper.submit([{"n": 1}, {"n": large}, {"n": 2}, {"n": 3}])
    assert keeper.sizes == [1, 1, 2]


def test_nothing_is_submitted_for_no_submissions() -> None:
    keeper = Keeper()
    assert keeper.submit([]) == [] and keeper.chunks == []


def test_the_same_key_within_a_call_is_one_run() -> None:
    keeper = Keeper()
    first, second, again = keeper.submit(keyed("k", "l", "k"))
    assert again.run_id == first.run_id != second.run_id and keeper.sizes == [2]
    assert [each.created for each in (first, second, again)] == [True, True, False]


def test_another_input_under_the_same_key_is_for_the_store_to_refuse() -> None:
    keeper = Keeper()
    keeper.submit(keyed("k", "l") + keyed("k", value=2) + keyed("m"))
    assert [[new.key for new in chunk] for chunk in keeper.chunks] == [["k", "l"], ["k", "m"]]


def test_bad_input_names_its_place_and_those_before_it_are_submitted() -> None:
    keeper = Keeper()
    error = keeper.refused([*keyed("a", "b"), Submission(input={"value": 1}, key="c", priority=10), *keyed("d")])
    assert isinstance(error, InvalidInput)
    assert error.message.startswith("submissions[2] (key 'c'): priority 10")
    assert "those before it are submitted, none after it is" in error.message
    assert [new.key for chunk in keeper.chunks for new in chunk] == ["a", "b"]
    assert (error.details["index"], error.details["key"]) == (2, "c")
    assert error.details["run_ids"] == [new.run_id for new in keeper.chunks[0]]


@pytest.mark.parametrize("given", ["text", 3, None, ["a"]])
def test_what_is_no_submission_is_refused_by_its_place(given: object) -> None:
    error = Keeper().refused([{"n": 1}, given])
    assert isinstance(error, InvalidInput) and error.message.startswith("submissions[1]: expected a Submission")


def test_arguments_given_instead_of_a_list_of_them_are_refused() -> None:
    assert "submissions[0]: expected a Submission" in Keeper().refused({"topic": "tabs"}).message


def test_a_conflict_is_told_with_what_else_was_submitted() -> None:
    keeper = Keeper(conflicts=["b"])
    error = keeper.refused(keyed("a", "b", "c"))
    assert isinstance(error, KeyConflict)
    assert error.message == (
        "submissions[1] (key 'b'): taken; those before it are submitted, none after submissions[2] is"
    )
    first, second, third = keeper.chunks[0]
    assert error.details["run_ids"] == [first.run_id, None, third.run_id]
    assert (error.details["index"], error.details["run_id"]) == (1, "other")
    assert second.key == "b"


def test_a_chunk_that_may_not_be_stored_is_told_with_what_is() -> None:
    keeper = Keeper(away_at=1)
    error = keeper.refused({"n": number} for number in range(CHUNK_SUBMISSIONS + 10))
    assert isinstance(error, StoreUnavailable)
    assert f"submissions[{CHUNK_SUBMISSIONS}]: the store is away" in error.message
    assert f"up to submissions[{CHUNK_SUBMISSIONS + 9}]" in error.message
    assert len(error.details["run_ids"]) == CHUNK_SUBMISSIONS  # type: ignore[arg-type]
    assert error.details["index"] == CHUNK_SUBMISSIONS and error.details["hint"] == 1


def test_a_chunk_that_the_store_refuses_is_not_told_to_be_submitted_again() -> None:
    keeper = Keeper(away_at=1, error=StatementRefused("the store refuses it"))
    error = keeper.refused({"n": number} for number in range(CHUNK_SUBMISSIONS + 1))
    assert error.message.startswith(
        f"submissions[{CHUNK_SUBMISSIONS}]: the store refuses it; it or another of its chunk"
    )
    assert error.details["run_ids"] == [new.run_id for new in keeper.chunks[0]]


def test_only_submissions_without_a_queue_get_the_agents() -> None:
    chunk = Chunk()
    for given in (Submission(), Submission(queue="own")):
        chunk.add(new_run(SETTINGS, "a", {}, queue=given.queue), is_routed=given.queue is not None)
    chunk.route(lambda: "paidonce.brains")
    assert [new.queue for new in chunk.runs] == ["paidonce.brains", "paidonce.own"]
    routed = Chunk()
    routed.add(new_run(SETTINGS, "a", {}, queue="own"), is_routed=True)
    routed.route(lambda: pytest.fail("nothing here needs to be looked up"))
