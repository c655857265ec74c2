"""What to record of an attempt whose end the store refuses because of its data, not because of the store's state.

Owns the fallbacks: the completion as it is; blocked with its result kept; the same without the calls, which are written
one by one; without any data but the reason, and with all that was spent; without these and the calls. A body that was
paid for is not executed again for this, and its thread does not retry for ever. A store that refuses even the plainest
form is itself broken, whatever it reports: wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from paidonce.user_errors import error_of
from paidonce.values.kept import Kept, keep_encoded
from paidonce_models.database.transactions import Database
from paidonce_models.errors import ResultNotStorable, StatementRefused, StoreUnavailable
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.blocking.blocked_steps import ENCODED
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.completion import Completion
from paidonce_models.usage import CallRecord
from paidonce_workers.bodies.blocked_attempts import BlockedAttempt
from paidonce_workers.execution.store_waits import insist

R = TypeVar("R")

log = logging.getLogger(__name__)


def record_in_some_form(record: Callable[[Completion], R], completion: Completion, database: Database) -> R:
    """Record the completion in the first form that the store accepts. Raises ``StoreUnreachable``: try again later."""
    claim = completion.claim
    refusal: StatementRefused | None = None
    for form_of in (_as_it_is, _as_kept, _as_kept_without_calls, _plainly, _without_calls):
        form = form_of(completion, refusal)
        if form is None:
            continue
        try:
            result = insist(partial(record, form))
        except StatementRefused as error:
            refusal = error
            continue
        if refusal is not None:
            log.error(
                "step %d of run %s: attempt %d could not be recorded as it ended and is recorded as %s: %s",
                claim.position,
                claim.run_id,
                claim.attempt,
                form.outcome.value,
                refusal.message,
                extra={"event": "completion_refused", "run_id": claim.run_id, "step": claim.position},
            )
            if completion.calls and not form.calls:
                _write_calls_singly(database, claim, completion.calls)
        return result
    why = "" if refusal is None else refusal.message
    raise StoreUnavailable(f"the store refuses every end of step {claim.position} of run {claim.run_id}: {why}")


def _as_it_is(completion: Completion, _: StatementRefused | None) -> Completion | None:
    return completion


def _as_kept(completion: Completion, refusal: StatementRefused | None) -> Completion | None:
    """A refused result was paid for: block the step with it. A retry would pay for it, and have it refused, again."""
    if not completion.succeeded or completion.result_json is None:
        return None
    return _blocked(completion, refusal, keep_encoded(completion.result_json))


def _as_kept_without_calls(completion: Completion, refusal: StatementRefused | None) -> Completion | None:
    """It may be one of the calls that is refused: that must not cost the result."""
    kept = _as_kept(completion, refusal)
    return None if kept is None or not completion.calls else replace(kept, calls=())


def _plainly(completion: Completion, refusal: StatementRefused | None) -> Completion | None:
    """Without the data of its end, whatever that was."""
    if completion.succeeded:
        return _blocked(completion, refusal, None)
    if completion.blocking is not None:
        return replace(completion, blocking=replace(completion.blocking, kept=None))
    error = (StatementRefused() if refusal is None else refusal).to_json()
    return replace(completion, result=None, result_json=None, error=error, traceback=None)


def _blocked(completion: Completion, refusal: StatementRefused | None, kept: Kept | None) -> Completion:
    claim = completion.claim
    why = "" if refusal is None else refusal.message
    holds = "The result is kept" if kept is not None else "The result could not be kept either"
    error = ResultNotStorable(
        f"step {claim.position} ({claim.name}) of run {claim.run_id} returned what the store refuses: {why} "
        f"{holds}; "
        "repair the store and restart a worker, or supply the step's outcome with `paidonce resolve`",
        step=claim.position,
    )
    blocked = BlockedAttempt(reason=error.code, error=error_of(error), form=ENCODED, kept=kept)
    return replace(
        completion,
        outcome=AttemptOutcome.BLOCKED,
        result=None,
        result_json=None,
        error=blocked.error,
        traceback=None,
        blocking=blocked.blocking(None),
    )


def _without_calls(completion: Completion, refusal: StatementRefused | None) -> Completion | None:
    plain = _plainly(completion, refusal)
    return None if plain is None or not completion.calls else replace(plain, calls=())


def record_with_calls(
    database: Database, claim: Claim, calls: Sequence[CallRecord], write: Callable[[Connection], R]
) -> R:
    """Write an attempt's end and its calls in one transaction; if the calls are refused, write them separately.

    Raises ``StoreUnreachable``: try again later.
    """

    def write_all(connection: Connection) -> R:
        result = write(connection)
        insert_calls(connection, claim, calls)
        return result

    try:
        return insist(partial(database.transact, write_all))
    except StatementRefused:
        if not calls:
            raise
    result = insist(partial(database.transact, write))
    _write_calls_singly(database, claim, calls)
    return result


def _write_calls_singly(database: Database, claim: Claim, calls: Sequence[CallRecord]) -> None:
    """Write each call separately; a refused one is logged with its numbers. Raises ``StoreUnreachable``."""
    for call in calls:
        try:
            database.transact(lambda connection, call=call: insert_calls(connection, claim, [call]))  # type: ignore[misc]
        except StatementRefused as error:
            log.error(
                "a call of step %d of run %s is not in the ledger (cost %s nano-dollars, %s tokens in, %s out): %s",
                claim.position,
                claim.run_id,
                call.cost_nanousd,
                call.input_tokens,
                call.output_tokens,
                error.message,
                extra={"event": "call_refused", "run_id": claim.run_id, "step": claim.position},
            )
