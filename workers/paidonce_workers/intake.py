"""Taking submissions from the broker: durable once the task ends, bad input becomes a ``failed`` run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paidonce.submission import MAX_ALIAS_CHARACTERS, checked_tags, is_alias, is_name, new_run
from paidonce.user_errors import error_of
from paidonce_models.encoding import canonical_sha256, encode_json
from paidonce_models.errors import InvalidInput, KeyConflict, PaidonceError
from paidonce_models.payloads import split
from paidonce_models.queues import DEFAULT_QUEUE
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.submission import NewRun, Submitted, submit_failed_run, submit_run
from paidonce_models.store.workers import queue_of_agent

if TYPE_CHECKING:
    from paidonce_workers.worker_process import WorkerProcess


PARAMETERS = ("agent", "input", "key", "tags", "priority", "queue")
POSITIONAL = 4
"""How many of them a producer may leave without a name."""
LONGEST_KEPT_BODY = 10_000
"""Characters of a body that nobody can read, kept for whoever looks for the mistake."""
EXPECTED_BODY = '[[], {"agent": "NAME", "input": {"ARGUMENT": "VALUE"}}, {}]'


def take_submission(process: WorkerProcess, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Submitted:
    """Create the run that a ``paidonce.submit`` message asks for.

    Without a key the task's id is the key, so that a redelivered message finds
    its run; it is an alias of the run in any case. Waits while the store is away.
    """
    found = {**kwargs, **dict(zip(PARAMETERS, args, strict=False))}
    agent, given, tags = found.get("agent"), found.get("input"), found.get("tags")
    own_key = task_id if found.get("key") is None else found["key"]
    try:
        _check_arguments(args, kwargs)
        if not is_alias(task_id):
            raise InvalidInput(
                f"the id of a task must have 1 to {MAX_ALIAS_CHARACTERS} characters, found {task_id!r:.80}"
            )
        declaration = process.registry.agent(agent) if isinstance(agent, str) else None
        queue = found.get("queue")
        if declaration is None and queue is None and isinstance(agent, str):
            queue = process.patience.until_done(lambda: _queue_of(process, agent), f"submission {task_id}")
        new = new_run(
            process.settings,
            agent,
            {} if given is None else given,
            declaration=declaration,
            key=own_key,
            tags=tags,
            priority=found.get("priority", 5),
            queue=queue,
            alias=task_id,
        )
        submitted = process.patience.until_done(
            lambda: process.database.transact(lambda connection: submit_run(connection, new), single=True),
            f"submission {task_id}",
        )
    except (InvalidInput, KeyConflict) as error:
        refused = error  # the name is unbound behind the clause
        return process.patience.until_done(
            lambda: _record_failure(process, task_id, agent, given, tags, refused), f"submission {task_id}"
        )
    if submitted.created:
        message = AdvanceMessage(
            run_id=submitted.run_id, agent=new.agent, queue=submitted.queue, priority=submitted.priority
        )
        process.publisher.publish([message])
    return submitted


def refuse_submission(process: WorkerProcess, task_id: str, body: Any, found: str) -> Submitted:
    """Record a ``paidonce.submit`` message whose body cannot be read as a failed run, for the producer to find.

    Raises ``StoreError`` while the store is away.
    """
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    error = InvalidInput(f"the body of this paidonce.submit message cannot be used: {found}; expected {EXPECTED_BODY}")
    return _record_failure(process, task_id, None, {"unreadable": text[:LONGEST_KEPT_BODY]}, None, error)


def _check_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ``InvalidInput`` where these cannot be the arguments of ``paidonce.submit``."""
    expected = f"paidonce.submit takes {', '.join(PARAMETERS)}"
    if len(args) > POSITIONAL:
        raise InvalidInput(f"{expected}, {POSITIONAL} of them without a name; found {len(args)} without a name")
    twice = sorted(kwargs.keys() & set(PARAMETERS[: len(args)]))
    if twice:
        raise InvalidInput(f"{expected}; found {', '.join(twice)} twice, with and without a name")
    unknown = sorted(kwargs.keys() - set(PARAMETERS))
    if unknown:
        raise InvalidInput(f"{expected}; found {', '.join(unknown)} besides")


def _record_failure(
    process: WorkerProcess, task_id: str, agent: Any, given: Any, tags: Any, error: PaidonceError
) -> Submitted:
    """A failed run under the task's id, which keeps what was sent as far as it can be kept."""
    data = encode_json(given) if _fits(given) else encode_json({"unreadable": str(given)[:1000]})
    new = NewRun(
        namespace=process.settings.namespace,
        agent=agent if is_name(agent) else "(none)",
        input=split(data),
        input_sha256=canonical_sha256(json.loads(data)),
        queue=DEFAULT_QUEUE,
        key=f"failed:{task_id if is_alias(task_id) else ascii(task_id)[:MAX_ALIAS_CHARACTERS]}",
        tags=_usable(tags),
        alias=task_id if is_alias(task_id) else None,
    )
    return process.database.transact(lambda connection: submit_failed_run(connection, new, error_of(error)))


def _usable(tags: Any) -> Mapping[str, str]:
    """The tags, or none where they are what was wrong."""
    try:
        return checked_tags("(none)", tags)
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
