"""Many submissions in one call: cut into chunks, each stored by a commit of its own.

Owns what a caller learns of a call that stops in the middle: the error is that of a single submission, names the one
it is about, and ``details["run_ids"]`` has the run of every submission that was handled. Never touches the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from paidonce_models.errors import InvalidInput, KeyConflict, PaidonceError, StatementRefused, StoreError
from paidonce_models.payloads.json_values import shown
from paidonce_models.store.runs.submission import NewRun, Outcome, Submitted

CHUNK_SUBMISSIONS: Final = 500
CHUNK_BYTES: Final = 4 * 2**20
"""What the inputs and tags of a chunk may have together; a larger submission is a chunk of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One run to submit. ``input`` are the agent's arguments by name; the rest is as in ``Client.submit``."""

    input: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    tags: Mapping[str, str] | None = None
    priority: int = 5
    queue: str | None = None


class Chunk:
    """Submissions that are stored together. Those of the same key share a run."""

    def __init__(self) -> None:
        self.runs: list[NewRun] = []
        self.places: list[int] = []
        """For each submission the place of its run."""
        self._unrouted: list[int] = []
        self._by_key: dict[str, int] = {}
        self._bytes = 0

    def has_room_for(self, new: NewRun) -> bool:
        """Whether it can be stored with the others: another input under the same key is for the store to refuse."""
        if not self.runs:
            return True
        same = None if new.key is None else self._by_key.get(new.key)
        if same is not None and self.runs[same].input_sha256 != new.input_sha256:
            return False
        return len(self.places) < CHUNK_SUBMISSIONS and self._bytes + _bytes_of(new) <= CHUNK_BYTES

    def add(self, new: NewRun, *, is_routed: bool) -> None:
        """Add a submission; one that is not routed starts on the queue that is registered for its agent."""
        place = len(self.runs) if new.key is None else self._by_key.setdefault(new.key, len(self.runs))
        self.places.append(place)
        if place < len(self.runs):
            return
        self.runs.append(new)
        self._bytes += _bytes_of(new)
        if not is_routed:
            self._unrouted.append(place)

    def route(self, queue_of: Callable[[], str]) -> None:
        """Set the queue of those that have none. It is read last, because a chunk may take long to fill."""
        if not self._unrouted:
            return
        queue = queue_of()
        for place in self._unrouted:
            if self.runs[place].queue != queue:
                self.runs[place] = replace(self.runs[place], queue=queue)


def submit_in_chunks(
    submissions: Iterable[Submission | Mapping[str, Any]],
    make_run: Callable[[Submission], NewRun],
    store: Callable[[Chunk], Sequence[Outcome]],
) -> list[Submitted]:
    """Store all submissions, in order. Stops at the first that is refused: those before it are stored.

    Raises what a single submission raises, with ``index``, ``key`` and ``run_ids`` in its details.
    """
    done: list[Submitted | None] = []
    chunk = Chunk()
    for index, given in enumerate(submissions):
        try:
            submission = _submission_of(given)
            new = make_run(submission)
        except InvalidInput as error:
            _store(chunk, store, done)
            raise _about(error, index, given, done, "those before it are submitted, none after it is") from error
        if not chunk.has_room_for(new):
            _store(chunk, store, done)
            chunk = Chunk()
        chunk.add(new, is_routed=submission.queue is not None)
    _store(chunk, store, done)
    return [submitted for submitted in done if submitted is not None]


def _store(chunk: Chunk, store: Callable[[Chunk], Sequence[Outcome]], done: list[Submitted | None]) -> None:
    if not chunk.runs:
        return
    first = len(done)
    try:
        outcomes = store(chunk)
    except StatementRefused as error:
        raise _about(error, first, None, done, "it or another of its chunk; those before it are submitted") from error
    except StoreError as error:
        last = first + len(chunk.places) - 1
        raise _about(
            error,
            first,
            None,
            done,
            f"those before it are submitted; of it and those up to submissions[{last}] nobody knows: "
            "submit them again, with the same keys",
        ) from error
    seen: set[int] = set()
    for place in chunk.places:
        outcome = outcomes[place]
        if isinstance(outcome, Submitted) and place in seen:
            outcome = replace(outcome, created=False)
        seen.add(place)
        done.append(outcome if isinstance(outcome, Submitted) else None)
    for index, place in enumerate(chunk.places, start=first):
        conflict = outcomes[place]
        if isinstance(conflict, KeyConflict):
            key = chunk.runs[place].key
            raise _about(
                conflict,
                index,
                Submission(key=key),
                done,
                f"those before it are submitted, none after submissions[{len(done) - 1}] is",
            ) from conflict


def _submission_of(given: object) -> Submission:
    if isinstance(given, Submission):
        return given
    if isinstance(given, Mapping):
        return Submission(input=given)
    raise InvalidInput(
        f"expected a Submission, or the agent's arguments by name, found {type(given).__name__} {shown(given)}"
    )


def _about(
    error: PaidonceError, index: int, given: object, done: Sequence[Submitted | None], rest: str
) -> PaidonceError:
    key = given.key if isinstance(given, Submission) else None
    which = f"submissions[{index}]" if key is None else f"submissions[{index}] (key {shown(key)})"
    run_ids = [None if submitted is None else submitted.run_id for submitted in done]
    details = {**error.details, "index": index, "key": key, "run_ids": run_ids}
    return type(error)(f"{which}: {error.message}; {rest}", **details)


def _bytes_of(new: NewRun) -> int:
    return sum(len(row.inline) for row in new.input.rows) + sum(len(name) + len(new.tags[name]) for name in new.tags)
