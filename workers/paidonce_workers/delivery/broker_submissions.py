"""Submissions that arrive through the broker: durable once the task ends; bad input becomes a ``failed`` run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from paidonce.runs.new_run import is_alias, is_name, new_run
from paidonce.runs.tags import checked_tags
from paidonce.stored_texts import MAX_ALIAS_CHARACTERS
from paidonce.user_errors import error_of
from paidonce_models.errors import InvalidInput, KeyConflict, PaidonceError, StatementRefused, StoreUnreachable
from paidonce_models.payloads.encoding import canonical_sha256, encode_json
from paidonce_models.payloads.json_values import shown
from paidonce_models.payloads.payload_parts import split
from paidonce_models.privacy.log_texts import failure_of, loggable
from paidonce_models.queues import (
    DEFAULT_QUEUE,
    EXPECTED_NAMESPACE,
    SUBMIT_QUEUE,
    broker_queue_name,
    is_namespace,
)
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.recovery.workers import queue_of_agent
from paidonce_models.store.runs.submission import NewRun, Submitted, submit_failed_run, submit_run
from paidonce_workers.execution.store_waits import WorkerStopping
from paidonce_workers.process.worker_process import WorkerProcess

log = logging.getLogger(__name__)

PARAMETERS = ("agent", "input", "key", "tags", "priority", "queue", "namespace")
POSITIONAL = 4
"""How many of its arguments may be positional."""
LONGEST_KEPT_BODY = 10_000
"""Characters kept of a body that cannot be read, for whoever looks for the mistake."""
PAUSES_SECONDS: Final = (0.2, 1.0, 3.0)
"""Pauses in seconds after an unexpected error, before the submission is tried again; after the last it is refused."""
EXPECTED_BODY = '[[], {"agent": "NAME", "input": {"ARGUMENT": "VALUE"}}, {}]'


class SubmissionNotTaken(PaidonceError):
    """A submission failed with an unexpected error; its content is kept as the run's input."""

    code = "submission_not_taken"


def take_submission(process: WorkerProcess, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Submitted:
    """Create the run that a ``paidonce.submit`` message requests, or a failed run that says why not.

    Without a key, the task's id is the key, so that a redelivered message finds its
    run; it is an alias of the run in any case. Waits while the store is away or cannot
    take the submission, because the message is the only copy. Any other error is
    retried a few times and then refused, so that no message is redelivered for ever.
    """
    found = {**kwargs, **dict(zip(PARAMETERS, args, strict=False))}
    for pause in (*PAUSES_SECONDS, None):
        try:
            return _create(process, task_id, args, kwargs, found)
        except WorkerStopping:
            raise
        except (InvalidInput, KeyConflict, StatementRefused) as error:
            refusal: PaidonceError = error
            break
        except RecursionError:
            # Raised where a value that nests without end is given as a name, and is to be shown.
            refusal = InvalidInput("a part of it is nested without an end")
            break
        except Exception as error:  # noqa: BLE001 - told by type and place, and tried again
            log.error(
                "submission %s could not be taken (%s) and is %s",
                loggable(task_id, 120),
                failure_of(error),
                "refused" if pause is None else f"tried again in {pause:g} s",
                extra={"event": "submission_failed"},
            )
            refusal = SubmissionNotTaken(
                f"the submission failed with an unexpected error: {type(error).__name__}: {error!s:.500}; this is a "
                "bug in Paidonce: please report it. The input of this run is what was sent"
            )
            if pause is not None:
                process.store_waits.pause(pause, f"submission {loggable(task_id, 120)}")
    return process.store_waits.until_stored(
        lambda: _refuse(process, task_id, found.get("agent"), found.get("input"), found.get("tags"), refusal),
        f"submission {loggable(task_id, 120)}",
    )


def _create(
    process: WorkerProcess,
    task_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    found: Mapping[str, Any],
) -> Submitted:
    """The run, durable. Raises ``InvalidInput``, ``KeyConflict`` or ``StatementRefused`` for what cannot be a run."""
    agent, given = found.get("agent"), found.get("input")
    _check_arguments(args, kwargs)
    if not is_alias(task_id):
        raise InvalidInput(f"the id of a task must have 1 to {MAX_ALIAS_CHARACTERS} characters, found {task_id!r:.80}")
    _check_namespace(process.settings.namespace, found.get("namespace"))
    declaration = process.registry.agent(agent) if isinstance(agent, str) else None
    queue = found.get("queue")
    if declaration is None and queue is None and isinstance(agent, str) and is_name(agent):
        queue = process.store_waits.until_stored(
            lambda: _queue_of(process, agent), f"submission {loggable(task_id, 120)}"
        )
    new = new_run(
        process.settings,
        agent,
        {} if given is None else given,
        declaration=declaration,
        key=task_id if found.get("key") is None else found["key"],
        tags=found.get("tags"),
        priority=found.get("priority", 5),
        queue=queue,
        alias=task_id,
    )
    submitted = process.store_waits.until_stored(
        lambda: process.database.transact(lambda connection: submit_run(connection, new), single=True),
        f"submission {loggable(task_id, 120)}",
    )
    if submitted.created:
        message = AdvanceMessage(
            run_id=submitted.run_id, agent=new.agent, queue=submitted.queue, priority=submitted.priority
        )
        process.publisher.publish([message])
    return submitted


def refuse_submission(process: WorkerProcess, task_id: str, body: Any, found: str) -> Submitted:
    """Record a ``paidonce.submit`` message with an unreadable body as a failed run, for the producer to find.

    Raises ``StoreError`` while the store is away.
    """
    text = body[: 4 * LONGEST_KEPT_BODY].decode(errors="replace") if isinstance(body, bytes) else _beginning(body)
    error = InvalidInput(f"the body of this paidonce.submit message cannot be used: {found}; expected {EXPECTED_BODY}")
    return _refuse(process, task_id, None, {"unreadable": text[:LONGEST_KEPT_BODY]}, None, error)


def _refuse(process: WorkerProcess, task_id: str, agent: Any, given: Any, tags: Any, error: PaidonceError) -> Submitted:
    """Record a failed run; a plainer one if the store refuses it, or if something in it cannot be stored."""
    try:
        return _record_failure(process, task_id, agent, given, tags, error)
    except StoreUnreachable:
        raise
    except StatementRefused as failure:
        if not failure.is_about_data:
            raise
        log.error(  # without a traceback, which may show what was sent
            "submission %s is refused without its content: %s",
            loggable(task_id, 120),
            failure.message,
            extra={"event": "submission_failed"},
        )
    except Exception as failure:  # noqa: BLE001 - told by type and place
        log.error(
            "submission %s is refused without its content: %s",
            loggable(task_id, 120),
            failure_of(failure),
            extra={"event": "submission_failed"},
        )
    kept = {"unreadable": ascii(given)[:LONGEST_KEPT_BODY]}
    plain = InvalidInput(error.message.encode("ascii", "backslashreplace").decode()[:LONGEST_KEPT_BODY])
    return _record_failure(process, task_id, None, kept, None, plain)


def _check_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ``InvalidInput`` if these cannot be the arguments of ``paidonce.submit``."""
    expected = f"paidonce.submit takes {', '.join(PARAMETERS)}"
    if len(args) > POSITIONAL:
        raise InvalidInput(f"{expected}, at most {POSITIONAL} of them positional; found {len(args)} positional ones")
    twice = sorted(kwargs.keys() & set(PARAMETERS[: len(args)]))
    if twice:
        raise InvalidInput(f"{expected}; found {', '.join(twice)} twice, positional and by name")
    unknown = sorted(kwargs.keys() - set(PARAMETERS))
    if unknown:
        raise InvalidInput(f"{expected}; found {', '.join(unknown)} as well")


def _check_namespace(own: str, named: Any) -> None:
    """Raises ``InvalidInput`` if a submission names another namespace than that of its queue."""
    if named is None or named == own:
        return
    if not isinstance(named, str) or not is_namespace(named):
        raise InvalidInput(f"namespace must have {EXPECTED_NAMESPACE}; found {shown(named)}")
    raise InvalidInput(
        f"this submission is for namespace {named!r}, but was sent to the queue of namespace {own!r}; send it to "
        f"the queue {broker_queue_name(named, SUBMIT_QUEUE)!r}"
    )


def _record_failure(
    process: WorkerProcess, task_id: str, agent: Any, given: Any, tags: Any, error: PaidonceError
) -> Submitted:
    """Record a failed run under the task's id, with as much of what was sent as can be stored."""
    data = encode_json(given) if _fits(given) else encode_json({"unreadable": _beginning(given)[:1000]})
    new = NewRun(
        namespace=process.settings.namespace,
        agent=agent if is_name(agent) else "(none)",
        input=split(data),
        input_sha256=canonical_sha256(json.loads(data)),
        queue=DEFAULT_QUEUE,
        # Without an id of its own it is identified by its content: a second delivery must find the same refusal.
        key=f"failed:{task_id if is_alias(task_id) else sha256(ascii(task_id).encode() + data).hexdigest()}",
        tags=_usable(process, tags),
        alias=task_id if is_alias(task_id) else None,
    )
    return process.database.transact(lambda connection: submit_failed_run(connection, new, error_of(error)))


def _beginning(value: Any) -> str:
    """The beginning of a value as text, or that it is nested too deep."""
    try:
        return str(value)[:LONGEST_KEPT_BODY]
    except RecursionError:
        return f"(a {type(value).__name__} that is nested too deep to show)"


def _usable(process: WorkerProcess, tags: Any) -> Mapping[str, str]:
    """The tags, or none if they are what was wrong."""
    try:
        return checked_tags(process.settings, "(none)", tags)
    except InvalidInput:
        return {}


def _queue_of(process: WorkerProcess, agent: str) -> str:
    with process.database.read() as connection:
        return queue_of_agent(connection, process.settings.namespace, agent)


def _fits(given: Any) -> bool:
    try:
        split(encode_json(given))
    except PaidonceError:
        return False
    return True
